"""predict_augmented: predictions merged over flips and scales, by the rules of each task."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TASKS = ("segmentation", "log_depth", "normals", "boundary")
MERGES = ("mean", "max")


def predict_augmented(
    predict: Callable[[Tensor], Mapping[str, Tensor]],
    images: Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
    merge: str = "mean",
) -> dict[str, Tensor]:
    """Runs a network on scaled and mirrored images, undoes that in its outputs and merges them.

    | task | output of the network | undone and merged as |
    |---|---|---|
    | segmentation | logits (N, C, h, w) | softmax; mean or largest over the runs, sum 1 |
    | log_depth | log of metres (N, 1, h, w) | log s added (scaled by s, depth is / s); mean |
    | normals | vectors (N, 3, h, w) | x negated if mirrored, z divided by s; mean of unit vectors |
    | boundary | logits (N, 1, h, w) | sigmoid; mean |

    All runs weigh the same. The rules are those of ``perfconv.data``'s transforms, backwards.

    Args:
        predict: the network, or a function around it; a dictionary of any of these tasks. Outputs
            of another size than the images are scaled to it.
        images: (N, 3, H, W), floating-point.
        scales: factors of the image's size, above 0.
        flip: also run mirrored images.
        merge: of segmentation: "mean" or "max" (as the authors did over recurrent loops).

    Returns:
        The same tasks at (H, W): probabilities, log of metres, unit vectors, probabilities;
        float32 or wider.

    Raises:
        KeyError: a task is none of these.
        TypeError: ``images`` are not floating point, or ``predict`` returns no dictionary.
        ValueError: ``images`` or an output are not (N, C, H, W), ``scales`` is empty or holds a
            number that is not finite and above 0, ``merge`` is neither, or an image becomes empty.

    Notes: gradients are not stopped; wrap in ``torch.no_grad()``. Costs 2 * sum of s^2 runs.
    Example:
        >>> image = torch.rand(1, 3, 4, 6)
        >>> network = lambda x: {"boundary": x[:, :1]}
        >>> merged = predict_augmented(network, image)["boundary"]
        >>> torch.allclose(merged, image[:, :1].sigmoid())
        True
    """
    scales = tuple(scales)
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(
            f"predict_augmented: scales must hold numbers above 0, got {scales}. (1.0,) is the "
            "image as it is."
        )
    _check_map("images", images)
    if merge not in MERGES:
        raise ValueError(
            f"predict_augmented: merge must be 'mean' or 'max', got {merge!r}. Choose one of these."
        )
    runs: dict[str, list[Tensor]] = {}
    for scale in scales:
        scaled = _scaled(images, scale)
        for mirrored in (False, True) if flip else (False,):
            outputs = predict(scaled.flip(-1) if mirrored else scaled)
            if not isinstance(outputs, Mapping):
                raise TypeError(
                    "predict_augmented: predict must return a dictionary of tasks, got a "
                    f"{type(outputs).__name__}. Give a function around the network, or its "
                    "method predict."
                )
            for task, output in outputs.items():
                _check_map(task, output)
                map = output.to(torch.promote_types(output.dtype, torch.float32))
                undone = _undo(task, map, scale, mirrored)
                runs.setdefault(task, []).append(_resized(undone, images.shape[2:]))
    return {task: _merged(task, torch.stack(maps), merge) for task, maps in runs.items()}


def _check_map(name: str, map: Tensor) -> None:
    if not map.is_floating_point():
        raise TypeError(
            f"predict_augmented: {name} must be floating point, got {map.dtype}. Convert: "
            "images.float() / 255."
        )
    if map.dim() != 4:
        raise ValueError(
            f"predict_augmented: {name} must be (N, C, H, W), got {tuple(map.shape)}. For one "
            "image, image.unsqueeze(0)."
        )


def _scaled(images: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return images
    height, width = (round(side * scale) for side in images.shape[2:])
    if not (height and width):
        raise ValueError(
            f"predict_augmented: images must not become empty, got {tuple(images.shape)} scaled "
            f"by {scale}. Leave small scales out."
        )
    return resized_images(images, (height, width), is_smaller=scale < 1)


def resized_images(images: Tensor, size: tuple[int, int], *, is_smaller: bool) -> Tensor:
    """(N, C, *size), bilinear, antialiased if smaller, which torch has not in 16 bits on a CPU."""
    wide = images.to(torch.promote_types(images.dtype, torch.float32))
    resized = F.interpolate(wide, size, mode="bilinear", align_corners=False, antialias=is_smaller)
    return resized.to(images.dtype)


def _undo(task: str, map: Tensor, scale: float, mirrored: bool) -> Tensor:
    """What the network would say of the image as it was; vectors of length 1."""
    if task not in TASKS:
        raise KeyError(
            f"predict_augmented: tasks are {', '.join(TASKS)}, got {task!r}. Rename the output."
        )
    if mirrored:
        map = map.flip(-1)
    if task == "segmentation":
        return map.softmax(1)
    if task == "boundary":
        return map.sigmoid()
    if task == "log_depth":
        return map + math.log(scale)
    factors = map.new_tensor([-1.0 if mirrored else 1.0, 1.0, 1 / scale])
    return F.normalize(map * factors[:, None, None], dim=1)


def _resized(map: Tensor, size: torch.Size) -> Tensor:
    if map.shape[2:] == size:
        return map
    return F.interpolate(map, size, mode="bilinear", align_corners=False)


def _merged(task: str, runs: Tensor, merge: str) -> Tensor:
    """Over the first dimension of (R, N, C, H, W)."""
    if task == "normals":
        return F.normalize(runs.mean(0), dim=1)
    if task == "segmentation" and merge == "max":
        largest = runs.amax(0)
        return largest / largest.sum(1, keepdim=True)
    return runs.mean(0)
