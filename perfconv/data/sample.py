"""Sample: one image with every kind of label, and Batch: several of them for a network."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import default_collate

IGNORE = 255  # the label of pixels that do not count


@dataclass(frozen=True)
class Camera:
    """A pinhole camera in pixels; the centre of the first pixel is at (0, 0)."""

    focal_x: float
    focal_y: float
    centre_x: float  # column of the principal point
    centre_y: float  # row of it


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and what is known about its pixels; None is what a data set does not have.

    Depth is the distance along the optical axis (panoramas: from the camera). Vectors are in the
    frame of the viewer: x to the right, y up, z towards the viewer.

    Raises:
        TypeError: a tensor has another dtype.
        ValueError: a tensor has another shape.
    """

    image: Tensor  # (3, H, W), float32, red, green, blue in [0, 1]
    name: str = ""
    labels: Tensor | None = None  # (H, W), int64, classes from 0, 255 = unknown
    instances: Tensor | None = None  # (H, W), int64, 0 = part of none
    depth_m: Tensor | None = None  # (1, H, W), float32, metres, 0 where not valid
    depth_valid: Tensor | None = None  # (1, H, W), bool; default: finite and above 0
    normals: Tensor | None = None  # (3, H, W), float32, unit vectors, 0 where not valid
    normals_valid: Tensor | None = None  # (1, H, W), bool; default: not 0
    boundaries: Tensor | None = None  # (A, H, W), bool, one map for each annotator
    camera: Camera | None = None

    def __post_init__(self) -> None:
        if self.depth_m is not None and self.depth_valid is None:
            valid = torch.isfinite(self.depth_m) & (self.depth_m > 0)
            object.__setattr__(self, "depth_valid", valid)
        if self.normals is not None and self.normals_valid is None:
            object.__setattr__(self, "normals_valid", (self.normals != 0).any(0, keepdim=True))
        for field, (channels, dtype) in _FIELDS.items():
            tensor = getattr(self, field)
            if tensor is not None:
                self._check(field, tensor, channels, dtype)

    def _check(self, field: str, tensor: Tensor, channels: int | None, dtype: torch.dtype) -> None:
        if tensor.dtype != dtype:
            raise TypeError(f"Sample {self.name!r}: {field} must be {dtype}, got {tensor.dtype}.")
        size = self.image.shape[-2:]
        rank = 2 if channels == 0 else 3
        has_channels = channels in (0, None) or tensor.size(0) == channels
        if tensor.dim() != rank or tensor.shape[-2:] != size or not has_channels:
            wanted = {0: "(H, W)", None: "(A, H, W)"}.get(channels, f"({channels}, H, W)")
            raise ValueError(
                f"Sample {self.name!r}: {field} must be {wanted} with (H, W) = {tuple(size)} of "
                f"the image, got {tuple(tensor.shape)}."
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), pixels."""
        return self.image.size(1), self.image.size(2)

    @property
    def boundary_share(self) -> Tensor | None:
        """(1, H, W), float32: the share of annotators that drew the pixel."""
        return None if self.boundaries is None else self.boundaries.float().mean(0, keepdim=True)


# Field: its channels (0: none, None: any number) and dtype.
_FIELDS: dict[str, tuple[int | None, torch.dtype]] = {
    "image": (3, torch.float32),
    "labels": (0, torch.int64),
    "instances": (0, torch.int64),
    "depth_m": (1, torch.float32),
    "depth_valid": (1, torch.bool),
    "normals": (3, torch.float32),
    "normals_valid": (1, torch.bool),
    "boundaries": (None, torch.bool),
}


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of one size, stacked; None is what one of them does not have."""

    image: Tensor  # (N, 3, H, W)
    names: tuple[str, ...]
    labels: Tensor | None  # (N, H, W)
    instances: Tensor | None  # (N, H, W)
    depth_m: Tensor | None  # (N, 1, H, W)
    depth_valid: Tensor | None  # (N, 1, H, W)
    normals: Tensor | None  # (N, 3, H, W)
    normals_valid: Tensor | None  # (N, 1, H, W)
    boundaries: Tensor | None  # (N, 1, H, W), float32: share of annotators
    cameras: tuple[Camera | None, ...]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The same batch on another device."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        return replace(
            self,
            image=self.image.to(device, non_blocking=non_blocking),
            labels=moved(self.labels),
            instances=moved(self.instances),
            depth_m=moved(self.depth_m),
            depth_valid=moved(self.depth_valid),
            normals=moved(self.normals),
            normals_valid=moved(self.normals_valid),
            boundaries=moved(self.boundaries),
        )

    def __len__(self) -> int:
        return len(self.names)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks samples: the ``collate_fn`` of a DataLoader.

    Raises:
        ValueError: there is none, or sizes differ.
    """
    sizes = {sample.size for sample in samples}
    if len(sizes) != 1:
        raise ValueError(
            f"collate: samples must be of one size, got {sorted(sizes) or 'no sample'}. Crop or "
            "scale them first."
        )

    def stacked(field: str) -> Tensor | None:
        parts = [getattr(sample, field) for sample in samples]
        # In a worker: into memory that the trainer shares, without another copy.
        return None if any(part is None for part in parts) else default_collate(parts)

    return Batch(
        image=default_collate([sample.image for sample in samples]),
        names=tuple(sample.name for sample in samples),
        labels=stacked("labels"),
        instances=stacked("instances"),
        depth_m=stacked("depth_m"),
        depth_valid=stacked("depth_valid"),
        normals=stacked("normals"),
        normals_valid=stacked("normals_valid"),
        boundaries=stacked("boundary_share"),
        cameras=tuple(sample.camera for sample in samples),
    )
