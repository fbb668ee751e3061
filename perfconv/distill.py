"""distill_gates: gates learned from the dense network's own outputs on unlabelled images."""

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from perfconv.losses import density_loss
from perfconv.nn import Gate, GateCall, GateRecord, force_gates, gates, record_gates
from perfconv.nn.gate import COMPUTE, BinaryGate

Model = TypeVar("Model", bound=nn.Module)
# What a model returns: tensors in tuples, lists, dicts, and named tuples of these.
Output = object
CALIBRATION_STEPS = 8  # halvings of an interval of logits
CALIBRATION_RANGE = 16.0  # of logits, to both sides
FORMAT = "perfconv distill_gates 1"


@dataclass
class Distillation:
    """How ``distill_gates`` went; one number per step, and the end."""

    losses: list[float] = field(default_factory=list)  # distance of the outputs, or from the hint
    densities: list[float] = field(default_factory=list)  # weighted by MACs; 1 in the first phase
    density: float | None = None  # of the noise-free masks on the images, after calibration


def output_distance(output: Output, wanted: Output) -> Tensor:
    """Mean over the tensors of an output: mean squared difference / variance of the wanted one.

    Raises:
        ValueError: the outputs hold no floating-point tensor, or other shapes.
    """
    pairs = list(zip(_tensors(output), _tensors(wanted), strict=True))
    if not pairs:
        raise ValueError(
            "distill_gates: the model must return a floating-point tensor, got none. Give "
            "distance=, a function of (output, wanted output)."
        )
    terms = []
    for got, want in pairs:
        variance = want.var(correction=0).clamp(min=torch.finfo(want.dtype).tiny)
        terms.append(((got - want) ** 2).mean() / variance)
    return torch.stack(terms).mean()


