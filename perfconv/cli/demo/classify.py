"""EfficientNet-lite0, converted: class and score with open gates and with ones learned here."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perfconv import viz
from perfconv.cli.demo.pictures import Picture
from perfconv.convert import convert
from perfconv.distill import distill_gates
from perfconv.flops import count
from perfconv.models.efficientnet_lite import square_input
from perfconv.models.efficientnet_lite_weights import EGYPTIAN_CAT, efficientnet_lite0_imagenet
from perfconv.nn import force_gates, gates

DENSITY = 0.7
STEPS, QUICK_STEPS = 60, 5


@dataclass(frozen=True)
class Classification:
    """What the converted classifier says of the photo."""

    sentence: str
    pictures: Sequence[Picture]


def classify(photo: Tensor, *, steps: int = STEPS) -> Classification:
    """Converts the classifier, learns its gates on mirrored and shifted copies of the photo.

    Args:
        photo: (1, 3, H, W), red, green, blue in [0, 1].
        steps: of learning.

    Raises:
        RuntimeError: the weights are not installed; the message has the pip line.
        ValueError: their file is damaged.
    """
    gated = convert(efficientnet_lite0_imagenet())
    image = square_input(photo.contiguous())
    force_gates(gated, 1.0)
    before = _best(gated, image)
    force_gates(gated, None)
    begin = time.perf_counter()
    distill_gates(
        gated, [image, image.flip(3)], target_density=DENSITY, steps=steps, learning_rate=0.01,
        density_weight=10.0, augment=_shifted, generator=torch.Generator().manual_seed(0),
        progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    gated.eval()
    after = _best(gated, image)
    macs = count(gated, image)
    found = viz.decisions(gated, image)
    shown = (image + 1) / 2
    blocks = len(gates(gated))
    sentence = (
        f"{blocks} of its blocks got gates. All open: {_name(before)}. Gates learned in "
        f"{seconds:.0f} s, from the network's own outputs on this photo: {_name(after)}, with "
        f"{macs.active_macs / macs.dense_macs:.0%} of the MACs."
    )
    ponder = Picture(
        "classifier-ponder-map", "Ponder map", "gated blocks that computed each pixel",
        viz.ponder_figure(found, image=shown),
    )  # fmt: skip
    masks = Picture(
        "classifier-gates", "Every gate", "yellow: computed, with its share",
        viz.gate_figure(found),
    )  # fmt: skip
    return Classification(sentence, (ponder, masks))


@torch.no_grad()
def _best(model: torch.nn.Module, image: Tensor) -> tuple[int, float]:
    score, index = model(image).softmax(1)[0].max(0)
    return int(index), float(score)


def _name(best: tuple[int, float]) -> str:
    name = " (Egyptian cat)" if best[0] == EGYPTIAN_CAT else ""
    return f"class {best[0]}{name}, score {best[1]:.2f}"


def _shifted(image: Tensor, generator: torch.Generator) -> Tensor:
    rows, columns = (int(torch.randint(-8, 9, (), generator=generator)) for _ in range(2))
    return image.roll((rows, columns), (2, 3))
