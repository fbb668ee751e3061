"""The authors' experiments in small, on ``PerspectiveScenes``: half a minute each on one core.

Groups (a) to (e) are those of ``tools/experiments.py``, which runs them with several seeds. Scenes,
their size and the depth bins (quantiles of the training scenes' depth) were fixed before the first
comparison; so were the networks, steps and learning rates, which are the same in all of a group.

Feature maps have 8 x 12 pixels, so dilations are 1, 2, 3, 4, 6 instead of 1 to 16 or 10.
"""

from dataclasses import replace

from perfconv.train.config import Data, Model, Recipe, Stage, Temperature

CLASSES = 20
STEPS, BASE_STEPS, LATER_STEPS = 400, 300, 200  # of a single stage; of a first and a later one
SCENES = Data(
    "scenes",
    options={"size": [64, 96], "kind": "both", "length": 400, "test_length": 100},
    augmentation={"gamma_spread": 0, "colour_share": 0, "rotate_share": 0, "scale_share": 0},
)
BINS_M = [3.4, 4.6, 6.2, 13.9]
DILATIONS = [1, 2, 3, 4, 6]
BASIC_TRUNK = {
    "block": "basic",
    "depths": [1, 1, 1, 1],
    "width": 12,
    "output_stride": 8,
    "res6_channels": 48,
}
BOTTLENECK_TRUNK = {
    "block": "bottleneck",
    "depths": [2, 2, 3, 4],
    "width": 8,
    "output_stride": 8,
    "res6_channels": 48,  # so that the head's hidden layer is a small share of the MACs
    "res6_kernel": 1,
}
STAGE = Stage(
    "train",
    Model("small_depth_aware"),
    steps=STEPS,
    batch_size=8,
    optimizer="adamw",
    learning_rate=2e-3,
    weight_decay=1e-4,
    # Feed-forward pass, loop 1, loop 2: segmentation, depth bins, log depth.
    stage_weights=((1.0, 0.2, 0.1), (1.0, 0.2, 0.1), (1.0, 0.2, 0.1)),
)
TASKS = ("segmentation", "log_depth", "normals", "boundary")
DENSITIES = (0.5, 0.7, 0.9)
# Blocks dropped for about the executed MACs of PAG at each density (random masks: 46, 43 and 39
# million of 48; without any dropped it is 43, since the pool's gate costs 4).
DROPPED = {
    0.9: ["res3_2"],
    0.7: ["res2_2", "res3_2", "res4_2"],
    0.5: ["res2_2", "res3_2", "res4_2", "res4_3"],
}


def _recipe(
    name: str, summary: str, *stages: Stage, tasks: tuple[str, ...] = ("segmentation",)
) -> Recipe:
    return Recipe(
        name=f"scenes-{name}",
        summary=f"made-up scenes: {summary}",
        tasks=tasks,
        data=SCENES,
        stages=stages,
        checkpoint_every=100,
        log_every=10,
        thresholds=9,
        pictures=0,
    )


def _depth_aware(**arguments: object) -> Stage:
    common = {"classes": CLASSES, "trunk": BASIC_TRUNK, "bins": BINS_M, "dilations": DILATIONS}
    return replace(STAGE, model=Model("small_depth_aware", {**common, **arguments}))


def _weightings() -> list[Recipe]:
    """(a) What decides the receptive field."""
    return [
        _recipe("average", "(a) dilations averaged", _depth_aware(weighting="average")),
        _recipe("attention", "(a) weighted by attention", _depth_aware(weighting="attention")),
        _recipe(
            "true-depth-tied",
            "(a) weighted by true depth, one kernel",
            _depth_aware(weighting="true_depth", tied=True),
        ),
        _recipe("true-depth", "(a) weighted by true depth", _depth_aware(weighting="true_depth")),
        _recipe("predicted-depth", "(a) weighted by predicted depth", _depth_aware()),
    ]


def _loops() -> list[Recipe]:
    """(b) Recurrent loops, with and without depth in them; 0 loops is "predicted-depth" of (a)."""
    return [
        _recipe(
            f"loops-{loops}-{name}",
            f"(b) {loops} loops, {name} in them",
            _depth_aware(loops=loops, loop_weighting=weighting),
        )
        for loops in (1, 2)
        for name, weighting in (("plain", "none"), ("depth", "predicted_depth"))
    ]


def _parser_stage(name: str, builder: str, task: str, **arguments: object) -> Stage:
    """Of the bottleneck trunk; the first stage learns the BatchNorm statistics, later ones keep."""
    trunk: dict[str, object] = dict(BOTTLENECK_TRUNK)
    if name != "base":
        trunk["frozen_norms"] = [""]
    return replace(
        STAGE,
        name=name,
        model=Model(builder, {"classes": CLASSES, "tasks": [task], "trunk": trunk, **arguments}),
        steps=BASE_STEPS if name == "base" else LATER_STEPS,
        learning_rate=2e-3 if name == "base" else 1e-3,
        gate_rate_factor=10.0,
        stage_weights=(),
    )