def distill_gates(
    model: nn.Module,
    images: Tensor | Sequence[Tensor],
    *,
    target_density: float,
    steps: int = 300,
    learning_rate: float = 0.02,
    density_weight: float = 1.0,
    form: str = "budget",
    temperature: float = 1.0,
    distance: Callable[[Output, Output], Tensor] = output_distance,
    hint: Callable[[Output], Tensor] | None = None,
    hint_steps: int = 0,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    generator: torch.Generator | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 50,
    calibrate: bool = True,
    progress: bool = True,
) -> Distillation:
    """Learns the gates of a converted model from what it computes with all of them open.

    Each step takes an image at random, runs the model with open gates for the wanted output, and
    with its gates for the one it gives; Adam minimises

        distance(output, wanted) + density_weight * density_loss(masks, target_density)

    by the straight-through gradient. A first phase may give the gates a hint: a map, made of the
    wanted output, of where computing matters, which they learn to predict from the dense network's
    features (cross entropy, no noise). It costs a fraction of a step with masks. Everything but the
    gates is frozen, BatchNorm statistics included. At the end all gates are shifted by one number,
    so that the noise-free masks on ``images`` have the target density.

    Args:
        model: of ``convert``; its gates are changed in place, its training flags are put back.
        images: each (N, C, H, W) or what else the model takes as its one input; sizes may differ.
        target_density: in (0, 1): share of active pixels, weighted by the MACs that they cost
            (``form="budget"``), or of each layer (``form="kl"``).
        steps: images looked at.
        learning_rate: of Adam, falling to 0 on a half cosine.
        density_weight, form: of :func:`perfconv.losses.density_loss`, over the hard masks.
        temperature: of the gates while they learn.
        distance: of (output, wanted output), to a scalar.
        hint: of the wanted output, to (N, 1, any height, any width) in [0, 1].
        hint_steps: how many of ``steps`` belong to the first phase.
        augment: makes the image of a step, such as a random crop; draw from its generator only.
        generator: of the choice of images, of ``augment`` and of the gates' noise; None is torch's
            global one. The same state gives the same gates, bit for bit.
        checkpoint: a file that is replaced, whole, every ``checkpoint_every`` steps; if it is there
            at the start, with the same arguments, the run goes on where it stood, bit for bit.
        calibrate: whether to shift the gates at the end, which runs the model some times on every
            image; gates with a density of their own need no shift.
        progress: shows a bar, where tqdm is installed.

    Returns:
        A :class:`Distillation`.

    Raises:
        TypeError: an image is no tensor of floating-point numbers.
        ValueError: the model has no gates, there is no image, a number is out of its range, the
            distance is not finite, or the checkpoint belongs to another run.

    Source: Hinton et al. 2015 for the teacher; here it is the model itself.
    Example:
        >>> plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        >>> gated = perfconv.convert(plain, filter=lambda name, conv: name == "2")
        >>> images = torch.rand(4, 3, 8, 8).split(1)
        >>> report = distill_gates(gated, images, target_density=0.5, steps=5, progress=False)
        >>> len(report.losses), 0.4 < report.density < 0.6
        (5, True)
    """
    chosen = _checked(model, images, target_density, steps, checkpoint_every)
    if not 0 <= hint_steps <= (0 if hint is None else steps):
        raise ValueError(
            f"distill_gates: hint_steps must be from 0 to steps = {steps}, and 0 without a hint, "
            f"got {hint_steps}. Give hint=, a function of the wanted output."
        )
    run = _Run(model, chosen, learning_rate, steps, generator, temperature)
    settings = {
        "format": FORMAT,
        "gates": sorted(run.state()),
        "numbers": [
            target_density,
            steps,
            learning_rate,
            density_weight,
            temperature,
            hint_steps,
        ],
        "form": form,
        "images": [tuple(image.shape) for image in chosen],
    }
    path = None if checkpoint is None else Path(checkpoint)
    with run.training(), _bar(steps, progress) as bar:
        if path is not None and path.exists():
            run.load(path, settings)
            bar.update(len(run.report.losses))
        while len(run.report.losses) < steps:
            image = run.draw(augment)
            if len(run.report.losses) < hint_steps:
                assert hint is not None
                loss, density = run.hint_step(image, hint)
            else:
                loss, density = run.step(image, distance, target_density, density_weight, form)
            bar.set_postfix_str(f"loss {loss:.4f}, density {density:.2f}")
            bar.update()
            if path is not None and len(run.report.losses) % checkpoint_every == 0:
                run.save(path, settings)
    if calibrate:
        run.report.density = calibrate_gates(model, chosen, target_density=target_density)
    return run.report


def calibrate_gates(
    model: nn.Module, images: Tensor | Sequence[Tensor], *, target_density: float
) -> float:
    """Shifts the logit "compute" of every gate by one number, so that a target density is met.

    Which pixels come first stays as it was learned; one set of gates serves several densities.

    Args:
        model: with learned gates; changed in place, its training flags are put back.
        images: as for :func:`distill_gates`; the density is the mean over them.
        target_density: in (0, 1), of the noise-free masks, weighted by the MACs that pixels cost.

    Returns:
        The density reached: the closest of a bisection. Steps of the masks may leave a gap.

    Raises:
        TypeError, ValueError: as for :func:`distill_gates`.
    """
    chosen = _checked(model, images, target_density, 1, 1)
    biases = [bias for gate in gates(model).values() if (bias := gate.compute_bias) is not None]
    before = [float(values[index].detach()) for values, index in biases]

    def reached(shift: float) -> float:
        with torch.no_grad():
            for (values, index), start in zip(biases, before, strict=True):
                values[index] = start + shift
        return _mean_density(model, chosen)

    low, high = -CALIBRATION_RANGE, CALIBRATION_RANGE
    tried: dict[float, float] = {}
    for _ in range(CALIBRATION_STEPS):
        middle = (low + high) / 2
        tried[middle] = reached(middle)
        low, high = (middle, high) if tried[middle] < target_density else (low, middle)
    best = min(tried, key=lambda shift: abs(tried[shift] - target_density))
    return reached(best)


