"""verify: reads every sample of a data set, says which files are wrong, and draws some."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from perfconv.data.bsds500 import BSDS500
from perfconv.data.cityscapes import Cityscapes
from perfconv.data.dataset import LabelledImages
from perfconv.data.files import DataError
from perfconv.data.nyuv2 import NYUv2
from perfconv.data.palette import palette
from perfconv.data.sample import IGNORE, Sample
from perfconv.data.stanford import Stanford2D3D
from perfconv.data.sunrgbd import SUNRGBD

# Each is made of (root, split).
DATASETS: dict[str, type[LabelledImages]] = {
    "nyuv2": NYUv2,
    "cityscapes": Cityscapes,
    "stanford2d3d": Stanford2D3D,
    "sunrgbd": SUNRGBD,
    "bsds500": BSDS500,
}
# Images of each split of the complete data set.
COUNTS = {
    "nyuv2": {"train": 795, "test": 654},
    "cityscapes": {"train": 2975, "val": 500, "test": 1525},
    "stanford2d3d": {"train": 1070, "test": 343},
    "sunrgbd": {"train": 5285, "test": 5050},
    "bsds500": {"train": 200, "val": 100, "test": 200},
}
SHEET_ROWS = 8
SHEET_HEIGHT = 120  # pixels of a picture in the contact sheet
LARGEST_DEPTH_M = 20_000.0  # Cityscapes' smallest valid disparity is 12 km away


@dataclass
class Report:
    """What ``verify`` found."""

    images: int
    sizes: set[tuple[int, int]] = field(default_factory=set)
    label_pixels: Tensor | None = None  # (C,), of the whole split
    depth_m: tuple[float, float] | None = None  # smallest and largest
    problems: list[str] = field(default_factory=list)  # one sentence each, naming the file
    shown: list[Sample] = field(default_factory=list)  # a few, evenly spread


def verify(
    dataset: LabelledImages,
    *,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Reads the samples and checks them.

    Args:
        dataset: any reader.
        limit: read this many, evenly spread; None: all.
        progress: called with the number of samples read so far.
    """
    chosen = _spread(len(dataset), limit)
    report = Report(len(chosen))
    for done, index in enumerate(chosen):
        if progress is not None:
            progress(done)
        try:
            sample = dataset[index]
        except DataError as error:
            report.problems.append(str(error))
            continue
        report.problems += [f"sample {sample.name}: {fault}" for fault in _faults(sample, dataset)]
        report.sizes.add(sample.size)
        _count(report, sample, len(dataset.classes))
        if len(report.shown) < SHEET_ROWS and done * SHEET_ROWS >= len(report.shown) * len(chosen):
            report.shown.append(sample)
    return report


def _spread(count: int, limit: int | None) -> list[int]:
    if limit is None or limit >= count:
        return list(range(count))
    return [index * count // limit for index in range(limit)]


def _faults(sample: Sample, dataset: LabelledImages) -> list[str]:
    """What is wrong with the values; their shapes are right."""
    faults = []
    if sample.labels is not None:
        known = sample.labels[sample.labels != IGNORE]
        if not known.numel():
            faults.append("no pixel is labelled.")
        elif int(known.max()) >= len(dataset.classes) or int(known.min()) < 0:
            faults.append(f"labels reach {int(known.max())}, classes {len(dataset.classes)}.")
    if sample.depth_m is not None and sample.depth_valid is not None:
        depth = sample.depth_m[sample.depth_valid]
        if not depth.numel():
            faults.append("no pixel has depth.")
        elif float(depth.max()) > LARGEST_DEPTH_M:
            faults.append(f"depth reaches {float(depth.max()):.0f} m.")
    if sample.normals is not None and sample.normals_valid is not None:
        lengths = sample.normals.norm(dim=0)[sample.normals_valid[0]]
        if not lengths.numel():
            faults.append("no pixel has a normal.")
    if sample.boundaries is not None and not bool(sample.boundaries.any()):
        faults.append("no boundary is drawn.")
    return faults


def _count(report: Report, sample: Sample, classes: int) -> None:
    if sample.labels is not None and classes:
        known = sample.labels[sample.labels < classes]
        pixels = torch.bincount(known, minlength=classes)
        report.label_pixels = (
            pixels if report.label_pixels is None else report.label_pixels + pixels
        )
    if sample.depth_m is not None and sample.depth_valid is not None:
        depth = sample.depth_m[sample.depth_valid]
        if depth.numel():
            low, high = float(depth.min()), float(depth.max())
            before = report.depth_m or (low, high)
            report.depth_m = (min(low, before[0]), max(high, before[1]))


def contact_sheet(samples: Sequence[Sample], dataset: LabelledImages) -> Tensor:
    """(3, H, W), in [0, 1]: a row for each sample: image, labels, depth, normals, boundaries.

    Depth is dark where near; unknown pixels are black.
    """
    rows = [_row(sample, palette(dataset.colours)) for sample in samples]
    width = max(row.size(2) for row in rows)
    return torch.cat([F.pad(row, (0, width - row.size(2))) for row in rows], 1)


def _row(sample: Sample, palette: Tensor) -> Tensor:
    pictures = [sample.image]
    if sample.labels is not None:
        pictures.append(palette[sample.labels].permute(2, 0, 1))
    if sample.depth_m is not None and sample.depth_valid is not None:
        known = sample.depth_m[sample.depth_valid]
        far = known.quantile(0.98) if 0 < known.numel() < 10**7 else sample.depth_m.max()
        shade = (sample.depth_m / far.clamp(min=1e-6)).clamp(0, 1)
        pictures.append(torch.where(sample.depth_valid, shade, 0.0).expand(3, -1, -1))
    if sample.normals is not None and sample.normals_valid is not None:
        pictures.append(torch.where(sample.normals_valid, (sample.normals + 1) / 2, 0.0))
    if sample.boundary_share is not None:
        pictures.append(sample.boundary_share.expand(3, -1, -1))
    width = max(1, round(SHEET_HEIGHT * sample.size[1] / sample.size[0]))
    scaled = [
        F.interpolate(picture[None], (SHEET_HEIGHT, width), mode="area") for picture in pictures
    ]
    return torch.cat(scaled, 3)[0]
