"""What timing a gated model needs: gates that open what they are told to, dense models folded."""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import perfconv
from perfconv.nn import PixelGate
from perfconv.ops import ActivePixels


class GivenGate(PixelGate):
    """Reads its input and decides as ever, then hands out the mask it was given.

    Not ``force_gates``, which saves the gate: its time belongs to what is measured.
    """

    given: ActivePixels | None = None

    def give(self, mask: Tensor) -> None:
        self.given = perfconv.compact_mask(mask)

    def _has_fused_decision(self) -> bool:
        # A counter of FLOPs looks on from a dispatch mode, where gates decide by their logits.
        return self.given is not None or super()._has_fused_decision()

    def _fused_decision(self, input: Tensor) -> ActivePixels:
        if self.given is None:
            return super()._fused_decision(input)
        if super()._has_fused_decision():
            super()._fused_decision(input)
        return self.given


def reading_gate(channels: int) -> PixelGate:
    """A gate that opens where the first channel of its input is 1, and not where it is 0.

    It costs what any other costs, and its block runs as with any other.
    """
    gate = PixelGate(channels).requires_grad_(False)
    nn.init.zeros_(gate.conv.weight)
    assert gate.conv.bias is not None
    gate.conv.weight[1, 0] = 1
    gate.conv.bias.copy_(torch.tensor([0.5, 0.0]))
    return gate


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Convolution and BatchNorm by torch's own means, in place."""
    pairs = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1")]
    for module in model.modules():
        for conv, norm in pairs:
            layers = getattr(module, conv, None), getattr(module, norm, None)
            if isinstance(layers[1], nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(*layers))
                setattr(module, norm, nn.Identity())
    return model


def read_bandwidth(mebibytes: int = 256, repeats: int = 7) -> float:
    """Bytes a second at which this machine reads memory, with torch's threads."""
    from perfconv._bench.timing import median_ms

    values = torch.ones(mebibytes << 18)
    return values.nbytes / (1e-3 * median_ms(values.sum, repeats))