def _positions() -> list[Recipe]:
    """(c) Where the pool goes; no pool, and res5, are "baseline" and "attention" of (d)."""
    base = _parser_stage("base", "baseline_resnet50", "segmentation")
    recipes = []
    for place in ("res3", "res4", "res6"):
        pool = _parser_stage("pool", "multi_pool_resnet50", "segmentation", at=place)
        recipes.append(_recipe(f"pool-{place}", f"(c) pool at {place}", base, pool))
    return recipes


def _tasks() -> list[Recipe]:
    """(d) No pool, a pool by attention, and by hard choice, for each task."""
    recipes = []
    for task in TASKS:
        base = _parser_stage("base", "baseline_resnet50", task)
        plain = _parser_stage("plain", "baseline_resnet50", task)
        soft = _parser_stage("attention", "multi_pool_resnet50", task)
        hard = replace(
            _parser_stage("pag", "multi_pool_resnet50", task, weighting="pag"),
            temperature=Temperature("exponential", 1.0, 0.2, share=0.8),
        )
        name = task.replace("_", "-")
        recipes += [
            _recipe(f"{name}-baseline", f"(d) {task}, no pool", base, plain, tasks=(task,)),
            _recipe(f"{name}-attention", f"(d) {task}, pool by attention", base, soft,
                    tasks=(task,)),
            _recipe(f"{name}-pag", f"(d) {task}, pool by hard choice", base, hard, tasks=(task,)),
        ]  # fmt: skip
    return recipes


def _densities() -> list[Recipe]:
    """(e) Fewer computations: blocks dropped, layers skipped, pixels gated.

    At density 1 the pool alone is "segmentation-pag", "boundary-pag" of (d).
    """
    recipes = []
    for task in ("segmentation", "boundary"):
        base = _parser_stage("base", "baseline_resnet50", task)
        for density in DENSITIES:
            cut = _parser_stage("truncated", "truncated_resnet50", task, dropped=DROPPED[density])
            skips = replace(
                _parser_stage("skipping", "layer_skipping_resnet50", task),
                target_density=density,
                density_weight=1.0,
                density_form="budget",
            )
            gated = replace(
                _parser_stage("pag", "pag_resnet50", task, weighting="pag"),
                temperature=Temperature("exponential", 1.0, 0.2, share=0.8),
                target_density=density,
                density_weight=0.1,
                density_ramp=0.3,
            )
            for name, stage in (("truncated", cut), ("skipping", skips), ("pag", gated)):
                recipes.append(
                    _recipe(
                        f"{task}-{name}-{density}",
                        f"(e) {task} at density {density}: {name}",
                        base,
                        stage,
                        tasks=(task,),
                    )
                )
    return recipes


def _shipped() -> Recipe:
    """The network that ships with the package, ``perfconv/train/scenes_parser.safetensors``."""
    tasks = ["segmentation", "log_depth", "boundary"]
    trunk: dict[str, object] = {
        **BOTTLENECK_TRUNK,
        "depths": [1, 2, 2, 2],
        "width": 6,
    }
    common = {"classes": CLASSES, "tasks": tasks}
    base = replace(
        STAGE,
        name="base",
        model=Model("baseline_resnet50", {**common, "trunk": trunk}),
        steps=1200,
        stage_weights=(),
    )
    frozen = {**trunk, "frozen_norms": [""]}
    gated = replace(
        base,
        name="pag",
        model=Model("pag_resnet50", {**common, "trunk": frozen, "tied": True}),
        steps=600,
        learning_rate=1e-3,
        gate_rate_factor=10.0,
        temperature=Temperature("exponential", 1.0, 0.2, share=0.8),
        target_density=0.5,
        density_weight=0.1,
        density_ramp=0.3,
    )
    scenes = Data(
        "scenes",
        options={"size": [96, 128], "kind": "both", "length": 1200, "test_length": 100},
        crop_size=(64, 96),
        augmentation={"rotate_share": 0, "scale_share": 0.5, "scale_range": [0.75, 1.5]},
    )
    recipe = _recipe("parser", "the network that ships", base, gated, tasks=tuple(tasks))
    return replace(recipe, data=scenes, thresholds=9, pictures=4, checkpoint_every=250)


SCENE_RECIPES = [
    *_weightings(),
    *_loops(),
    *_positions(),
    *_tasks(),
    *_densities(),
    _shipped(),
]
