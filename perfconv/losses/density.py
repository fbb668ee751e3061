"""density_loss: what steers gates to a target density."""

import math
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

FORMS = ("kl", "squared", "budget")
SMALLEST = 1e-6  # means are kept this far from 0 and 1, where the divergence is infinite


class _Gate(Protocol):
    @property
    def soft(self) -> Tensor: ...  # (N, 1, H, W)


class _Call(Protocol):
    @property
    def gate(self) -> _Gate: ...

    @property
    def macs(self) -> int: ...


def density_loss(record: Iterable[_Call], target_density: float, *, form: str = "kl") -> Tensor:
    """The distance of the gates' mean soft values from ``target_density``.

    With g the mean of ``soft`` over the pixels of one image and layer, and rho the target:

    - "kl": KL(rho || g) = rho log(rho / g) + (1 - rho) log((1 - rho) / (1 - g)), summed over
      layers. Every layer is steered to rho.
    - "squared": 2 log(1 + (g - rho)^2), summed over layers; milder, the authors' released one.
    - "budget": one KL(rho || g), g weighted over the layers by the MACs that their gates save.
      Layers may differ, the cost of the whole network is steered.

    All are means over images. A layer called twice counts twice. Means are clamped to
    [1e-6, 1 - 1e-6]; the gradient passes the clamp, so that a closed gate can come back.

    Gates with one decision for a whole image (``LayerGate``) need "budget". The other two ask every
    layer for rho on every image, which one decision meets only by staying undecided: P(compute)
    settles at rho, and in evaluation all are open for rho above 0.5, closed below.

    Args:
        record: of ``record_gates``.
        target_density: in [0, 1].
        form: "kl", "squared" or "budget".

    Returns:
        A scalar, float32 (float64 for float64 gates).

    Raises:
        ValueError: ``target_density`` or ``form`` is none of these, the record is empty, or no
            gate of it knows its MACs ("budget"; gated blocks tell them to their gates).

    Notes: differentiable. No host sync.
    Source: Kong and Fowlkes 2019; the released code has twice the divergence (both channels of
        the softmax), and "squared".
    Example:
        >>> gate = perfconv.nn.PixelGate(4).eval()
        >>> with perfconv.nn.record_gates(gate) as record:
        ...     _ = gate(torch.zeros(1, 4, 5, 5))
        >>> round(float(density_loss(record, 0.5)), 4)  # the gate's mean is 0.8808
        0.4338
    """
    if not 0 <= target_density <= 1:
        raise ValueError(
            f"density_loss: target_density must be in [0, 1], got {target_density}. Give the share "
            "of active pixels."
        )
    if form not in FORMS:
        raise ValueError(
            f"density_loss: form must be one of {', '.join(map(repr, FORMS))}, got {form!r}. "
            "Choose one of these."
        )
    calls = list(record)
    if not calls:
        raise ValueError(
            "density_loss: the record must hold a gate, got an empty one. Run the model inside "
            "record_gates(model)."
        )
    means = [_image_means(call.gate.soft) for call in calls]  # one (N,) per call
    if form == "budget":
        return _divergence(target_density, _weighted(calls, means)).mean()
    if form == "squared":
        terms = [2 * torch.log1p((mean - target_density) ** 2) for mean in means]
    else:
        terms = [_divergence(target_density, mean) for mean in means]
    return torch.stack([term.mean() for term in terms]).sum()


def _image_means(soft: Tensor) -> Tensor:
    """(N,): the mean over the pixels of each image, in float32 or wider."""
    wide = soft.to(torch.promote_types(soft.dtype, torch.float32))
    return wide.flatten(1).mean(1)


def _weighted(calls: list[_Call], means: list[Tensor]) -> Tensor:
    total = sum(call.macs for call in calls)
    if not total:
        raise ValueError(
            'density_loss: form "budget" needs gates that know their MACs, got none in the '
            'record. Use gated blocks, set pixel_macs of the gates, or choose form="kl".'
        )
    shares = [call.macs / total * mean for call, mean in zip(calls, means, strict=True)]
    return torch.stack(shares).sum(0)


def _divergence(target: float, mean: Tensor) -> Tensor:
    clamped = mean + (mean.detach().clamp(SMALLEST, 1 - SMALLEST) - mean.detach())
    entropy = -sum(share * math.log(share) for share in (target, 1 - target) if share > 0)
    return -entropy - target * clamped.log() - (1 - target) * torch.log1p(-clamped)
