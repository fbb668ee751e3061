"""Parallel 3x3 convolutions that differ in their dilation: the branches of the pooling modules."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perfconv.nn.batch_norm import folded, freeze_statistics, is_foldable, normalized
from perfconv.nn.conv import version
from perfconv.ops.multi_dilation import multi_dilation_conv2d
from perfconv.ops.pack import pack_weight

# What a pixel that copies the input chooses among the convolutions: under the fill "passthrough"
# inactive pixels and those that chose dilation 0 are the same.
COPY = INACTIVE = -1


class Branch(nn.Module):
    """The parameters of a convolution and its BatchNorm; the dilation belongs to the caller."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")


class DilationBranches(nn.Module):
    """B_k = ReLU(BN_k(conv_k(input, dilation d_k))) for each dilation; d = 0 is the input itself.

    Args:
        channels: of input and output.
        dilations: all different, 0 or more.
        tied: one kernel and one BatchNorm for all dilations.
        kernel_size: odd.

    Parameters are named ``dilation{d}.conv.weight`` and so on, or ``tied.conv.weight``.
    """

    def __init__(
        self, channels: int, dilations: Sequence[int], *, tied: bool = False, kernel_size: int = 3
    ) -> None:
        super().__init__()
        check_dilations(type(self).__name__, dilations)
        self.channels = channels
        self.dilations = tuple(dilations)
        self.is_tied = tied
        names = ["tied"] if tied else [f"dilation{step}" for step in self.steps]
        for name in names:
            self.add_module(name, Branch(channels, kernel_size))

    @property
    def steps(self) -> tuple[int, ...]:
        """The dilations that convolve."""
        return tuple(step for step in self.dilations if step)

    @torch.no_grad()
    def copy_from(self, conv: nn.Conv2d, norm: nn.Module | None = None) -> None:
        """Starts every branch at the weights of a pretrained convolution and its BatchNorm.

        Raises:
            ValueError: ``conv`` has another shape, a bias, or groups.
        """
        for branch in self._branches():
            if conv.weight.shape != branch.conv.weight.shape or conv.bias is not None:
                raise ValueError(
                    "copy_from: the convolution must have a weight of "
                    f"{tuple(branch.conv.weight.shape)} and no bias, got "
                    f"{tuple(conv.weight.shape)}{'' if conv.bias is None else ' and one'}. "
                    "Choose one in front of a BatchNorm."
                )
            branch.conv.weight.copy_(conv.weight)
            if norm is not None:
                branch.norm.load_state_dict(norm.state_dict())
                if isinstance(norm, nn.BatchNorm2d) and isinstance(branch.norm, nn.BatchNorm2d):
                    branch.norm.eps, branch.norm.momentum = norm.eps, norm.momentum
        self.to(conv.weight.device, conv.weight.dtype)

    def has_fixed_statistics(self) -> bool:
        """Whether BatchNorm folds into the convolutions now."""
        return all(is_foldable(b.norm) and not b.norm.training for b in self._branches())

    def maps(self, input: Tensor, choice: Tensor | None = None) -> list[Tensor]:
        """Every B_k densely, (N, C, H, W) each.

        Args:
            choice: (N, 1, H, W), the branch of each pixel: training statistics are over those.
        """
        found = []
        for index, step in enumerate(self.dilations):
            if step == 0:
                found.append(input)
                continue
            branch = self._branch(step)
            features = _dilated(input, branch.conv.weight, None, step)
            mask = None if choice is None else choice == index
            found.append(normalized(branch.norm, features, mask, "relu"))
        return found

    def chosen(self, input: Tensor, choice: Tensor) -> Tensor:
        """B_k at the pixels that chose k, in one launch; BatchNorm must fold."""
        return _launch(self, input, choice, *self._folded(), None)

    def fused(self) -> "FusedBranches":
        """For inference: BatchNorm folded, weights in one tensor."""
        weight, bias = self._folded()
        return FusedBranches(weight.detach(), bias.detach(), self.dilations)

    def _folded(self) -> tuple[Tensor, Tensor]:
        """One weight and bias for all, or stacked, (K, C, C, k, k) and (K, C)."""
        pairs = [folded(branch.conv, branch.norm) for branch in self._branches()]
        weights = [weight for weight, _ in pairs]
        biases = [weight.new_zeros(self.channels) if b is None else b for weight, b in pairs]
        if self.is_tied:
            return weights[0], biases[0]
        return torch.stack(weights), torch.stack(biases)

    def _branches(self) -> list[Branch]:
        return [child for child in self.children() if isinstance(child, Branch)]

    def _branch(self, step: int) -> Branch:
        found = self.get_submodule("tied" if self.is_tied else f"dilation{step}")
        assert isinstance(found, Branch)
        return found

    def extra_repr(self) -> str:
        return f"{self.channels}, dilations={self.dilations}" + (", tied" if self.is_tied else "")


