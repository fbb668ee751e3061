"""HED on one photo, dense and perforated: the masks, the settings compared, their FLOPs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from perfconv.models.hed import BLOCKS, HED, block_sizes
from perfconv.models.hed_gates import gate_macs, set_density
from perfconv.nn.gate_record import record_gates
from perfconv.ops.conv import explain
from perfconv.ops.mask import ActivePixels, compact_mask, density

PERFORATED_BLOCKS = (2, 3, 4, 5)
COARSE = 4  # the mask comes from a pass over the photo at 1/COARSE of its size

DENSE, BLENDED, GATES, EDGES, RANDOM = (
    "dense", "dense x mask", "learned gates", "perforated", "random mask",
)  # fmt: skip
# The quarter-size pass costs 1/16 of dense and the gates 0.002; so gates may open more pixels: this
# much more of blocks 2 to 5, which are 0.874 of dense. Rounded down.
GATES_EXTRA = 0.069


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    kind: str  # DENSE, BLENDED (compute everything, then blend), GATES, EDGES or RANDOM
    density: float | None = None  # asked for; None for DENSE
    is_channels_last: bool = True  # layout of the photo and of all features

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.is_channels_last else torch.contiguous_format

    @property
    def name(self) -> str:
        if self.kind == DENSE:
            return "dense, channels_last" if self.is_channels_last else "dense, NCHW"
        if self.kind == RANDOM:
            return "perforated, random mask"
        if self.kind == GATES:
            return "perforated, learned"
        return self.kind if self.kind == BLENDED else "perforated, edge mask"


@dataclass(frozen=True)
class Run:
    """What one setting made of the photo, once."""

    edges: Tensor  # (1, 1, H, W), probability
    masks: dict[int, ActivePixels]  # by block; empty for DENSE
    total_s: float  # everything from the photo to the edges
    mask_s: float  # of it: quarter-size pass, thresholds, compaction; 0 for GATES, not apart
    gate_flops: int = 0  # of GATES


def make_settings(densities: Sequence[float]) -> list[Setting]:
    """The rows in the order of the table; the blended one has the middle density."""
    descending = sorted(set(densities), reverse=True)
    return [
        Setting(DENSE, is_channels_last=False),
        Setting(DENSE),
        Setting(BLENDED, descending[len(descending) // 2]),
        *(Setting(GATES, round(min(value + GATES_EXTRA, 1.0), 3)) for value in descending),
        *(Setting(EDGES, value) for value in descending),
        *(Setting(RANDOM, value) for value in descending),
    ]


@torch.inference_mode()
def run_setting(model: HED, photo: Tensor, setting: Setting, seed: int = 0) -> Run:
    """Runs one setting and times it.

    Args:
        model: prepacked HED in eval mode; for GATES one with learned gates.
        photo: (1, 3, H, W), RGB in [0, 1], in the layout of the setting.
        setting: which.
        seed: of the random mask.
    """
    if setting.kind == GATES:
        return _run_gates(model, photo, setting)
    begin = time.perf_counter()
    if setting.kind == DENSE:
        edges = model(photo).edges
        return Run(edges, {}, time.perf_counter() - begin, 0.0)
    assert setting.density is not None
    height, width = photo.shape[-2:]
    sizes = block_sizes(height, width)
    small = F.adaptive_avg_pool2d(photo, (-(-height // COARSE), -(-width // COARSE)))
    coarse = model(small.contiguous(memory_format=setting.layout))
    if setting.kind == RANDOM:
        generator = torch.Generator().manual_seed(seed)
        scores = [torch.rand(1, 1, *sizes[k - 1], generator=generator) for k in PERFORATED_BLOCKS]
    else:
        logits = coarse.edges.logit()
        scores = [resample_scores(logits, sizes[k - 1]) for k in PERFORATED_BLOCKS]
    masks = {
        number: compact_mask(highest(score, setting.density))
        for number, score in zip(PERFORATED_BLOCKS, scores, strict=True)
    }
    mask_s = time.perf_counter() - begin
    algorithm = "dense" if setting.kind == BLENDED else "auto"
    edges = model(photo, masks, coarse.sides, algorithm=algorithm).edges
    return Run(edges, masks, time.perf_counter() - begin, mask_s)


def _run_gates(model: HED, photo: Tensor, setting: Setting) -> Run:
    assert setting.density is not None
    set_density(model, setting.density)
    begin = time.perf_counter()
    with record_gates(model) as record:
        edges = model(photo).edges
    total_s = time.perf_counter() - begin
    masks = {int(call.name[len("block")]): compact_mask(call.gate.mask) for call in record}
    return Run(edges, masks, total_s, 0.0, 2 * gate_macs(model, (photo.size(2), photo.size(3))))


def resample_scores(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, 1, h, w) scores on another grid: bilinear if finer, the largest of a cell if coarser."""
    if size[0] >= scores.size(2):
        return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
    return F.adaptive_max_pool2d(scores, size)


