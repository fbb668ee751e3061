"""Metric: sums over a set of images that can be merged, saved and added up across processes."""

from collections.abc import Mapping

import torch
import torch.distributed
from torch import Tensor

IGNORE = 255  # the label of pixels that do not count


class Metric:
    """A dictionary of plain tensors, each of which is a sum over images.

    Sub-classes add to them in ``update`` and read them in ``compute``. The metric of a set is the
    same however its images are divided among metrics that are merged (sums of floating-point
    numbers up to their rounding).
    """

    def __init__(self, **sums: Tensor) -> None:
        self._sums = sums

    def state(self) -> dict[str, Tensor]:
        """Copies of the sums, by name: what ``load_state`` takes, to save or send."""
        return {name: sum.clone() for name, sum in self._sums.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the sums.

        Raises:
            ValueError: the names or shapes are not those of this metric.
        """
        self._check(state)
        for name, sum in self._sums.items():
            sum.copy_(state[name])

    def merge(self, other: "Metric") -> None:
        """Adds the sums of a metric of the same kind and settings, which stays as it is.

        Raises:
            TypeError: ``other`` is of another class.
            ValueError: it has other settings.
        """
        if type(other) is not type(self):
            raise TypeError(
                f"{type(self).__name__}.merge: other must be of the same class, got "
                f"{type(other).__name__}."
            )
        if other._settings() != self._settings():
            raise ValueError(
                f"{type(self).__name__}.merge: settings must be {self._settings()}, got "
                f"{other._settings()}. Merge metrics that count the same."
            )
        for name, sum in self._sums.items():
            sum += other._sums[name].to(sum.device)

    def all_reduce(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        """Adds up over the processes of a group: afterwards each of them has the sums of all.

        The sums lie on the CPU: the group must have a backend for it ("cpu:gloo,cuda:nccl").
        """
        for sum in self._sums.values():
            torch.distributed.all_reduce(sum, group=group)

    def reset(self) -> None:
        """Back to no image."""
        for sum in self._sums.values():
            sum.zero_()

    def _settings(self) -> tuple[object, ...]:
        """What two metrics must have in common to be merged."""
        return tuple(tuple(sum.shape) for sum in self._sums.values())

    def _check(self, state: Mapping[str, Tensor]) -> None:
        own = {name: tuple(sum.shape) for name, sum in self._sums.items()}
        given = {name: tuple(sum.shape) for name, sum in state.items()}
        if own != given:
            raise ValueError(
                f"{type(self).__name__}.load_state: sums must be {own}, got {given}. Load the "
                "state of the same metric with the same settings."
            )


def check_integers(metric: str, what: str, map: Tensor) -> None:
    """Class or instance numbers."""
    if map.is_floating_point() or map.dtype == torch.bool:
        raise TypeError(
            f"{metric}.update: {what} must be integers, got {map.dtype}. Give class numbers: "
            "logits.argmax(1)."
        )


def check_pair(metric: str, prediction: Tensor, target: Tensor) -> None:
    """Both of one shape."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"{metric}.update: prediction and truth must have the same shape, got "
            f"{tuple(prediction.shape)} and {tuple(target.shape)}. Scale the prediction to the "
            "size of the truth."
        )


def checked_valid(metric: str, valid: Tensor | None, default: Tensor) -> Tensor:
    """``valid`` and ``default``, bool, of the shape of ``default``; True counts."""
    if valid is None:
        return default
    if valid.dtype != torch.bool:
        raise TypeError(
            f"{metric}.update: valid must be bool, got {valid.dtype}. True is a pixel that counts."
        )
    if valid.shape != default.shape:
        raise ValueError(
            f"{metric}.update: valid must be {tuple(default.shape)}, got {tuple(valid.shape)}. "
            "Give one bool per pixel."
        )
    return valid & default
