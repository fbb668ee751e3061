"""GatedBlock: a residual block that computes its branch at a gate's active pixels only.

What every family of blocks shares; the families, and their equations, are in gated_blocks.py.
"""

import torch
from torch import Tensor, nn

from perfconv.nn.batch_norm import (
    activate,
    active_batch_norm,
    folded,
    freeze_statistics,
    has_statistics,
    normalized,
)
from perfconv.nn.block_layers import BlockLayers
from perfconv.nn.block_structure import BlockStructure, NotResidual, Stage, block_structure, refusal
from perfconv.nn.gate import BinaryGate, PixelGate
from perfconv.nn.hooks import as_leaf, has_hooks, is_tapped
from perfconv.nn.in_place import is_inference
from perfconv.nn.stage_conv import as_bool, convolve, geometry, pack_of
from perfconv.nn.whole_block import KeptStages, run_at_once, whole_block
from perfconv.ops.autograd import may_need_gradient
from perfconv.ops.conv_into import perforated_conv2d_into
from perfconv.ops.mask import ActivePixels, compact_mask

EXECUTIONS = ("auto", "dense", "sparse")
GATE_GRADS = ("dense", "active", "none")
BATCH_NORMS = ("frozen", "active")


class GatedBlock(BlockLayers):
    """What gated residual blocks share; use one of the families in ``gated_blocks``.

    The block takes over the layers of a plain one under the same names, so old state-dict keys
    stay and new ones begin with ``gate.``. The plain block and this one share their parameters.

    **Two executions with the same numbers.** "dense" computes every pixel and multiplies by the
    gate: the exact straight-through gradient of a gate needs F(Y) at inactive pixels too. "sparse"
    touches active pixels only: the layers before a 3x3 on its halo (``expand_mask``), the others
    on the mask, BatchNorm folded, one ``ActivePixels`` for the block; without gradients nothing is
    written between the layers but what the next one reads. "auto" is dense while
    training a gate with ``gate_grad="dense"``, and sparse otherwise: in evaluation, and in training
    with frozen gates, where it is exact for every parameter.

    Args:
        block: a plain residual block; see :mod:`perfconv.nn.block_structure`.
        gate: of the block's input, on its output grid; default a new, open :class:`PixelGate`.
            A gate whose parameters need no gradient passes none to the block's input either.
        execution: "auto", "dense" or "sparse".
        gate_grad: what the gate learns from. "dense": all pixels (sparse execution then computes
            the branch densely once more, without gradients). "active": the active pixels alone,
            which is biased but needs no dense pass. "none": only the density loss.
        batch_norm: "frozen", statistics of evaluation always, affine parameters trained; or
            "active", training statistics over the pixels that sparse execution computes, in both
            executions (the shortcut's own BatchNorm sees all pixels).

    **Squeeze-excite** pools the mixed map, the output of the convolution before it at active pixels
    and that convolution's input elsewhere. The layers up to that input then run densely.

    Hooks on the block run as ever; those on its inner layers only in dense execution. Stochastic
    depth is not applied: the gate is what skips the branch.
    """

    # Of a family: how many convolutions, and the activation after the sum.
    depths: tuple[int, ...] = ()
    sum_activation: str | None = "relu"
    perforate_f3 = True
    _kept_stages: KeptStages | None = None
    overwrites_shortcut = False  # what fuse(inplace=True) sets in projection blocks

    @classmethod
    def why_not(cls, structure: BlockStructure) -> str | None:
        """Why a block of this structure is not of this family; None if it is."""
        return refusal(structure, cls.depths, cls.sum_activation)

    def __init__(
        self,
        block: nn.Module,
        *,
        gate: BinaryGate | None = None,
        execution: str = "auto",
        gate_grad: str = "dense",
        batch_norm: str = "frozen",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for argument, value, allowed in (
            ("execution", execution, EXECUTIONS),
            ("gate_grad", gate_grad, GATE_GRADS),
            ("batch_norm", batch_norm, BATCH_NORMS),
        ):
            if value not in allowed:
                raise ValueError(
                    f"{name}: {argument} must be one of {', '.join(map(repr, allowed))}, got "
                    f"{value!r}. Choose one of these."
                )
        try:
            self.structure = block_structure(block)
            reason = self.why_not(self.structure)
            if reason is not None:
                raise NotResidual(reason)
        except NotResidual as error:
            raise ValueError(
                f"{name}: the block must be a plain residual one, got a {type(block).__name__}: "
                f"{error}. Leave it as it is."
            ) from error
        self.execution = execution
        self.gate_grad = gate_grad
        self.batch_norm = batch_norm
        for child_name, child in block.named_children():
            self.add_module(child_name, child)
        first = self._conv(self.stages[0])
        if gate is None:
            gate = PixelGate(
                first.in_channels,
                stride=self.stride,
                init_std=0.0,
                device=first.weight.device,
                dtype=first.weight.dtype,
            )
        self.gate = gate
        gate.pixel_macs = self._pixel_macs()
        self._plain = (block,)  # in a tuple, which registers nothing
        self.training = block.training
        gate.train(block.training)
        self._freeze()

    def to_plain(self) -> nn.Module:
        """The block this one was made from, with the layers this one has now."""
        (plain,) = self._plain
        for name, child in self.named_children():
            if name != "gate":
                setattr(plain, name, child)
        return plain.train(self.training)

    def forward(
        self, input: Tensor, drop_connect_rate: float | None = None, *, owns_input: bool = False
    ) -> Tensor:
        """The block at the gate's active pixels, the shortcut elsewhere.

        Args:
            input: (N, C_in, H, W). Identity blocks with a ReLU after the sum expect what a ReLU
                gave, as everywhere in such a network.
            drop_connect_rate: not used; EfficientNets of segmentation-models-pytorch pass one.
            owns_input: nobody reads ``input`` afterwards: an identity block may write its output
                into it (it does where no gradients are recorded).

        Raises:
            ValueError: the gate's mask is not on the block's output grid, or a gate in "soft" mode
                is trained with ``execution="sparse"``.
        """
        if isinstance(input, torch.fx.Proxy):
            return as_leaf(self, input)
        stages = None if self.training or self.execution == "dense" else whole_block(self, input)
        if stages is not None:
            return run_at_once(self, input, stages, owns_input)
        sizes = self._sizes(input)
        if not self.training and self.execution != "dense":
            active = self.gate.active_pixels(input)
            if active is not None:
                self._check(active.mask, sizes[-1])
                needed = self._masks(active, sizes)
                shortcut = self._shortcut(input)
                may_overwrite = self._may_overwrite(owns_input)
                return self._sparse(input, shortcut, active.mask, None, needed, may_overwrite)
        gate = self.gate(input)
        self._check(gate.mask, sizes[-1])
        learns = self.training and any(
            parameter.requires_grad for parameter in self.gate.parameters()
        )
        has_gradient = learns and self.gate_grad != "none" and gate.hard.requires_grad
        shortcut = self._shortcut(input)
        is_dense = self.execution == "dense" or (
            self.execution == "auto" and has_gradient and self.gate_grad == "dense"
        )
        if is_dense or self.gate.is_relaxed:
            weight = gate.soft if self.gate.is_relaxed else gate.hard
            if not has_gradient:
                weight = weight.detach()
            elif self.gate_grad == "active":
                weight = torch.where(gate.mask, weight, weight.detach())
            masks = self._masks(gate.mask, sizes) if self._has_active_statistics() else None
            return self._dense(input, shortcut, gate.mask, weight, masks)
        masks = self._masks(compact_mask(gate.mask), sizes)
        hard = gate.hard if has_gradient else None
        may_overwrite = self._may_overwrite(owns_input)
        return self._sparse(input, shortcut, gate.mask, hard, masks, may_overwrite)

    def is_watched(self) -> bool:
        # Sparse execution calls no other layer that would see the input or the output, but for the
        # first ones of a block with squeeze-excite.
        calls_layers = self.structure.squeeze is not None
        return has_hooks(self) or is_tapped(self if calls_layers else self.gate)

    def given_mask(self, input: Tensor) -> Tensor:
        """The gate's mask for ``input``, by whatever way it decides."""
        active = self.gate.active_pixels(input)
        mask = self.gate(input).mask if active is None else active.mask
        self._check(mask, self._sizes(input)[-1])
        return mask

    def _shortcut(self, input: Tensor) -> Tensor:
        projection = self.projection
        return input if projection is None else projection(input)

    # ---- the two executions ----------------------------------------------------------------------

    def _dense(
        self,
        input: Tensor,
        shortcut: Tensor,
        mask: Tensor,
        weight: Tensor,
        masks: list | None,
    ) -> Tensor:
        branch = self._dense_branch(input, weight, masks)
        summed = shortcut.to(branch.dtype) + weight.to(branch.dtype) * branch
        output = activate(summed, self.sum_activation)
        if self._is_projection() or self.gate.is_relaxed or self.sum_activation is None:
            return output
        return torch.where(mask, output, summed)

    def _dense_branch(self, input: Tensor, weight: Tensor, masks: list | None) -> Tensor:
        """The branch at every pixel, before the sum; ``weight`` mixes what is squeezed."""
        reduced, processed = self._dense_inner(input, masks)
        if self.structure.squeeze is not None:
            kept = self._thinned(reduced)
            weight = weight.to(kept.dtype)
            processed = self._scaled(processed, (1 - weight) * kept + weight * processed)
        return self._dense_stage(-1, processed, masks)

    def _dense_inner(self, input: Tensor, masks: list | None) -> tuple[Tensor, Tensor]:
        """Input and output of the stage before the last one, at every pixel."""
        before = features = input
        for index in range(len(self.stages) - 1):
            before, features = features, self._dense_stage(index, features, masks)
        return before, features

    def _dense_stage(self, index: int, features: Tensor, masks: list | None) -> Tensor:
        stage = self.stages[index]
        mask = None if masks is None or masks[index] is None else as_bool(masks[index])
        return normalized(self._norm(stage), self._conv(stage)(features), mask, stage.activation)

    def _sparse(
        self,
        input: Tensor,
        shortcut: Tensor,
        mask: Tensor,
        hard: Tensor | None,
        masks: list,
        may_overwrite: bool,
    ) -> Tensor:
        features = input
        for index, active in enumerate(masks[:-1]):
            base = self._thinned(features) if self._is_squeezed(index) else None
            features = self._perforated(self.stages[index], features, active, base)
            if base is not None:
                pooled = features
                if hard is not None:
                    with torch.no_grad():
                        is_dense = self.gate_grad == "dense"
                        gain = self._dense_inner(input, masks)[1] if is_dense else features
                        gain = gain - base
                    pooled = features + (hard - hard.detach()).to(gain.dtype) * gain
                features = self._scaled(features, pooled)
        output = self._last(self.stages[-1], features, masks[-1], shortcut, may_overwrite)
        if hard is None:
            return output
        with torch.no_grad():
            gain = self._gain(input, shortcut, output, mask, masks).to(output.dtype)
        return output + (hard - hard.detach()).to(gain.dtype) * gain

    def _gain(
        self, input: Tensor, shortcut: Tensor, output: Tensor, mask: Tensor, masks: list
    ) -> Tensor:
        """What the output gains by an open gate, 0 where that is not known."""
        slope = output > 0 if self.sum_activation == "relu" else torch.ones_like(mask)
        if self.gate_grad == "dense":
            if not self._is_projection():
                slope = slope | ~mask
            return self._dense_branch(input, mask, masks) * slope
        # At active pixels with slope 1, the output is shortcut + branch.
        return torch.where(mask & slope, output - shortcut, 0)

    def _perforated(
        self,
        stage: Stage,
        features: Tensor,
        mask: Tensor | ActivePixels | None,
        base: Tensor | None = None,
    ) -> Tensor:
        """Convolution, BatchNorm and activation at the pixels of ``mask``, None for all of them.

        The others hold ``base``; without it, nothing reads them.
        """
        conv, norm = self._conv(stage), self._norm(stage)
        if mask is None:
            return normalized(norm, conv(features), None, stage.activation)
        if has_statistics(norm):
            features = convolve(stage, conv, features, mask, conv.weight, conv.bias)
            features = normalized(norm, features, as_bool(mask), stage.activation)
            return features if base is None else torch.where(as_bool(mask), features, base)
        weight, bias = folded(conv, norm)
        fill = "passthrough"
        if base is None:
            # The gradient of the next layer's weight may be computed densely: it reads every pixel.
            fill = "zero" if self._is_recorded((features, weight, bias)) else "none"
        return convolve(
            stage,
            conv,
            features,
            mask,
            weight,
            bias,
            fill=fill,
            activation=stage.activation,
            base=base,
        )

    def _last(
        self,
        stage: Stage,
        features: Tensor,
        mask: Tensor | ActivePixels,
        shortcut: Tensor,
        may_overwrite: bool,
    ) -> Tensor:
        """The last stage at active pixels added to the shortcut, and the activation of the sum."""
        conv, norm = self._conv(stage), self._norm(stage)
        if has_statistics(norm):
            features = convolve(stage, conv, features, mask, conv.weight, conv.bias)
            shortcut = shortcut.to(features.dtype)
            summed = shortcut + active_batch_norm(norm, features, as_bool(mask))
            is_active = self._is_projection()
            skipped = activate(shortcut, self.sum_activation) if is_active else shortcut
            return torch.where(as_bool(mask), activate(summed, self.sum_activation), skipped)
        weight, bias = folded(conv, norm)
        if may_overwrite and shortcut.dtype == features.dtype == weight.dtype:
            return perforated_conv2d_into(
                shortcut,
                features,
                weight,
                mask,
                bias,
                **geometry(stage, conv),
                activation=self.sum_activation,
                adds_base=True,
                activate_base=self._is_projection(),
                packed_weight=pack_of(conv, weight),
            )
        return convolve(
            stage,
            conv,
            features,
            mask,
            weight,
            bias,
            fill="passthrough",
            activation=self.sum_activation,
            residual=shortcut,
            base=shortcut,
            activate_base=self._is_projection(),
        )

    def _is_recorded(self, tensors: tuple[Tensor | None, ...]) -> bool:
        """Whether a gradient may be asked for of these, or of any layer of the branch."""
        if not torch.is_grad_enabled():
            return False
        return may_need_gradient(tensors) or any(
            parameter.requires_grad
            for stage in self.stages
            for layer in (self._conv(stage), self._norm(stage))
            for parameter in layer.parameters()
        )

    def _may_overwrite(self, owns_input: bool) -> bool:
        """Whether the output may be written into the shortcut, in inference."""
        if self.training or not is_inference():
            return False
        projection = self.projection
        if projection is None:
            return owns_input
        return self.overwrites_shortcut and not is_tapped(projection)

    # ---- squeeze-excite --------------------------------------------------------------------------

    def _is_squeezed(self, index: int) -> bool:
        """Whether the output of this stage is what a squeeze-excite pools and scales."""
        return self.structure.squeeze is not None and index == len(self.stages) - 2

    def _thinned(self, reduced: Tensor) -> Tensor:
        """The input of the stage before the last one, on its output grid."""
        vertical, horizontal = self._conv(self.stages[-2]).stride
        return reduced[:, :, ::vertical, ::horizontal]

    def _scaled(self, values: Tensor, pooled: Tensor) -> Tensor:
        """``values`` times what the squeeze-excite makes of the mean of ``pooled``."""
        squeeze = self.structure.squeeze
        assert squeeze is not None
        mean = pooled.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        reduced = activate(self._layer(squeeze.reduce)(mean), squeeze.activation)
        return values * activate(self._layer(squeeze.expand)(reduced), squeeze.gate)

    # ---- state -----------------------------------------------------------------------------------

    def _check(self, mask: Tensor, size: tuple[int, int]) -> None:
        name = type(self).__name__
        if mask.dim() != 4 or mask.shape[1:] != (1, *size):
            raise ValueError(
                f"{name}: the gate's mask must be (N, 1, H_out, W_out) = (N, 1, {size[0]}, "
                f"{size[1]}) for this input, got {tuple(mask.shape)}. Give the gate the "
                f"stride of the block, {self.stride}."
            )
        if self.gate.is_relaxed and self.execution == "sparse":
            raise ValueError(
                f'{name}: a gate in forward_mode "soft" mixes every pixel while it is trained, got '
                'execution="sparse". Choose "auto" or "dense".'
            )

    def __getstate__(self) -> dict:
        state = dict(self.__dict__)
        state.pop("_kept_stages", None)  # they point into these very layers
        return state

    def train(self, mode: bool = True) -> "GatedBlock":
        """As ever, but frozen BatchNorms stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.batch_norm == "frozen":
            freeze_statistics(self)

    def extra_repr(self) -> str:
        defaults = {"execution": "auto", "gate_grad": "dense", "batch_norm": "frozen"}
        return ", ".join(
            f"{name}={getattr(self, name)!r}"
            for name, default in defaults.items()
            if getattr(self, name) != default
        )
