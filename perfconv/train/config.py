"""Recipe: everything that decides a training run, as plain frozen data that JSON can hold."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import TypeVar, get_args, get_origin, get_type_hints

from perfconv.schedules import authors_temperature, exponential_temperature, linear_temperature

OPTIMIZERS = ("sgd", "adamw")
TEMPERATURES = ("constant", "linear", "exponential", "authors")
TASKS = ("segmentation", "log_depth", "normals", "boundary")
LOSS_FORMS = ("valid", "authors")
Part = TypeVar("Part")
DATASETS = ("scenes", "nyuv2", "cityscapes", "stanford2d3d", "sunrgbd", "bsds500")


@dataclass(frozen=True)
class Data:
    """Which samples, and how training samples are changed."""

    name: str = "scenes"  # of DATASETS
    # Of the reader; of "scenes": length, test_length, size, kind, noise.
    options: dict = field(default_factory=dict)
    train_split: str = "train"
    test_split: str = "test"
    crop_size: tuple[int, int] | None = None  # (height, width) of training samples
    augmentation: dict = field(default_factory=dict)  # of perfconv.data.Augmentation
    limit: int | None = None  # this many samples of each split, the first ones
    skip_damaged: bool = False  # read every file first, and leave out those that are wrong


@dataclass(frozen=True)
class Model:
    """A network by its name; see perfconv.train.networks."""

    name: str
    arguments: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Temperature:
    """Of every gate: from ``start`` to ``end`` over a share of the steps, then ``end``."""

    kind: str = "constant"  # of TEMPERATURES; "authors": their list over 150 epochs, scaled
    start: float = 1.0
    end: float = 1.0
    share: float = 0.45

    def at(self, step: int, steps: int) -> float:
        if self.kind == "constant":
            return self.start
        if self.kind == "authors":
            return authors_temperature(1 + 150 * step // max(steps, 1))
        schedule = linear_temperature if self.kind == "linear" else exponential_temperature
        return schedule(step, max(1, round(self.share * steps)), start=self.start, end=self.end)


@dataclass(frozen=True)
class Stage:
    """One network, trained for some steps from the weights of the stage before."""

    name: str
    model: Model
    epochs: float = 1.0
    steps: int | None = None  # instead of epochs
    batch_size: int = 1  # of all processes together
    accumulate: int = 1  # micro-batches of a process
    optimizer: str = "sgd"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    power: float = 0.9  # learning rate * (1 - step / steps) ** power
    # Pattern of parameter names (fnmatch): factor of the learning rate; the first that fits.
    rate_factors: dict = field(default_factory=dict)
    gate_rate_factor: float = 1.0  # of binary gates, which have no weight decay
    trained: tuple[str, ...] = ("*",)  # patterns of the parameters that learn
    frozen_statistics: bool = False  # every BatchNorm takes its stored statistics
    clip_norm: float | None = None  # of the gradient
    loss_form: str = "valid"  # or "authors": divided by all pixels
    task_weights: dict = field(default_factory=dict)  # task: factor, 1 by default
    # Of a recurrent network's feed-forward pass and loops: segmentation, depth_bins, depth.
    stage_weights: tuple[tuple[float, float, float], ...] = ()
    temperature: Temperature = Temperature()
    target_density: float | None = None
    density_weight: float = 0.0
    density_form: str = "kl"
    open_gates: tuple[str, ...] = ()  # patterns of the layers whose gates are held open
    density_ramp: float = 0.0  # share of the steps over which the target falls from 1


@dataclass(frozen=True)
class Recipe:
    """A named experiment."""

    name: str
    summary: str
    tasks: tuple[str, ...]
    data: Data
    stages: tuple[Stage, ...]
    seed: int = 777
    bf16: bool = False
    ema_decay: float | None = None
    evaluate_every: int = 0  # steps; 0: at the end of the last stage only
    checkpoint_every: int = 500  # steps
    log_every: int = 20  # steps
    thresholds: int = 99  # of boundary scores while training; perfconv evaluate has its own
    pictures: int = 4  # test samples drawn after each evaluation
    needs_weights: str | None = None  # of a pretrained trunk, such as "resnet50"
    expected: str = ""  # what the authors report

    def __post_init__(self) -> None:
        _check(self)

    def to_dict(self) -> dict:
        """What JSON can hold; ``from_dict`` of it is the same recipe."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> "Recipe":
        """A recipe of plain values.

        Raises:
            ValueError: a key is unknown, one is missing, or a value is out of its range.
        """
        top = _known("recipe", cls, content)
        data = _known("data", Data, _mapping("data", top.get("data", {})))
        data["crop_size"] = _tuples(data.get("crop_size"))
        stages = top.get("stages", ())
        if not isinstance(stages, Sequence) or isinstance(stages, str):
            raise ValueError(f"recipe: stages must be a list, got {stages!r}.")
        top["data"] = _made("data", Data, data)
        top["stages"] = tuple(_stage(number, stage) for number, stage in enumerate(stages))
        top["tasks"] = _tuples(top.get("tasks", ()))
        return _made("recipe", cls, top)

    def stage_steps(self, stage: int, samples: int) -> int:
        """The steps of a stage on a training set of that many samples."""
        chosen = self.stages[stage]
        if chosen.steps is not None:
            return chosen.steps
        return max(1, math.ceil(chosen.epochs * samples / chosen.batch_size))


