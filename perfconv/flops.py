"""count: MACs and FLOPs of a model for given inputs, by layer and by image.

A MAC is one multiply-add of a convolution or matrix product; FLOP = 2 x MAC. BatchNorm,
activations, additions and pooling are not counted. Three counts stand beside each other: what the
masks need, what the algorithms that ran computed, and the same layers without masks.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from perfconv.nn.dilation_pool import MultiDilationPool
from perfconv.nn.gate import BinaryGate
from perfconv.nn.gate_record import GateRecord, record_gates
from perfconv.nn.gated_block import GatedBlock
from perfconv.nn.scale_gate import ScaleGate
from perfconv.ops.flop_tools import fvcore_handles, ptflops_hooks
from perfconv.ops.macs import CallMacs, call_macs, copied_pixels, touched_pixels

__all__ = ["FlopCount", "Row", "count", "count_set", "fvcore_handles", "ptflops_hooks"]

LAYER, GATE, HALO, COMPACTION, COPY = "layer", "gate", "halo", "compaction", "copy"


@dataclass
class Row:
    """One layer, or one kind of work beside the layers; (N,) tensors are per image, float64."""

    name: str
    # "layer", "gate", "halo" (pixels of a layer beyond the mask itself), "compaction", "copy"
    kind: str
    active: Tensor  # (N,), MACs that the masks need
    executed: Tensor  # (N,), MACs of the algorithms that ran
    dense: Tensor  # (N,), MACs without masks
    pixels: int = 0  # of masks read for compaction, or copied by a fill; neither multiplies


@dataclass
class FlopCount:
    """The rows of a model, and their totals over the batch. ``print`` shows a table."""

    rows: list[Row] = field(default_factory=list)

    @property
    def active_macs(self) -> int:
        """What the masks need, gates and halo included."""
        return self._total("active")

    @property
    def executed_macs(self) -> int:
        """What the algorithms that ran computed, gates and halo included.

        What a kernel computes and drops is not counted: tiles on a GPU, rows of depthwise layers.
        """
        return self._total("executed")

    @property
    def dense_macs(self) -> int:
        """The same without masks; gates included."""
        return self._total("dense")

    @property
    def active_flops(self) -> int:
        return 2 * self.active_macs

    @property
    def executed_flops(self) -> int:
        return 2 * self.executed_macs

    @property
    def dense_flops(self) -> int:
        return 2 * self.dense_macs

    @property
    def flops_ratio(self) -> float:
        """Active over dense, gates left out: the ratio that speed is compared with."""
        layers = [row for row in self.rows if row.kind in (LAYER, HALO)]
        dense = sum(float(row.dense.sum()) for row in layers)
        return sum(float(row.active.sum()) for row in layers) / dense if dense else 1.0

    def image_macs(self, column: str = "active") -> Tensor:
        """(N,), float64: the MACs of each image; column "active", "executed" or "dense"."""
        return torch.stack([getattr(row, column) for row in self.rows]).sum(0)

    def _total(self, column: str) -> int:
        return round(sum(float(getattr(row, column).sum()) for row in self.rows))

    def __str__(self) -> str:
        lines = [f"{'layer':<40}{'kind':<12}{'active':>16}{'executed':>16}{'dense':>16}  MACs"]
        for row in self.rows:
            counts = "".join(
                f"{round(float(value.sum())):>16,}"
                for value in (row.active, row.executed, row.dense)
            )
            what = "copied" if row.kind == COPY else "mask"
            pixels = f"  {row.pixels:,} {what} pixels" if row.pixels else ""
            lines.append(f"{row.name:<40}{row.kind:<12}{counts}{pixels}")
        totals = f"{self.active_macs:>16,}{self.executed_macs:>16,}{self.dense_macs:>16,}"
        lines.append(f"{'total':<52}{totals}")
        images = self.image_macs()
        lines.append(
            f"active MACs per image: mean {images.mean():,.0f}, standard deviation "
            f"{images.std(correction=0):,.0f}, {images.min():,.0f} to {images.max():,.0f} "
            f"({len(images)} images); FLOPs = 2 x MACs"
        )
        return "\n".join(lines)


def count(model: nn.Module, *inputs: Any) -> FlopCount:
    """Runs ``model`` on ``inputs`` without gradients and counts MACs, by layer and image.

    The masks are those of this run, so the count is that of these images. Work that belongs to no
    layer of a dense network has rows of its own: gates; the halo, pixels that a layer computes for
    the next one beyond the mask; compaction, which reads masks, and copies of what inactive pixels
    hold, which multiply nothing.

    Args:
        model: any module; not compiled, whose operators cannot be seen. Meta tensors work, with
            every mask counted as open.
        inputs: of its ``forward``; the first tensor's first dimension is the batch.

    Returns:
        A :class:`FlopCount`.

    Raises:
        TypeError: ``model`` was compiled or scripted.

    Notes: reads masks (a host sync on CUDA). In training mode BatchNorm statistics move, as in
        every call.
    Example:
        >>> layer = nn.Conv2d(3, 8, 3, padding=1)
        >>> count(layer, torch.rand(2, 3, 10, 10)).dense_macs  # 2 images, 100 pixels, 8 * 3 * 9
        43200
    """
    for name, module in model.named_modules():
        if isinstance(module, torch._dynamo.OptimizedModule | torch.jit.ScriptModule):
            raise TypeError(
                f"count: the model must not be compiled or scripted, got {name or 'all of it'}. "
                "Count the model it was made from."
            )
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    batch = tensors[0].size(0) if tensors and tensors[0].dim() else 1
    counter = _Counter(batch)
    with torch.no_grad(), record_gates(model) as record, _followed(model, counter, record), counter:
        model(*inputs)
    return FlopCount(list(counter.rows.values()))


def count_set(model: nn.Module, images: Iterable[Tensor]) -> FlopCount:
    """The count of every image of a set, whatever their sizes, for the mean and the spread.

    Args:
        model: as for :func:`count`.
        images: (N, C, H, W) each; taken one after another.

    Returns:
        A :class:`FlopCount` whose (N,) tensors have all images in a row.

    Raises:
        TypeError: as :func:`count`.
        ValueError: ``images`` is empty.

    Example:
        >>> layer = nn.Conv2d(3, 8, 1)
        >>> count_set(layer, [torch.rand(1, 3, 10, 10), torch.rand(2, 3, 5, 5)]).image_macs()
        tensor([2400.,  600.,  600.], dtype=torch.float64)
    """
    rows: dict[tuple[str, str], Row] = {}
    seen = 0
    for batch in images:
        counted = count(model, batch)
        size = len(counted.rows[0].active) if counted.rows else batch.size(0)
        for row in counted.rows:
            merged = rows.setdefault((row.name, row.kind), _empty_row(row.name, row.kind, seen))
            merged.pixels += row.pixels
            for column in ("active", "executed", "dense"):
                values = getattr(merged, column), getattr(row, column)
                setattr(merged, column, torch.cat(values))
        seen += size
        for merged in rows.values():  # a layer that this batch did not reach
            missing = torch.zeros(seen - len(merged.active), dtype=torch.float64, device="cpu")
            for column in ("active", "executed", "dense"):
                setattr(merged, column, torch.cat((getattr(merged, column), missing)))
    if not seen:
        raise ValueError("count_set: images must not be empty, got none. Give at least one image.")
    return FlopCount(list(rows.values()))


def _empty_row(name: str, kind: str, images: int) -> Row:
    zeros = torch.zeros(images, dtype=torch.float64, device="cpu")
    return Row(name, kind, zeros, zeros, zeros)


class _Counter(TorchDispatchMode):
    """Adds up operator calls under the module that is running."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.rows: dict[tuple[str, str], Row] = {}
        self.running: list[tuple[str, nn.Module]] = []
        self.of_block: list[tuple[str, CallMacs]] = []  # calls of the gated block that is running
        self.of_pool: list[tuple[str, CallMacs]] = []  # calls of the branches of a pool

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = self.running[-1][0] if self.running else ""
        pixels = touched_pixels(func, args, output)
        if pixels is not None:
            self.row(name, COMPACTION).pixels += pixels
        copied = copied_pixels(func, args, kwargs or {}, output)
        if copied:
            self.row(name, COPY).pixels += copied
        for macs in call_macs(func, args, kwargs or {}, output, self.batch):
            block = next((m for _, m in self.running[::-1] if isinstance(m, GatedBlock)), None)
            pool = next(
                (n for n, m in self.running[::-1] if isinstance(m, MultiDilationPool)), None
            )
            if any(isinstance(module, BinaryGate | ScaleGate) for _, module in self.running):
                if func.name() == "perfconv::gate_mask":
                    return output  # decides once more what the logits, counted, were made for
                self.add(name, GATE, macs.active, macs.executed, macs.dense)
            elif block is not None and self.running[-1][1] in (block, *block.stage_convs()):
                self.of_block.append((name, macs))
            elif pool is not None:
                self.of_pool.append((pool, macs))
            else:
                self.add(name, LAYER, macs.active, macs.executed, macs.dense)
        return output

    def row(self, name: str, kind: str) -> Row:
        return self.rows.setdefault((name, kind), _empty_row(name, kind, self.batch))

    def add(self, name: str, kind: str, active: Tensor, executed: Tensor, dense: Tensor) -> None:
        row = self.row(name, kind)
        row.active = row.active + self._by_image(active)
        row.executed = row.executed + self._by_image(executed)
        row.dense = row.dense + self._by_image(dense)

    def _by_image(self, macs: Tensor) -> Tensor:
        """Shared out evenly where a layer sees another batch than the model."""
        return macs if len(macs) == self.batch else macs.sum().expand(self.batch) / self.batch

    def close_pool(self, name: str, pool: MultiDilationPool, choice: Tensor | None) -> None:
        """One row for the branches; those of a hard choice are one convolution, however it ran."""
        calls = [macs for called, macs in self.of_pool if called == name]
        self.of_pool = [call for call in self.of_pool if call[0] != name]
        if not calls:
            return
        executed = torch.stack([self._by_image(macs.executed) for macs in calls]).sum(0)
        active = torch.stack([self._by_image(macs.active) for macs in calls]).sum(0)
        dense = torch.stack([self._by_image(macs.dense) for macs in calls]).sum(0)
        if choice is not None and len(calls) > 1:
            dense = active = self._by_image(calls[0].dense)
            if choice.device.type != "meta" and 0 in pool.dilations:
                convolved = choice != pool.dilations.index(0)
                active = self._by_image(_share_of(calls[0].dense, convolved))
        self.add(name, LAYER, active, executed, dense)

    def close_block(self, name: str, block: GatedBlock, input: Tensor, mask: Tensor) -> None:
        """Rows of a gated block, whichever way it ran: a layer's own pixels, and its halo."""
        calls, self.of_block = self.of_block, []
        direct = [macs for called, macs in calls if called == name]
        executed: dict[str, Tensor] = {}
        dense: dict[str, Tensor] = {}
        prefix = f"{name}." if name else ""
        named = [(called.removeprefix(prefix), macs) for called, macs in calls if called != name]
        for conv, macs in [*zip(block.perforated_stages, direct, strict=False), *named]:
            executed[conv] = executed.get(conv, 0) + macs.executed
            dense[conv] = macs.dense
        needed_masks = block.needed_masks(mask, input)
        for stage, needed in zip(block.stages, needed_masks, strict=True):
            conv = stage.conv
            whole, layer = dense[conv], prefix + conv
            if needed is None or needed.device.type == "meta":
                self.add(layer, LAYER, whole, executed[conv], whole)
                continue
            active = _share_of(whole, needed)
            own = torch.minimum(active, _share_of(whole, mask))
            ran = executed[conv]
            beyond = active - own if torch.equal(ran, active) else torch.zeros_like(active)
            self.add(layer, LAYER, own, ran - beyond, whole)
            if not torch.equal(own, active):
                halo = (active - own, beyond, torch.zeros_like(active))
                self.add(layer, HALO, *halo)


def _share_of(macs: Tensor, mask: Tensor) -> Tensor:
    """(N,): the MACs of the active pixels out of those of all pixels; exact."""
    active = mask.flatten(1).sum(1).to("cpu", torch.float64)
    return macs * active / mask[0].numel()


@contextmanager
def _followed(model: nn.Module, counter: _Counter, record: GateRecord) -> Iterator[None]:
    """Tells ``counter`` which module is running, by hooks that are removed afterwards."""
    handles = []

    def enter(name: str) -> Callable:
        return lambda module, inputs: counter.running.append((name, module))

    def leave(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            counter.running.pop()
            if isinstance(module, MultiDilationPool):
                choice = record.choices[-1].choice.choice if module.weighting == "pag" else None
                with torch.utils._python_dispatch._disable_current_modes():
                    counter.close_pool(name, module, choice)
            if isinstance(module, GatedBlock):
                mask = record.calls[-1].gate.mask
                with torch.utils._python_dispatch._disable_current_modes():
                    counter.close_block(name, module, inputs[0], mask)

        return hook

    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
