"""MACs of one operator call, image by image: what the mask needs, what ran, what dense would be."""

from typing import Any, NamedTuple

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


BLOCKS = ("perfconv::gated_block", "perfconv::gated_block_into")


def call_macs(
    operator: OpOverload, args: tuple, kwargs: dict, output: object, batch: int
) -> list[CallMacs]:
    """The MACs of a call, or of each stage of a block; empty if it multiplies nothing.

    Args:
        operator, args, kwargs, output: as ``TorchDispatchMode`` sees them.
        batch: images of the model's input; an operator without masks is shared out evenly.

    Notes: reads masks (a host sync on CUDA).
    """
    name = operator.name()
    if name == "perfconv::perforated_conv2d":
        return [_perforated(_named(operator, args, kwargs), output)]
    if name == "perfconv::perforated_conv2d_into":
        return [_perforated(_named(operator, args, kwargs), args[0])]
    if name in BLOCKS:
        return _stages(_block(operator, args, kwargs, output))
    if name == "perfconv::multi_dilation_conv2d":
        return [_multi_dilation(_named(operator, args, kwargs), output)]
    formula = flop_registry.get(operator._overloadpacket)
    if formula is None:
        return []
    macs = formula(*args, **kwargs, out_val=output) / 2
    shares = torch.full((batch,), macs / max(batch, 1), dtype=torch.float64, device="cpu")
    return [CallMacs(shares, shares, shares)]


def touched_pixels(operator: OpOverload, args: tuple, output: object) -> int | None:
    """Pixels that making a list of active pixels, or the mask of a halo, reads; None if neither."""
    if operator.name() in BLOCKS:  # the list of the mask, and the halo of each larger kernel
        call = _block(operator, args, {}, output)
        kernels = [weight.shape[2:].numel() for weight in call["weights"][1:]]
        return call["mask"].numel() * (1 + sum(kernel > 1 for kernel in kernels))
    if operator.name() in ("perfconv::compact_mask", "perfconv::expand_mask"):
        return args[0].numel()
    if operator.name() == "perfconv::gate_mask":
        return args[0].numel() // max(1, args[0].size(1))
    return None


def copied_pixels(operator: OpOverload, args: tuple, kwargs: dict, output: object) -> int | None:
    """Inactive pixels that take a value from elsewhere; None where nothing is copied.

    Notes: reads masks (a host sync on CUDA).
    """
    if operator.name() == "perfconv::gated_block":
        call = _block(operator, args, kwargs, output)
        call["fill"], output = "passthrough", call["output"]
    elif operator.name() == "perfconv::perforated_conv2d":
        call = _named(operator, args, kwargs)
    else:
        return None
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


def _block(operator: OpOverload, args: tuple, kwargs: dict, output: Any) -> dict:
    """The arguments of a gated block; its mask, its images and its output whatever the form."""
    call = _named(operator, args, kwargs)
    is_into = "base" in call
    decided = output if is_into else output[1]
    if is_into and call["input"] is None:
        call["input"] = call["base"]
    call["output"] = call["base"] if is_into else output[0]
    call["mask"] = decided if call["mask"] is None else call["mask"]
    return call


def _stages(call: dict) -> list[CallMacs]:
    weights = call["weights"]
    numbers = (call[name] for name in ("stride", "padding", "dilation"))
    masks = flops.block_stage_masks(call["input"], call["mask"], weights, *numbers)
    found = []
    shape = call["input"].shape
    for weight, mask, groups in zip(weights, masks, call["groups"], strict=True):
        stage = {"input": shape, "weight": weight, "mask": mask, "groups": groups}
        stage |= {"algorithm": "auto", "dtype": weight.dtype, "device": weight.device}
        shape = torch.Size((shape[0], weight.size(0), *mask.shape[2:]))
        found.append(_stage(stage, shape))
    return found


def _perforated(call: dict, output: object) -> CallMacs:
    assert isinstance(output, Tensor)
    images = call["input"]
    call = {**call, "input": images.shape, "dtype": images.dtype, "device": images.device}
    return _stage(call, output.shape)


def _stage(call: dict, output: torch.Size) -> CallMacs:
    """Of a convolution; its input by shape, dtype and device, its output by shape."""
    weight, mask = call["weight"], call["mask"]
    batch, area = output[0], output[2] * output[3]
    pixel_macs = weight.numel()
    dense = torch.full((batch,), float(area * pixel_macs), dtype=torch.float64, device="cpu")
    if mask.device.type == "meta" or isinstance(mask, FakeTensor):
        return CallMacs(dense, dense, dense)
    mask = mask.expand(batch, -1, -1, -1)
    active = mask.flatten(1).sum(1).to("cpu", torch.float64) * pixel_macs  # (N,)
    executed = dense if _is_dense(call, output, mask) else active
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


def _is_dense(call: dict, output: torch.Size, mask: Tensor) -> bool:
    """Whether the dense convolution ran: by name, or chosen on the CPU above break-even."""
    if call["algorithm"] != "auto" or call["device"].type != "cpu":
        return call["algorithm"] == "dense"
    dtype = str(call["dtype"]).removeprefix("torch.")
    verdicts = _ext._C.explain_cpu(
        list(call["input"]), list(call["weight"].shape), list(output), call["groups"], dtype,
        int(mask.sum()), "auto",
    )  # fmt: skip
    return verdicts[0][0] == "dense"
