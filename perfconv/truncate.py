"""truncate: the baseline that saves FLOPs by leaving whole residual blocks out."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from perfconv.convert import check_model, find_blocks, replace
from perfconv.flops import count
from perfconv.nn import DroppedBlock, GatedBlock

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class TruncationReport:
    """What ``truncate`` did; the attribute ``truncation_report`` of the model it returns."""

    dropped: tuple[str, ...]  # names of the blocks that are gone, in the order in which they went
    kept: tuple[str, ...]  # names of those that could have followed
    macs: int  # of one call with the given inputs, without masks, gates included
    whole_macs: int  # the same before

    @property
    def ratio(self) -> float:
        """MACs left, out of the MACs before."""
        return self.macs / self.whole_macs

    def __str__(self) -> str:
        return (
            f"{len(self.dropped)} blocks dropped ({', '.join(self.dropped) or 'none'}): "
            f"{self.macs:,} of {self.whole_macs:,} MACs, {self.ratio:.4f}; "
            f"{len(self.kept)} more could be"
        )


def truncate(
    model: Model,
    *inputs: Any,
    budget: float,
    blocks: Sequence[str] | None = None,
) -> Model:
    """A copy of ``model`` without some of its identity blocks, within a FLOP budget.

    Blocks whose shortcut is the input itself are replaced by it, one after another, until the MACs
    are at most ``budget`` times those of the model. To be fine-tuned; the *truncated* row of the
    papers' comparison.

    Args:
        model: left as it is; plain or from ``convert``.
        inputs: of its ``forward``, for counting; meta tensors are enough for a model on meta.
        budget: MACs left, out of the MACs of the model, in (0, 1].
        blocks: names, as in ``named_modules()``, of the blocks that may go, the first one first;
            None: every identity block, from the output backwards.

    Returns:
        A deep copy. State-dict keys are the old ones, less those of the dropped blocks; hooks on a
        dropped block stay. Its attribute ``truncation_report`` tells what went.

    Raises:
        TypeError: ``model`` is no ``nn.Module``, or one that was scripted or compiled.
        ValueError: ``budget`` is outside (0, 1], a name is not one of an identity block or comes
            twice, or the budget cannot be reached with these blocks.

    Source: Kong and Fowlkes 2019, table 2, "truncated"; which blocks went is not written there.
    """
    check_model("truncate", model)
    if not 0 < budget <= 1:
        raise ValueError(
            f"truncate: budget must be in (0, 1] (MACs left out of all MACs), got {budget}. "
            "Divide the MACs wanted by those of perfconv.flops.count."
        )
    possible = _identity_blocks(model)
    order = list(reversed(possible)) if blocks is None else list(blocks)
    for name in order:
        if name not in possible or order.count(name) > 1:
            reason = "twice" if name in possible else f"which is none of {', '.join(possible)}"
            raise ValueError(
                "truncate: blocks must be names of blocks whose shortcut is the input, got "
                f"{name!r}, {reason}. See perfconv.convert for what a block is."
            )
    counted = count(copy.deepcopy(model), *inputs)  # in training a call moves statistics
    whole = counted.dense_macs
    left, dropped = whole, 0
    while left > budget * whole:
        if dropped == len(order):
            raise ValueError(
                f"truncate: the budget must be reached by dropping {len(order)} blocks, got "
                f"{budget} where {left / whole:.4f} of the MACs are left. Name more blocks, or "
                "give a larger budget."
            )
        inside = f"{order[dropped]}."
        rows = [row for row in counted.rows if f"{row.name}.".startswith(inside)]
        left -= round(sum(float(row.dense.sum()) for row in rows))
        dropped += 1
    truncated = copy.deepcopy(model)
    for name in order[:dropped]:
        old = truncated.get_submodule(name)
        truncated = replace(truncated, name, DroppedBlock().train(old.training))
    report = TruncationReport(tuple(order[:dropped]), tuple(order[dropped:]), left, whole)
    truncated.__dict__["truncation_report"] = report  # no module, no parameter
    return truncated


@torch.no_grad()
def _identity_blocks(model: nn.Module) -> list[str]:
    """Names of the residual blocks, plain or gated, whose shortcut is their input."""
    gated = {n: m.structure for n, m in model.named_modules() if isinstance(m, GatedBlock)}
    plain = {name: structure for name, (_, structure) in find_blocks(model)[0].items()}
    named = {**plain, **gated}
    return [
        name
        for name, _ in model.named_modules()
        if name in named and named[name].shortcut is None and name
    ]