def highest(scores: Tensor, share: float) -> Tensor:
    """The mask of the pixels with the highest scores.

    Args:
        scores: (1, 1, H, W).
        share: of the pixels, in (0, 1]; ties at the threshold are left out.

    Returns:
        (1, 1, H, W), bool.
    """
    count = max(1, round(share * scores.numel()))
    if count >= scores.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    return scores > scores.flatten().kthvalue(scores.numel() - count).values


@torch.inference_mode()
def all_true_difference(model: HED, photo: Tensor) -> float:
    """Largest difference of the edge map under all-True masks, the perforated kernels forced."""
    sizes = block_sizes(*photo.shape[-2:])
    masks = {
        number: torch.ones(1, 1, *sizes[number - 1], dtype=torch.bool)
        for number in PERFORATED_BLOCKS
    }
    perforated = model(photo, masks, algorithm="implicit_gemm").edges
    return (perforated - model(photo).edges).abs().max().item()


def agreement(edges: Tensor, reference: Tensor, threshold: float = 0.5) -> float:
    """F of two edge maps: 2 * (edge in both) / (edge in one + edge in the other), pixel by pixel.

    No tolerance in place; 1 when neither has an edge.
    """
    found, wanted = edges >= threshold, reference >= threshold
    total = int(found.sum()) + int(wanted.sum())
    return 2 * int((found & wanted).sum()) / total if total else 1.0


@dataclass(frozen=True)
class LayerFlops:
    """One layer of one setting."""

    name: str
    dense_flops: int
    density: float  # of the layer's mask; 1 without one
    algorithm: str  # that ran
    executed_flops: int


def layer_flops(model: HED, size: tuple[int, int], run: Run, kind: str) -> list[LayerFlops]:
    """FLOPs (2 x MACs) of every convolution at full size; quarter-size pass or gates in one row.

    A perforated layer executes its active pixels only, unless the dense algorithm ran.

    Args:
        model: the network.
        size: (H, W) of the photo.
        run: of the setting, for its masks.
        kind: of the setting.
    """
    rows = []
    if run.gate_flops:
        rows.append(LayerFlops("gates", 0, 1.0, "dense", run.gate_flops))
    elif run.masks:
        small = (-(-size[0] // COARSE), -(-size[1] // COARSE))
        flops = sum(
            row.dense_flops for row in layer_flops(model, small, Run(run.edges, {}, 0, 0), DENSE)
        )
        rows.append(LayerFlops("quarter-size pass", 0, 1.0, "dense", flops))
    for number, (height, width) in enumerate(block_sizes(*size), 1):
        active = run.masks.get(number)
        for name, layer in getattr(model, f"block{number}").named_children():
            dense_flops = 2 * layer.weight.numel() * height * width
            share, algorithm = 1.0, "dense"
            if active is not None:
                share = density(active.mask).item()
                if kind != BLENDED:
                    input = torch.empty(1, layer.in_channels, height, width)
                    algorithm = explain(input, layer.weight, active, padding=1)[0][0]
            executed = dense_flops if algorithm == "dense" else round(dense_flops * share)
            label = f"block {number}, {name}"
            rows.append(LayerFlops(label, dense_flops, share, algorithm, executed))
    outputs = [
        2 * channels * h * w
        for (channels, _), (h, w) in zip(BLOCKS, block_sizes(*size), strict=True)
    ]
    flops = sum(outputs) + 2 * len(BLOCKS) * size[0] * size[1]
    rows.append(LayerFlops("side outputs and fuse", flops, 1.0, "dense", flops))
    return rows
