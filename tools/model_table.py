"""Writes docs/models.md: every named builder with its parameters and MACs.

    python tools/model_table.py            # writes the page
    python tools/model_table.py --check    # fails if it is not what would be written

Networks are built and run on torch's meta device: shapes only, no numbers, a second each.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from perfconv.flops import count
from perfconv.models import builders

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
NYUV2, CITYSCAPES = (425, 560), (1024, 2048)

HEAD = """# Named networks

Every variant of the authors' tables has a builder in `perfconv/models/builders.py`. MACs are those
of one image with every gate open and one branch per pixel in a "pag" pool, gates included
(`perfconv.flops.count`, column dense; 2 FLOPs for each MAC). Written by `tools/model_table.py`.
"""


class Variant(NamedTuple):
    """One row of the table."""

    row: str  # of which table of the deck
    builder: Callable[..., nn.Module]
    options: dict
    size: tuple[int, int] = NYUV2

    @property
    def call(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{self.builder.__name__}({options})"

    @property
    def needs_depth(self) -> bool:
        return "true_depth" in self.options.values()


VARIANTS = (
    Variant("T4, T5 baseline", builders.baseline_resnet50, {}),
    Variant("T4 MP@Res3", builders.multi_pool_resnet50, {"at": "res3"}),
    Variant("T4 MP@Res4", builders.multi_pool_resnet50, {"at": "res4"}),
    Variant("T4 MP@Res5, T5-T7 w-Avg.", builders.multi_pool_resnet50, {}),
    Variant("T4 MP@Res6", builders.multi_pool_resnet50, {"at": "res6"}),
    Variant("T5-T7 PAG", builders.multi_pool_resnet50, {"weighting": "pag"}),
    Variant("MultiScale (input)", builders.multi_scale_resnet50, {}),
    Variant("T8 PAG", builders.pag_resnet50, {}),
    Variant("T8 PAG, F3 dense", builders.pag_resnet50, {"perforate_f3": False}),
    Variant("T8 PAG, 16 gates", builders.pag_resnet50, {"gates_pool": True}),
    Variant("16 gates, no pool", builders.gated_resnet50, {}),
    Variant("T8 layer-skipping", builders.layer_skipping_resnet50, {}),
    *(
        Variant(f"T8 truncated, {density}", builders.truncated_resnet50, {"dropped": dropped})
        for density, dropped in builders.DROPPED.items()
    ),
    Variant("T6 depth, PAG", builders.pag_resnet50, {"tasks": ("log_depth",)}),
    Variant("T7 normals, PAG", builders.pag_resnet50, {"tasks": ("normals",)}),
    Variant("boundaries, PAG", builders.pag_resnet50, {"tasks": ("boundary",)}),
    Variant("PAG, ResNet-101", builders.pag_resnet101, {}, CITYSCAPES),
    Variant("T2 average", builders.depth_aware_resnet101, {"weighting": "average"}, CITYSCAPES),
    Variant(
        "T2 gtDepth tied", builders.depth_aware_resnet101,
        {"weighting": "true_depth", "tied": True}, CITYSCAPES,
    ),
    Variant(
        "T2 gtDepth untied", builders.depth_aware_resnet101, {"weighting": "true_depth"},
        CITYSCAPES,
    ),
    Variant("T2 predDepth untied", builders.depth_aware_resnet101, {}, CITYSCAPES),
    Variant("attention", builders.depth_aware_resnet50, {"weighting": "attention"}),
    Variant("T3 w/ gt-depth", builders.depth_aware_resnet50, {"weighting": "true_depth"}),
    Variant("T3 w/ pred-depth", builders.depth_aware_resnet50, {}),
    Variant("one launch, pred-depth", builders.depth_aware_resnet50, {"assignment": "hard"}),
    Variant(
        "T3 loop1 w/o depth", builders.recurrent_depth_resnet50,
        {"loops": 1, "loop_weighting": "none"},
    ),
    Variant(
        "T3 loop1 w/ gt-depth", builders.recurrent_depth_resnet50,
        {"loops": 1, "loop_weighting": "true_depth"},
    ),
    Variant("T3 loop1 w/ pred-depth", builders.recurrent_depth_resnet50, {"loops": 1}),
    Variant("T3 loop2", builders.recurrent_depth_resnet50, {}),
    Variant("T3 loop2, Cityscapes", builders.recurrent_depth_resnet101, {}, CITYSCAPES),
)  # fmt: skip


def measured(variant: Variant) -> tuple[int, int]:
    """Parameters, and MACs of one image."""
    with torch.device("meta"):
        model = variant.builder(**variant.options).eval()
        images = torch.empty(1, 3, *variant.size)
        depth = [torch.empty(1, 1, *variant.size)] if variant.needs_depth else []
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return parameters, count(model, images, *depth).dense_macs


def page() -> str:
    lines = [HEAD, "| row | builder | input | parameters | MACs |", "|---|---|---|---|---|"]
    for variant in VARIANTS:
        parameters, macs = measured(variant)
        size = " by ".join(map(str, variant.size))
        lines.append(f"| {variant.row} | `{variant.call}` | {size} | {parameters:,} | {macs:,} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    text = page()
    if not parser.parse_args(argv).check:
        PAGE.write_text(text)
        return 0
    if PAGE.read_text() == text:
        return 0
    print(f"{PAGE.name} is out of date. Run python tools/model_table.py.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