def read_recipe(path: str | Path) -> Recipe:
    """A recipe from a JSON file, as ``perfconv train --show`` prints one.

    Raises:
        ValueError: the file is no recipe.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"recipe {path} cannot be read: {error}") from error
    return Recipe.from_dict(_mapping(str(path), content))


def with_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """``recipe`` with values replaced: "stages.0.steps=10", "seed=3", "data.options.length=8".

    Values are JSON, or else text.

    Raises:
        ValueError: an override has no "=", or leads nowhere.
    """
    content = recipe.to_dict()
    for override in overrides:
        path, sign, text = override.partition("=")
        if not sign:
            raise ValueError(f"--set must be key=value, got {override!r}, such as seed=3.")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        *parents, last = path.split(".")
        place: object = content
        try:
            for key in parents:
                place = place[int(key)] if isinstance(place, list) else place[key]  # type: ignore[index]
            if isinstance(place, list):
                place[int(last)] = value
            else:
                place[last] = value  # type: ignore[index]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ValueError(
                f"--set {override}: there is no {path} in this recipe. See it with --show."
            ) from error
    return Recipe.from_dict(content)


def _stage(number: int, content: object) -> Stage:
    where = f"stages.{number}"
    given = _known(where, Stage, _mapping(where, content))
    model = _mapping(f"{where}.model", given.get("model", {}))
    given["model"] = _made(f"{where}.model", Model, _known(f"{where}.model", Model, model))
    temperature = _mapping(f"{where}.temperature", given.get("temperature", {}))
    given["temperature"] = _made(
        f"{where}.temperature",
        Temperature,
        _known(f"{where}.temperature", Temperature, temperature),
    )
    for name in ("trained", "open_gates", "stage_weights"):
        if name in given:
            given[name] = _tuples(given[name])
    return _made(where, Stage, given)


def _mapping(where: str, content: object) -> Mapping[str, object]:
    if not isinstance(content, Mapping):
        raise ValueError(f"recipe: {where} must be keys and values, got {content!r}.")
    return content


def _known(where: str, kind: type, content: Mapping[str, object]) -> dict[str, object]:
    names = [one.name for one in fields(kind)]
    unknown = sorted(set(content) - set(names))
    if unknown:
        raise ValueError(f"recipe: {where} has no {', '.join(unknown)}. It has {', '.join(names)}.")
    return dict(content)


def _tuples(value: object) -> object:
    """JSON's lists as tuples, nested ones too."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _fits(value: object, hint: object) -> bool:
    """Whether a value has the type that a field of a recipe is annotated with."""
    parts = get_args(hint)
    if isinstance(hint, UnionType):
        return any(_fits(value, one) for one in parts)
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int and isinstance(value, bool):
        return False
    return isinstance(value, hint)  # type: ignore[arg-type]


def _made(where: str, kind: type[Part], content: Mapping[str, object]) -> Part:
    for name, hint in get_type_hints(kind).items():
        if name in content and not _fits(content[name], hint):
            wanted = getattr(hint, "__name__", "") if isinstance(hint, type) else ""
            place = name if where == "recipe" else f"{where}.{name}"
            raise ValueError(
                f"recipe: {place} must be {wanted or str(hint).replace('NoneType', 'None')}, got "
                f"{content[name]!r}. docs/training.md says what each holds."
            )
    try:
        return kind(**content)
    except TypeError as error:
        raise ValueError(f"recipe: {where} is incomplete: {error}.") from None


def _check(recipe: Recipe) -> None:
    rules = {
        "tasks": bool(recipe.tasks) and set(recipe.tasks) <= set(TASKS),
        "stages": bool(recipe.stages),
        "data.name": recipe.data.name in DATASETS,
        "checkpoint_every": recipe.checkpoint_every >= 1,
        "log_every": recipe.log_every >= 1,
        "thresholds": recipe.thresholds >= 1,
        "evaluate_every": recipe.evaluate_every >= 0,
        "ema_decay": recipe.ema_decay is None or 0 < recipe.ema_decay < 1,
    }
    for number, stage in enumerate(recipe.stages):
        where = f"stages.{number}"
        rules |= {
            f"{where}.steps": stage.steps is None or stage.steps >= 1,
            f"{where}.epochs": stage.epochs > 0,
            f"{where}.batch_size": stage.batch_size >= 1,
            f"{where}.accumulate": stage.accumulate >= 1,
            f"{where}.optimizer": stage.optimizer in OPTIMIZERS,
            f"{where}.learning_rate": stage.learning_rate > 0,
            f"{where}.loss_form": stage.loss_form in LOSS_FORMS,
            f"{where}.temperature.kind": stage.temperature.kind in TEMPERATURES,
            f"{where}.target_density": stage.target_density is None
            or 0 <= stage.target_density <= 1,
            f"{where}.density_weight": stage.density_weight >= 0,
            f"{where}.density_ramp": 0 <= stage.density_ramp <= 1,
        }
    for name, holds in rules.items():
        if not holds:
            raise ValueError(
                f"recipe {recipe.name!r}: {name} is empty, not one of the choices, or out of its "
                "range. docs/training.md says what each holds."
            )
