"""The named recipes: the authors' experiments on real data sets, and small ones on made-up scenes.

What the authors published is as they have it: sizes of crops, augmentation, batches of one image,
150 epochs, poly schedule, weight decay, factors of learning rates, stages, densities. Learning
rates of all but their last stages are not known, nor weights of the density loss: those here are
proposals. **None of the recipes on real data sets was run by the authors of this library**;
``expected`` is what the papers report.
"""

from dataclasses import replace

from perfconv.models.builders import DROPPED
from perfconv.train.config import Data, Model, Recipe, Stage, Temperature
from perfconv.train.scene_recipes import SCENE_RECIPES

EPOCHS = 150
FIRST_RATE = 1e-4  # proposal
LAST_RATE = 1e-6  # released, NYUv2
NEW_LAYERS = {"heads.*": 10, "classifier.*": 10, "trunk.res6.*": 10, "refinement.*": 10}
POOL_LAYERS = {"*.gate.*": 5, "*.branches.*": 5, **NEW_LAYERS}
# Gates are inserted stage by stage, res2 to res5; the names of their blocks.
GATED = ("trunk.layer1.*", "trunk.layer2.*", "trunk.layer3.*", "trunk.layer4.*")

NYUV2 = Data("nyuv2", crop_size=(400, 544))
NYUV2_NORMALS = Data("nyuv2", options={"normals_radius": 4}, crop_size=(400, 544))
_FLIPS = {"colour_share": 0, "rotate_share": 0, "scale_share": 0}
CITYSCAPES = Data("cityscapes", test_split="val", crop_size=(720, 720), augmentation=_FLIPS)
STANFORD = Data("stanford2d3d", crop_size=(704, 1280), augmentation={**_FLIPS, "gamma_spread": 0})
BSDS500 = Data("bsds500", crop_size=(320, 320))

SUNRGBD = Data("sunrgbd", crop_size=(400, 544))  # crop: a proposal

# Depth of the ResNet, and classes.
SIZES = {
    "nyuv2": (50, 40),
    "sunrgbd": (50, 37),
    "cityscapes": (101, 19),
    "stanford2d3d": (50, 12),
    "bsds500": (50, 1),
}


def _base(data: Data, tasks: tuple[str, ...], **arguments: object) -> Stage:
    """The plain network, from pretrained weights of its trunk."""
    depth, classes = SIZES[data.name]
    trunk = {"depth": depth}
    return Stage(
        "baseline",
        Model(
            "baseline_resnet50",
            {"classes": classes, "tasks": list(tasks), "trunk": trunk, **arguments},
        ),
        epochs=EPOCHS,
        learning_rate=FIRST_RATE,
        rate_factors=NEW_LAYERS,
        loss_form="authors" if tasks == ("segmentation",) else "valid",
    )


def _pooled(base: Stage, weighting: str) -> Stage:
    """MP@Res5 in the place of the second 3x3 of res5."""
    arguments = {**base.model.arguments, "weighting": weighting}
    return replace(
        base,
        name=f"pool_{weighting}",
        model=Model("multi_pool_resnet50", arguments),
        rate_factors=POOL_LAYERS,
        temperature=Temperature("linear", 1.0, 0.1),
    )


def _gated(base: Stage, density: float) -> tuple[Stage, ...]:
    """Gates in all blocks but the pool's, opened stage by stage; then the task alone."""
    stages = [
        replace(
            base,
            name=f"gates_res{number + 1}",
            model=Model("pag_resnet50", {**base.model.arguments, "weighting": "pag"}),
            epochs=40,  # proposal
            rate_factors=POOL_LAYERS,
            temperature=Temperature("constant", 0.5),
            target_density=density,
            density_weight=1e-3,  # proposal; released: 1e-5
            open_gates=GATED[number:],
        )
        for number in range(1, len(GATED) + 1)
    ]
    task_alone = replace(
        stages[-1],
        name="task_alone",
        epochs=EPOCHS,
        learning_rate=LAST_RATE * 10,  # released for surface normals: 1e-5
        rate_factors={"*.gate.*": 0.0},
        target_density=None,
        density_weight=0.0,
    )
    return (*stages, task_alone)


