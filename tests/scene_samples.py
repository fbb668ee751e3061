"""Samples with every kind of label, for the tests of transforms and geometry."""

import torch

from perfconv.data import Camera, Sample, boundaries_from_labels, pixel_rays


def plane_sample(
    tilt: tuple[float, float] = (0.3, -0.2), size: tuple[int, int] = (24, 30), seed: int = 0
) -> Sample:
    """A tilted plane with a disc of another class, seen by a camera; every label is exact."""
    camera = Camera(28.0, 28.0, size[1] / 2 - 1.3, size[0] / 2 + 0.7)
    normal = torch.nn.functional.normalize(torch.tensor([*tilt, 1.0]), dim=0)
    depth = 3 / -torch.einsum("ihw,i->hw", pixel_rays(camera, size), normal)
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij")
    inside = (rows - 10) ** 2 + (columns - 12) ** 2 < 36
    labels = torch.where(inside, 2, 1)
    labels[:3, :4] = 255
    return Sample(
        image=torch.rand(3, *size, generator=torch.Generator().manual_seed(seed)),
        name="plane",
        labels=labels,
        instances=inside.long(),
        depth_m=depth[None],
        normals=normal[:, None, None].expand(3, *size).contiguous(),
        boundaries=boundaries_from_labels(inside),
        camera=camera,
    )
