"""Every named network of docs/models.md on a trunk narrow enough for a training step."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

import perfconv
from perfconv.models.resnet import Bottleneck, ResNet

TOOL = Path(__file__).resolve().parents[1] / "tools" / "model_table.py"


def table():
    """The tool that writes the page."""
    spec = importlib.util.spec_from_file_location("model_table", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


VARIANTS = table().VARIANTS


def narrow_trunk(res6_channels: int | None = None, depths: tuple = (1, 2, 2, 2)) -> ResNet:
    """Of bottlenecks."""
    torch.manual_seed(0)
    return ResNet(
        Bottleneck, depths, output_stride=8, width=8, res6_channels=res6_channels, res6_kernel=1,
        frozen_norms=("",),
    )  # fmt: skip


def narrow_network(variant, classes: int = 5, *, is_shallow: bool = False) -> nn.Module:
    """What the builder makes of a narrow trunk.

    Args:
        is_shallow: only the stages that need a second block have one.
    """
    name, options = variant.builder.__name__, dict(variant.options)
    needs_res6 = "depth" in name or options.get("at") == "res6"
    depths = (1, 2, 2, 2)
    if "dropped" in options:
        options["dropped"] = ("res3_2", "res5_2")
    elif is_shallow:
        at = options.get("at", "res5")
        depths = tuple(2 if f"res{stage}" == at else 1 for stage in range(2, 6))
    return variant.builder(classes, trunk=narrow_trunk(16 if needs_res6 else None, depths),
                           **options)  # fmt: skip


def depth_for(variant, images: Tensor) -> tuple[Tensor, ...]:
    """Metres, for the variants that are given true depth."""
    generator = torch.Generator().manual_seed(1)
    shape = (images.size(0), 1, *images.shape[2:])
    return (6 * torch.rand(shape, generator=generator),) if variant.needs_depth else ()


def named(call: str):
    """The variant that is called so in docs/models.md."""
    return next(variant for variant in VARIANTS if variant.call == call)


def network(variant) -> nn.Module:
    """A narrow one for inference, gates closed at some pixels."""
    model = narrow_network(variant, is_shallow=True)
    generator = torch.Generator().manual_seed(0)
    for gate in perfconv.gates(model).values():
        if isinstance(gate, perfconv.nn.PixelGate):
            nn.init.normal_(gate.conv.weight, std=0.5, generator=generator)
            nn.init.zeros_(gate.conv.bias)
    return model.eval().requires_grad_(False)


def inputs(variant, seed: int = 1) -> tuple[Tensor, ...]:
    """An image of 33x40, and true depth if the variant is given it."""
    images = torch.rand(1, 3, 33, 40, generator=torch.Generator().manual_seed(seed))
    return images, *depth_for(variant, images)