class _HardGate(NamedTuple):
    """What the density loss reads: the masks themselves, with the gradient of soft."""

    soft: Tensor


class _HardCall(NamedTuple):
    gate: _HardGate
    macs: int


class _Run:
    """The state of one distillation: what a checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        images: list[Tensor],
        learning_rate: float,
        steps: int,
        generator: torch.Generator | None,
        temperature: float,
    ) -> None:
        self.model, self.images, self.temperature = model, images, temperature
        self.own_generator = generator
        self.generator = torch.default_generator if generator is None else generator
        self.parameters = [
            parameter for gate in gates(model).values() for parameter in gate.parameters()
        ]
        self.optimizer = torch.optim.Adam(self.parameters, learning_rate)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.report = Distillation()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Gates learn, everything else is frozen and in eval mode; puts all of it back."""
        found = gates(self.model)
        flags = {module: module.training for module in self.model.modules()}
        needs = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        options = {gate: (gate.temperature, gate.generator) for gate in found.values()}
        try:
            self.model.eval().requires_grad_(False)
            force_gates(self.model, None)
            for gate in found.values():
                gate.train().requires_grad_(True)
                gate.temperature, gate.generator = self.temperature, self.own_generator
            yield
        finally:
            for module, flag in flags.items():
                module.training = flag
            for parameter, need in needs.items():
                parameter.requires_grad_(need).grad = None
            for gate, (temperature, generator) in options.items():
                gate.temperature, gate.generator = temperature, generator

    def draw(self, augment: Callable[[Tensor, torch.Generator], Tensor] | None) -> Tensor:
        index = int(torch.randint(len(self.images), (), generator=self.generator))
        image = self.images[index]
        return image if augment is None else augment(image, self.generator)

    def step(
        self,
        image: Tensor,
        distance: Callable[[Output, Output], Tensor],
        target_density: float,
        density_weight: float,
        form: str,
    ) -> tuple[float, float]:
        with torch.no_grad():
            force_gates(self.model, 1.0)
            wanted = self.model(image)
            force_gates(self.model, None)
        with record_gates(self.model) as record:
            output = self.model(image)
        calls = [_HardCall(_HardGate(call.gate.hard), call.macs) for call in record]
        loss = distance(output, wanted)
        if not bool(torch.isfinite(loss)):
            raise ValueError(
                f"distill_gates: the distance must be a finite number, got {loss.item()} in step "
                f"{len(self.report.losses) + 1}. Check the images and the distance function."
            )
        total = loss + density_weight * density_loss(calls, target_density, form=form)
        return self._update(total, loss, _weighted_density(record))

    def hint_step(self, image: Tensor, hint: Callable[[Output], Tensor]) -> tuple[float, float]:
        """Each gate's logits, on the features of the dense network, against the hint."""
        force_gates(self.model, 1.0)
        with record_gates(self.model) as record:
            wanted = self.model(image)
        force_gates(self.model, None)
        hinted = hint(wanted).detach()
        terms = []
        for logits in {id(call.gate): call.gate.logits for call in record}.values():  # shared once
            odds = logits[:, COMPUTE:] - logits[:, :COMPUTE]
            target = F.adaptive_avg_pool2d(hinted, (odds.size(2), odds.size(3)))
            terms.append(F.binary_cross_entropy_with_logits(odds, target))
        loss = torch.stack(terms).sum()
        return self._update(loss, loss, 1.0)

    def _update(self, total: Tensor, loss: Tensor, density: float) -> tuple[float, float]:
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self.schedule.step()
        self.report.losses.append(loss.item())
        self.report.densities.append(density)
        return loss.item(), density

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value
            for name, gate in gates(self.model).items()
            for key, value in gate.state_dict().items()
        }

    def save(self, path: Path, settings: dict) -> None:
        state = {
            "settings": settings,
            "gates": self.state(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "losses": self.report.losses,
            "densities": self.report.densities,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save(state, file)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def load(self, path: Path, settings: dict) -> None:
        try:
            state = torch.load(path, weights_only=True)
            is_ours = state["settings"]["format"] == FORMAT
        except Exception as error:
            raise ValueError(
                f"distill_gates: checkpoint must be a file of distill_gates, got {path} "
                f"({error}). Remove it or name another one."
            ) from error
        if not is_ours or state["settings"] != settings:
            differing = [key for key in settings if state["settings"].get(key) != settings[key]]
            raise ValueError(
                f"distill_gates: the checkpoint must be of a run with the same arguments, got "
                f"{path} with other {', '.join(differing)}. Remove it or name another one."
            )
        with torch.no_grad():
            for name, value in self.state().items():
                value.copy_(state["gates"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        self.report = Distillation(state["losses"], state["densities"])


class _NoBar:
    """Stands in for a progress bar."""

    def update(self, count: int = 1) -> None: ...

    def set_postfix_str(self, text: str) -> None: ...


@contextmanager
def _bar(steps: int, is_wanted: bool) -> Iterator[_NoBar]:
    module = importlib.util.find_spec("tqdm") if is_wanted else None
    if module is None:
        yield _NoBar()
        return
    from tqdm import tqdm

    with tqdm(total=steps, unit="step", disable=None) as bar:
        yield bar


def _weighted_density(record: GateRecord) -> float:
    """Density of the masks, weighted by MACs; by pixels if no gate knows its MACs."""
    calls = record.calls
    weights = [call.macs or 0 for call in calls]
    if not any(weights):
        weights = [_pixels(call) for call in calls]
    shares = [call.gate.mask.float().mean().item() for call in calls]
    return sum(w * s for w, s in zip(weights, shares, strict=True)) / sum(weights)


def _pixels(call: GateCall) -> int:
    gate: Gate = call.gate
    return gate.mask[0].numel()


def _mean_density(model: nn.Module, images: list[Tensor]) -> float:
    """Of the noise-free masks."""
    flags = {module: module.training for module in model.modules()}
    try:
        model.eval()
        densities = []
        with torch.no_grad():
            for image in images:
                with record_gates(model) as record:
                    model(image)
                densities.append(_weighted_density(record))
    finally:
        for module, flag in flags.items():
            module.training = flag
    return sum(densities) / len(densities)


def _tensors(output: Output) -> list[Tensor]:
    return [
        leaf
        for leaf in tree_leaves(output)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


def _checked(
    model: nn.Module,
    images: Tensor | Sequence[Tensor],
    target_density: float,
    steps: int,
    checkpoint_every: int,
) -> list[Tensor]:
    """The images as a list; raises for what cannot work."""
    found: dict[str, BinaryGate] = gates(model)
    if not found:
        raise ValueError(
            f"distill_gates: the model must have gates, got a {type(model).__name__} without any. "
            "Convert it first: perfconv.convert(model)."
        )
    if not 0 < target_density < 1:
        raise ValueError(
            f"distill_gates: target_density must be in (0, 1), got {target_density}. For 0 or 1 "
            "there is nothing to learn: perfconv.force_gates."
        )
    for name, value in (("steps", steps), ("checkpoint_every", checkpoint_every)):
        if value < 1:
            raise ValueError(f"distill_gates: {name} must be 1 or more, got {value}.")
    chosen = [images] if isinstance(images, Tensor) else list(images)
    if not chosen:
        raise ValueError("distill_gates: images must hold an image, got none. Give some tensors.")
    for image in chosen:
        if not isinstance(image, Tensor) or not image.is_floating_point():
            kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(
                f"distill_gates: each image must be a floating-point tensor, got {kind}. Convert "
                "it as for the network."
            )
    return chosen