def _real(name: str, summary: str, expected: str, data: Data, *stages: Stage) -> Recipe:
    tasks = stages[0].model.arguments.get("tasks", ["segmentation"])
    depth, _ = SIZES[data.name]
    return Recipe(
        name=name,
        summary=summary,
        tasks=tuple(tasks),
        data=data,
        stages=stages,
        checkpoint_every=2000,
        log_every=50,
        thresholds=9,  # 99 take a minute for an image
        needs_weights=f"resnet{depth}",
        expected=f"{expected} (reported; not run here)",
    )


def _dense_tables() -> list[Recipe]:
    """Tables 5 to 7: baseline, w-Avg. and PAG on the tasks of each data set."""
    rows = {
        "nyuv2-segmentation": (
            NYUV2, "segmentation", "IoU 42.1", "IoU 46.3", "IoU 46.5",
        ),
        "stanford-segmentation": (
            STANFORD, "segmentation", "IoU 79.5", "IoU 83.7", "IoU 83.7",
        ),
        "cityscapes-segmentation": (
            CITYSCAPES, "segmentation", "IoU 73.8, iIoU 54.7", "IoU 75.8, iIoU 56.9",
            "IoU 75.7, iIoU 55.8",
        ),
        "nyuv2-depth": (
            NYUV2, "log_depth", "delta 71.1 / 93.2 / 98.5", "delta 74.5 / 94.4 / 98.8",
            "delta 75.1 / 94.4 / 98.8",
        ),
        "stanford-depth": (
            STANFORD, "log_depth", "delta 73.1 / 92.1 / 97.5", "delta 77.5 / 94.1 / 97.9",
            "delta 77.6 / 94.1 / 97.9",
        ),
        "cityscapes-depth": (
            CITYSCAPES, "log_depth", "delta 29.0 / 53.8 / 75.8", "delta 33.7 / 65.9 / 76.9",
            "delta 34.6 / 66.2 / 77.2",
        ),
        "nyuv2-normals": (
            NYUV2_NORMALS, "normals", "22.3 deg, within 34.4 / 62.5 / 74.4",
            "21.9 deg, within 35.9 / 63.8 / 75.3", "21.7 deg, within 36.1 / 64.2 / 75.5",
        ),
        "stanford-normals": (
            STANFORD, "normals", "19.0 deg, within 51.5 / 68.6 / 76.3",
            "16.5 deg, within 58.2 / 74.2 / 80.4", "16.5 deg, within 58.3 / 74.2 / 80.4",
        ),
    }  # fmt: skip
    recipes = []
    for name, (data, task, *expected) in rows.items():
        base = _base(data, (task,))
        variants: dict[str, tuple[Stage, ...]] = {"baseline": (base,)}
        for weighting in ("attention", "pag"):
            variants[weighting] = (base, _pooled(base, weighting))
        for (variant, stages), figure in zip(variants.items(), expected, strict=True):
            summary = f"{task} on {data.name}: {variant}, tables 5 to 7"
            recipes.append(_real(f"{name}-{variant}", summary, figure, data, *stages))
    return recipes


def _parsimony() -> list[Recipe]:
    """Table 8 on NYUv2, the surface normals of the released demo, and boundaries."""
    figures = {
        0.5: ("IoU 36.30", "IoU 37.78", "IoU 40.89"),
        0.7: ("IoU 37.69", "IoU 39.84", "IoU 43.61"),
        0.9: ("IoU 40.29", "IoU 41.27", "IoU 45.75"),
    }
    base = _base(NYUV2, ("segmentation",))
    pooled = _pooled(base, "pag")
    recipes = []
    for density, (truncated, skipping, gated) in figures.items():
        dropped = list(DROPPED[density])
        cut = replace(
            base,
            name="truncated",
            model=Model("truncated_resnet50", {**base.model.arguments, "dropped": dropped}),
        )
        skips = replace(
            base,
            name="skipping",
            model=Model("layer_skipping_resnet50", base.model.arguments),
            target_density=density,
            density_weight=1e-2,  # proposal
            density_form="budget",
        )
        name = f"nyuv2-{{}}-{density}"
        text = f"parsimony on NYUv2 at density {density}, table 8: {{}}"
        recipes += [
            _real(name.format("truncated"), text.format("truncated"), truncated, NYUV2, base, cut),
            _real(name.format("skipping"), text.format("layers skipped"), skipping, NYUV2, base,
                  skips),
            _real(name.format("pag"), text.format("PAG"), gated, NYUV2, base, pooled,
                  *_gated(base, density)),
        ]  # fmt: skip
    normals = _base(STANFORD, ("normals",))
    recipes.append(
        _real(
            "stanford-normals-pag-0.7",
            "surface normals with MP@Res5 and gates at 0.7, the released demo",
            "16.5 deg, within 58.3 / 74.2 / 80.4",
            STANFORD,
            normals,
            _pooled(normals, "pag"),
            *_gated(normals, 0.7),
        )
    )
    edges = _base(BSDS500, ("boundary",))
    recipes.append(
        _real("bsds500-baseline", "boundaries on BSDS500: plain network", "curves only", BSDS500,
              edges)
    )  # fmt: skip
    for density in (0.5, 0.7, 0.9):
        recipes.append(
            _real(
                f"bsds500-pag-{density}",
                f"boundaries on BSDS500 with gates at {density}",
                "curves only; ODS 0.792 in a third-party list, density unknown",
                BSDS500,
                edges,
                _pooled(edges, "pag"),
                *_gated(edges, density),
            )
        )
    return recipes


