"""Recipes: what is named, what a file may say, and that every name builds its networks."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from perfconv.train.config import Recipe, Stage, Temperature, read_recipe, with_overrides
from perfconv.train.networks import build_network, transfer_weights
from perfconv.train.recipes import RECIPES

SCENES = [name for name in RECIPES if name.startswith("scenes-")]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_plain_data(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    assert recipe.name == name
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe.to_dict()))
    assert read_recipe(path).to_dict() == recipe.to_dict()


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
@pytest.mark.parametrize(
    ("prefix", "least"),
    [("scenes", 15), ("bsds500", 3)]
    + [
        pytest.param(name, 5, marks=pytest.mark.slow)
        for name in ("nyuv2", "stanford", "sunrgbd", "cityscapes")
    ],
)
def test_every_stage_follows_from_the_one_before(prefix: str, least: int) -> None:
    networks: dict[str, torch.nn.Module] = {}

    def network(stage: Stage) -> torch.nn.Module:
        key = json.dumps([stage.model.name, stage.model.arguments])
        if key not in networks:
            with torch.device("meta"):
                networks[key] = build_network(stage.model.name, stage.model.arguments)
        return networks[key]

    seen = set()
    for recipe in RECIPES.values():
        if not recipe.name.startswith(prefix):
            continue
        for before, stage in itertools.pairwise(recipe.stages):
            pair = network(before), network(stage)
            if pair in seen:
                continue
            seen.add(pair)
            fresh = transfer_weights(*pair)
            assert not [key for key in fresh if not may_be_new(key)], (recipe.name, stage.name)
        network(recipe.stages[0])
    assert len(seen) >= least


def may_be_new(key: str) -> bool:
    """Gates, the branch that predicts depth, recurrent loops, and pools on top of res6."""
    return any(part in key for part in (".gate.", "depth_branch.", "refinement.", "res6.3."))


def test_the_authors_figures_are_not_ours() -> None:
    for name, recipe in RECIPES.items():
        if name not in SCENES:
            assert "not run here" in recipe.expected
            assert recipe.needs_weights in ("resnet50", "resnet101")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "must be key=value"),
        ("stages.9.steps=3", "there is no stages.9.steps"),
        ("stages.0.step=3", "stages.0 has no step"),
        ("stages.0.steps=0", "stages.0.steps is empty, not one of the choices, or out of its"),
        ("data.name=imagenet", "data.name is empty, not one of"),
        ("stages=3", "stages must be a list"),
        ("stages.0.model=3", "stages.0.model must be keys and values"),
        ("seeds=3", "recipe has no seeds"),
        ("seed=1.5", r"recipe: seed must be int, got 1.5\. docs/training.md"),
        ("bf16=maybe", "recipe: bf16 must be bool, got 'maybe'"),
        ("ema_decay=yes", r"recipe: ema_decay must be float \| None, got 'yes'"),
        ("tasks=[3]", r"recipe: tasks must be tuple\[str, ...\], got \(3,\)"),
        ("data.crop_size=[3]", "recipe: data.crop_size must be"),
        ("stages.0.learning_rate=high", "stages.0.learning_rate must be float, got 'high'"),
        ("stages.0.temperature.start=[]", "stages.0.temperature.start must be float"),
        ("stages.0.stage_weights=[[1, 2]]", "stages.0.stage_weights must be"),
    ],
)
def test_overrides_are_checked(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_overrides(RECIPES["scenes-average"], [override])


def test_overrides() -> None:
    changed = with_overrides(
        RECIPES["scenes-average"],
        ["seed=3", "stages.0.steps=7", "stages.0.optimizer=sgd", "data.crop_size=[16, 24]"],
    )
    assert (changed.seed, changed.stages[0].steps) == (3, 7)
    assert changed.stages[0].optimizer == "sgd"
    assert changed.data.crop_size == (16, 24)


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        read_recipe(path)
    path.write_text('{"name": "x"}')
    with pytest.raises(ValueError, match="is incomplete"):
        read_recipe(path)
    with pytest.raises(ValueError, match="tasks is empty"):
        Recipe.from_dict({"name": "x", "summary": "", "tasks": [], "data": {}, "stages": []})


def test_epochs_and_steps() -> None:
    recipe = RECIPES["nyuv2-segmentation-baseline"]
    assert recipe.stage_steps(0, 795) == 150 * 795
    assert with_overrides(recipe, ["stages.0.batch_size=4"]).stage_steps(0, 795) == 29813
    assert RECIPES["scenes-average"].stage_steps(0, 400) == 400


def test_temperatures() -> None:
    assert Temperature("linear", 1.0, 0.5, share=0.5).at(25, 100) == 0.75
    assert Temperature("exponential", 1.0, 0.25, share=1.0).at(50, 100) == 0.5
    assert Temperature("constant", 0.7).at(50, 100) == 0.7
    assert [Temperature("authors").at(step, 150) for step in (0, 2, 149)] == [1.0, 0.97, 0.001]