class FusedBranches(nn.Module):
    """What ``DilationBranches.fused`` returns: the same maps from folded weights.

    Args:
        weight: (C, C, k, k) for all dilations, or (K, C, C, k, k) for those above 0.
        bias: (C,) or (K, C).
        dilations: as for :class:`DilationBranches`.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dilations: Sequence[int]) -> None:
        super().__init__()
        self.dilations = tuple(dilations)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self._packed: Tensor | None = None
        self._packed_version: int | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        """The dilations that convolve."""
        return tuple(step for step in self.dilations if step)

    def has_fixed_statistics(self) -> bool:
        return True

    def keep_pack(self) -> None:
        """Packs the weight for all later calls; ``perfconv.prepack`` calls this."""
        self.weight.requires_grad_(False)
        self._packed_version = version(self.weight)
        self._packed = pack_weight(self.weight)

    def maps(self, input: Tensor, choice: Tensor | None = None) -> list[Tensor]:
        """As ``DilationBranches.maps``."""
        found, index = [], 0
        for step in self.dilations:
            if step == 0:
                found.append(input)
                continue
            is_tied = self.weight.dim() == 4
            weight = self.weight if is_tied else self.weight[index]
            bias = self.bias if is_tied else self.bias[index]
            found.append(F.relu(_dilated(input, weight, bias, step)))
            index += 1
        return found

    def chosen(self, input: Tensor, choice: Tensor) -> Tensor:
        """As ``DilationBranches.chosen``."""
        packed = self._packed
        if self.weight.requires_grad or (
            not torch.compiler.is_compiling() and version(self.weight) != self._packed_version
        ):
            packed = None
        return _launch(self, input, choice, self.weight, self.bias, packed)

    def train(self, mode: bool = True) -> "FusedBranches":
        if mode:
            self._packed = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self._packed = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_packed": None}  # holds for this machine only

    def extra_repr(self) -> str:
        return f"{self.weight.size(-3)}, dilations={self.dilations}"


class BranchPool(nn.Module):
    """What pools over dilations share: branches, which ``fuse`` folds, and their BatchNorms.

    Args:
        branches: of the pool.
        batch_norm: "frozen", statistics of evaluation always; or "active".
    """

    def __init__(self, branches: DilationBranches, batch_norm: str) -> None:
        super().__init__()
        if batch_norm not in ("frozen", "active"):
            raise ValueError(
                f"{type(self).__name__}: batch_norm must be one of 'frozen', 'active', got "
                f"{batch_norm!r}. Choose one of these."
            )
        self.batch_norm = batch_norm
        self.branches: DilationBranches | FusedBranches = branches
        self._freeze()

    @property
    def dilations(self) -> tuple[int, ...]:
        return self.branches.dilations

    def fuse_branches(self) -> None:
        """Folds BatchNorm into the branches, for inference; ``perfconv.fuse`` calls this."""
        if isinstance(self.branches, DilationBranches):
            self.branches = self.branches.fused().train(self.training)

    def train(self, mode: bool = True) -> "BranchPool":
        """As ever, but frozen BatchNorms of the branches stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.batch_norm == "frozen":
            freeze_statistics(self.branches)


def check_branches(module: str, argument: str, given: int, branches: int) -> None:
    if given != branches:
        raise ValueError(
            f"{module}: {argument} must have as many outputs as there are dilations, {branches}, "
            f"got {given}. Make one for these dilations."
        )


def check_dilations(module: str, dilations: Sequence[int]) -> None:
    is_valid = all(isinstance(step, int) and step >= 0 for step in dilations)
    if not is_valid or len(set(dilations)) != len(dilations) or not any(dilations):
        raise ValueError(
            f"{module}: dilations must be different whole numbers, 0 (a copy) or more, one of them "
            f"above 0, got {tuple(dilations)!r}. Name each branch once."
        )


def _dilated(input: Tensor, weight: Tensor, bias: Tensor | None, step: int) -> Tensor:
    return F.conv2d(input, weight, bias, padding=step * (weight.size(-1) // 2), dilation=step)


def _launch(
    branches: DilationBranches | FusedBranches,
    input: Tensor,
    choice: Tensor,
    weight: Tensor,
    bias: Tensor,
    packed: Tensor | None,
) -> Tensor:
    """One multi-dilation convolution. Copies are its inactive pixels, which take the input."""
    if 0 in branches.dilations:
        copied = branches.dilations.index(0)
        among_convolutions = choice - (choice > copied).to(choice.dtype)  # -1 stays
        choice = torch.where(choice == copied, COPY, among_convolutions)
    return multi_dilation_conv2d(
        input,
        weight,
        choice,
        bias,
        dilations=branches.steps,
        activation="relu",
        fill="passthrough",
        base=input,
        packed_weight=packed,
    )
