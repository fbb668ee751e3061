"""MACs of one operator call, image by image: what the mask needs, what ran, what dense would be."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import flop_registry

from perfconv import _ext
from perfconv.ops import flops


class CallMacs(NamedTuple):
    """One call of an operator; taps in the padding count, as in torch's own formulas."""

    active: Tensor  # (N,), float64, MACs that the mask needs
    executed: Tensor  # (N,), float64, MACs of the algorithm that ran
    dense: Tensor  # (N,), float64, MACs without a mask


def call_macs(
    operator: OpOverload, args: tuple, kwargs: dict, output: object, batch: int
) -> CallMacs | None:
    """The MACs of a call, or None for an operator that multiplies nothing.

    Args:
        operator, args, kwargs, output: as ``TorchDispatchMode`` sees them.
        batch: images of the model's input; an operator without masks is shared out evenly.

    Notes: reads masks (a host sync on CUDA).
    """
    name = operator.name()
    if name == "perfconv::perforated_conv2d":
        return _perforated(_named(operator, args, kwargs), output)
    if name == "perfconv::perforated_conv2d_into":
        return _perforated(_named(operator, args, kwargs), args[0])
    if name == "perfconv::multi_dilation_conv2d":
        return _multi_dilation(_named(operator, args, kwargs), output)
    formula = flop_registry.get(operator._overloadpacket)
    if formula is None:
        return None
    macs = formula(*args, **kwargs, out_val=output) / 2
    shares = torch.full((batch,), macs / max(batch, 1), dtype=torch.float64, device="cpu")
    return CallMacs(shares, shares, shares)


def touched_pixels(operator: OpOverload, args: tuple) -> int | None:
    """Pixels that making a list of active pixels, or the mask of a halo, reads; None if neither."""
    if operator.name() in ("perfconv::compact_mask", "perfconv::expand_mask"):
        return args[0].numel()
    if operator.name() == "perfconv::gate_mask":
        return args[0].numel() // max(1, args[0].size(1))
    return None


def copied_pixels(operator: OpOverload, args: tuple, kwargs: dict, output: object) -> int | None:
    """Inactive pixels that take a value from elsewhere; None where nothing is copied.

    Notes: reads masks (a host sync on CUDA).
    """
    if operator.name() != "perfconv::perforated_conv2d":
        return None
    call = _named(operator, args, kwargs)
    if call["fill"] not in ("passthrough", "nearest") or call["mask"].device.type == "meta":
        return None
    assert isinstance(output, Tensor)
    pixels = output.size(0) * output.size(2) * output.size(3)
    return pixels - flops.active_pixels(call["mask"], output.size(0))


def _named(operator: OpOverload, args: tuple, kwargs: dict) -> dict:
    """Arguments by name; trailing defaults do not arrive."""
    named = {
        argument.name: argument.default_value
        for argument in operator._schema.arguments
        if argument.has_default_value()
    }
    names = [argument.name for argument in operator._schema.arguments]
    return {**named, **dict(zip(names, args, strict=False)), **kwargs}


def _perforated(call: dict, output: object) -> CallMacs:
    assert isinstance(output, Tensor)
    images, weight, mask = call["input"], call["weight"], call["mask"]
    batch, area = output.size(0), output.size(2) * output.size(3)
    pixel_macs = weight.numel()
    dense = torch.full((batch,), float(area * pixel_macs), dtype=torch.float64, device="cpu")
    if mask.device.type == "meta" or isinstance(mask, FakeTensor):
        return CallMacs(dense, dense, dense)
    mask = mask.expand(batch, -1, -1, -1)
    active = mask.flatten(1).sum(1).to("cpu", torch.float64) * pixel_macs  # (N,)
    executed = dense if _is_dense(call, images, weight, output, mask) else active
    return CallMacs(active, executed, dense)


def _multi_dilation(call: dict, output: object) -> CallMacs:
    """One convolution wherever a pixel chose one; dense is one convolution at every pixel."""
    assert isinstance(output, Tensor)
    choice, pixel_macs = call["choice"], call["weight"].shape[-4:].numel()
    batch, area = output.size(0), output.size(2) * output.size(3)
    dense = torch.full((batch,), float(area * pixel_macs), dtype=torch.float64, device="cpu")
    if choice.device.type == "meta" or isinstance(choice, FakeTensor):
        return CallMacs(dense, dense, dense)
    pixels = [flops.convolved_pixels(one, call["dilations"]) for one in choice]
    active = torch.tensor(pixels, dtype=torch.float64) * pixel_macs  # (N,)
    return CallMacs(active, active, dense)


def _is_dense(call: dict, images: Tensor, weight: Tensor, output: Tensor, mask: Tensor) -> bool:
    """Whether the dense convolution ran: by name, or chosen on the CPU above break-even."""
    if call["algorithm"] != "auto" or images.device.type != "cpu":
        return call["algorithm"] == "dense"
    dtype = str(images.dtype).removeprefix("torch.")
    verdicts = _ext._C.explain_cpu(
        list(images.shape), list(weight.shape), list(output.shape), call["groups"], dtype,
        int(mask.sum()), "auto",
    )  # fmt: skip
    return verdicts[0][0] == "dense"
