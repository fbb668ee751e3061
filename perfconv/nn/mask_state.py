"""MaskState: how a mask reaches layers whose ``forward`` has no argument for it."""

import threading

import torch
from torch import Tensor

from perfconv.ops.arguments import check_mask_image
from perfconv.ops.mask import ActivePixels, downsample_mask


class MaskState:
    """Masks that several layers share, one per resolution and thread.

    Give one object to many ``PerforatedConv2d`` layers (``layer.mask_state = state``), ``set`` a
    mask before the forward pass and ``clear`` it afterwards. A layer asks for the mask of its own
    output size. A size that was not set is made with ``downsample_mask`` from a set one, if a
    stride leads from that size to this one; any other size is an error.

    A thread sees only the masks it set itself. Copies and pickles of a state hold no masks. Under
    activation checkpointing give layers their masks as arguments: the backward pass computes them
    again, when the state may hold other masks, and on a GPU in another thread.

    Example:
        >>> state = MaskState()
        >>> state.set(torch.ones(1, 1, 8, 8, dtype=torch.bool))
        >>> state.get(1, 4, 4).shape
        torch.Size([1, 1, 4, 4])
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def set(self, mask: Tensor | ActivePixels) -> None:
        """Keeps ``mask`` (N or 1, 1, H, W), bool, for layers of output size (H, W).

        Masks of other resolutions stay, so ``clear`` before images of another size; those made
        from an earlier mask are forgotten. After an edit of a mask in place, set it again.

        Raises:
            TypeError: ``mask`` is not bool.
            ValueError: ``mask`` is not (N, 1, H, W).
        """
        if isinstance(mask, ActivePixels):
            mask = mask.mask
        check_mask_image("MaskState.set", mask)
        self._given()[(mask.size(2), mask.size(3))] = mask
        self._made().clear()

    def clear(self) -> None:
        """Forgets every mask of this thread."""
        self._given().clear()
        self._made().clear()

    def is_empty(self) -> bool:
        """Whether this thread has set no mask."""
        return not self._given()

    def get(self, batch: int, height: int, width: int) -> Tensor | None:
        """The mask of an output (batch, height, width), or None if none is set at all.

        Raises:
            ValueError: masks are set, but none fits.
            RuntimeError: called while a model is exported: the mask would become a constant.
        """
        given = self._given()
        if not given:
            return None
        if torch.compiler.is_exporting():
            raise RuntimeError(
                "MaskState: a mask is stored while the model is exported; it would become a "
                "constant of the exported program. Clear the state and give the mask as an "
                "argument of forward."
            )
        size = (height, width)
        mask = given.get(size)
        if mask is None:
            mask = self._made().get(size)
        if mask is None:
            mask = self._downsampled(size)
            self._made()[size] = mask
        if mask.size(0) not in (1, batch):
            raise ValueError(
                f"MaskState: the mask for {size} is of {mask.size(0)} images, the layer has "
                f"{batch}. Set a mask of {batch} images or of 1."
            )
        return mask

    def _downsampled(self, size: tuple[int, int]) -> Tensor:
        for given, mask in sorted(self._given().items(), key=lambda item: item[0]):
            stride = stride_between(given, size)
            if stride is not None:
                return downsample_mask(mask, stride, size=size)
        sizes = ", ".join(map(str, self._given()))
        raise ValueError(
            f"MaskState: a layer of output size {size} has no mask; set are {sizes}, and none of "
            "them is a whole multiple. Set a mask of that size (perfconv.downsample_mask makes "
            "one)."
        )

    def _given(self) -> dict[tuple[int, int], Tensor]:
        return self._local.__dict__.setdefault("given", {})

    def _made(self) -> dict[tuple[int, int], Tensor]:
        return self._local.__dict__.setdefault("made", {})

    def __deepcopy__(self, memo: dict) -> "MaskState":
        copied = MaskState()
        memo[id(self)] = copied
        return copied

    def __reduce__(self) -> tuple:
        return MaskState, ()


def stride_between(fine: tuple[int, int], coarse: tuple[int, int]) -> tuple[int, int] | None:
    """The stride that leads from one size to a coarser one, or None.

    Several can, such as 3 (13 / 3 floored) and 4 (13 / 4 rounded up) from 13 to 4. Taken is, in
    this order: the same in both directions, rounding up, a power of two, the smallest.
    """

    def rank(stride: tuple[int, int]) -> tuple:
        is_floored = any(
            -(-length // step) != wanted
            for length, wanted, step in zip(fine, coarse, stride, strict=True)
        )
        powers = all(step & (step - 1) == 0 for step in stride)
        return stride[0] != stride[1], is_floored, not powers, stride

    vertical, horizontal = (_strides(*sides) for sides in zip(fine, coarse, strict=True))
    found = [(h, w) for h in vertical for w in horizontal if max(h, w) > 1]
    return min(found, key=rank) if found else None


def _strides(length: int, wanted: int) -> list[int]:
    """Strides after which ``length`` pixels are ``wanted``, rounded up or down."""
    if not 1 <= wanted <= length:
        return []
    tried = {length // wanted, -(-length // wanted), *(2**power for power in range(12))}
    return [step for step in sorted(tried) if wanted in (length // step, -(-length // step))]