def _depth_aware() -> list[Recipe]:
    """Tables 2 and 3: pooling by depth, and recurrent refinement.

    Thresholds of depth for SUN RGB-D and Stanford are not known: those of NYUv2 are a proposal.
    """
    recipes = []
    for data, expected in (
        (NYUV2, {"true": "IoU 41.3", "predicted": "IoU 41.8", "loop1": "IoU 42.7",
                 "loop2": "IoU 43.1"}),
        (SUNRGBD, {"true": "IoU 42.2", "predicted": "IoU 42.3", "loop1": "IoU 44.0",
                   "loop2": "IoU 44.3"}),
        (STANFORD, {"true": "IoU 73.0", "predicted": "IoU 74.2", "loop1": "IoU 75.3",
                    "loop2": "IoU 76.0"}),
        (CITYSCAPES, {"average": "IoU 74.7", "true-tied": "IoU 74.8", "true": "IoU 75.3",
                      "predicted": "IoU 75.9", "loop1": "IoU 77.2", "loop2": "IoU 77.6"}),
    ):  # fmt: skip
        depth, classes = SIZES[data.name]
        trunk: dict[str, object] = {"depth": depth, "res6_channels": 512}
        if data.name == "cityscapes":
            trunk["stem"] = "three_convs"
        name = f"depth_aware_resnet{depth}"
        base = Stage(
            "average_tied",
            Model(name, {"classes": classes, "trunk": trunk, "weighting": "average",
                         "tied": True}),
            epochs=EPOCHS,
            learning_rate=FIRST_RATE,
            rate_factors=NEW_LAYERS,
            loss_form="authors",
        )  # fmt: skip
        for variant, figure in expected.items():
            stages = (base, *_depth_stages(base, variant, name))
            summary = f"pooling by depth on {data.name}: {variant}, tables 2 and 3"
            recipes.append(
                _real(f"{data.name}-depth-aware-{variant}", summary, figure, data, *stages)
            )
    return recipes


def _depth_stages(base: Stage, variant: str, name: str) -> list[Stage]:
    common = {key: base.model.arguments[key] for key in ("classes", "trunk")}
    if variant in ("average", "true", "true-tied"):
        weighting = "average" if variant == "average" else "true_depth"
        model = Model(name, {**common, "weighting": weighting, "tied": variant == "true-tied"})
        return [replace(base, name=variant, model=model)]
    model = Model(name, {**common, "weighting": "predicted_depth"})
    branch = replace(
        base,
        name="depth_branch",
        model=model,
        epochs=20,  # proposal
        trained=("pool.depth_branch.*",),
        frozen_statistics=True,
        stage_weights=((0.0, 1.0, 1.0),),
    )
    stages = [branch, replace(base, name="predicted", model=model)]
    loops = {"predicted": 0, "loop1": 1, "loop2": 2}[variant]
    for count in range(1, loops + 1):
        recurrent = Model(name.replace("depth_aware", "recurrent_depth"),
                          {**common, "loops": count})  # fmt: skip
        stages.append(
            replace(
                base,
                name=f"loop{count}",
                model=recurrent,
                learning_rate=LAST_RATE if count == loops else FIRST_RATE,
                trained=(
                    "trunk.layer4.*",
                    "trunk.res6.*",
                    "pool.*",
                    "classifier.*",
                    "refinement.*",
                ),
            )
        )
    return stages


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (*SCENE_RECIPES, *_dense_tables(), *_parsimony(), *_depth_aware())
}
