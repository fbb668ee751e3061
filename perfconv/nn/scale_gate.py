"""ScaleGate: the choice of one of K branches, pixel by pixel."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perfconv.nn.gate import NoisyGate


class ScaleChoice(NamedTuple):
    """What a gate over K branches chose for one batch."""

    logits: Tensor  # (N, K, H, W), without noise
    soft: Tensor  # (N, K, H, W), probabilities; while training the relaxed noisy sample
    hard: Tensor  # (N, K, H, W), one-hot, with the gradient of soft
    choice: Tensor  # (N, 1, H, W), int64, the branch of each pixel


class ScaleGate(NoisyGate):
    """One of K branches for each pixel: 1x1 + BN + ReLU, 3x3 + BN + ReLU, 1x1 to K logits.

    Training: Gumbel noise on the logits, soft the softmax at ``temperature``, hard the one-hot
    argmax with the gradient of soft. Evaluation: no noise, ties to the first branch.

    Args:
        in_channels: of the input of the branches.
        branches: K.
        widths: of the two hidden layers.
        temperature, forward_mode, generator: see :class:`perfconv.nn.BinaryGate`.

    Source: Kong and Fowlkes 2019, released code: weights N(0, 2 / C_out) whatever the kernel size.
    Example:
        >>> gate = ScaleGate(8, 3).eval()(torch.randn(2, 8, 5, 5))
        >>> gate.hard.sum(1).unique().tolist(), gate.choice.shape
        ([1.0], torch.Size([2, 1, 5, 5]))
    """

    conv_norm_pairs = (("conv1", "bn1"), ("conv2", "bn2"))  # for fuse

    def __init__(
        self,
        in_channels: int,
        branches: int,
        *,
        widths: tuple[int, int] = (128, 32),
        temperature: float = 1.0,
        forward_mode: str = "straight_through",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(temperature=temperature, forward_mode=forward_mode, generator=generator)
        self.conv1 = nn.Conv2d(in_channels, widths[0], 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.conv2 = nn.Conv2d(widths[0], widths[1], 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(widths[1])
        self.classifier = nn.Conv2d(widths[1], branches, 1)
        for conv in (self.conv1, self.conv2, self.classifier):
            nn.init.normal_(conv.weight, std=(2 / conv.out_channels) ** 0.5)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)

    @property
    def is_relaxed(self) -> bool:
        """Whether branches are weighted by soft rather than by hard."""
        return self.training and self.forward_mode == "soft"

    def logits(self, input: Tensor) -> Tensor:
        """(N, K, H, W) for an input (N, C_in, H, W)."""
        features = F.relu(self.bn1(self.conv1(input)))
        features = F.relu(self.bn2(self.conv2(features)))
        return self.classifier(features)

    def forward(self, input: Tensor) -> ScaleChoice:
        """The branch of each pixel of ``input`` (N, C_in, H, W), told to every recorder."""
        logits = self.logits(input)
        values = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        if self.training:
            values = self.noisy(values)
        soft = (values / self.temperature if self.training else values).softmax(1)
        index = values.argmax(1, keepdim=True)  # (N, 1, H, W)
        one_hot = torch.zeros_like(soft).scatter(1, index, 1.0)
        hard = one_hot + (soft - soft.detach())
        choice = ScaleChoice(logits, soft.to(logits.dtype), hard.to(logits.dtype), index)
        for recorder, name in self._recorders:
            recorder.add_choice(name, choice)
        return choice
