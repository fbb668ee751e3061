"""Builders: the one place where a whole network is put together, a function for each variant.

docs/models.md lists them with parameters and MACs. Every builder takes the trunk to build on, and
changes it; without one it makes ``resnet_trunk``, at output stride 8 with random weights. Pools
start from the weights they find, so load pretrained ones into the trunk first:

    trunk = resnet_trunk(50)
    load_weights(trunk, "resnet50.pth")
    model = pag_resnet50(trunk=trunk)
"""

from collections.abc import Sequence

from torch import nn

from perfconv.models.heads import make_heads
from perfconv.models.multi_scale import MultiScaleTrunk
from perfconv.models.parsers import DepthAwareParser, SceneParser
from perfconv.models.resnet import DEPTHS, BasicBlock, Bottleneck, ResNet
from perfconv.nn.depth_bins import CITYSCAPES_M, NYUV2_M, DepthBins
from perfconv.nn.depth_branch import DepthBranch
from perfconv.nn.depth_pool import DepthAwarePool
from perfconv.nn.dilation_pool import MultiDilationPool
from perfconv.nn.dropped_block import DroppedBlock
from perfconv.nn.gate import LayerGate
from perfconv.nn.gated_blocks import GatedBasicBlock, GatedBottleneck
from perfconv.nn.pooled_block import GatedPoolBottleneck
from perfconv.nn.recurrent import RecurrentRefinement

LAYERS = {"res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}
SEGMENTATION = ("segmentation",)
# Blocks that are dropped for about 0.93, 0.86 and 0.65 of the MACs: the rows of the deck's table.
DROPPED = {
    0.9: ("res2_3", "res3_4", "res4_6"),
    0.7: ("res4_4", "res4_5", "res4_6"),
    0.5: ("res3_2", "res3_3", "res3_4", "res4_4", "res4_5", "res4_6", "res5_3"),
}


# ---- trunks --------------------------------------------------------------------------------------


def resnet_trunk(
    depth: int = 50,
    *,
    output_stride: int = 8,
    stem: str = "7x7",
    stride_in_1x1: bool = False,
    normalization: str = "imagenet",
    res6_channels: int | None = None,
) -> ResNet:
    """A ResNet of depth 18, 34, 50 or 101 for dense prediction, all BatchNorms frozen."""
    if depth not in DEPTHS:
        raise ValueError(
            f"resnet_trunk: depth must be one of {', '.join(map(str, DEPTHS))}, got {depth}. "
            "Build another with ResNet."
        )
    return ResNet(
        *DEPTHS[depth],
        output_stride=output_stride,
        stem=stem,
        stride_in_1x1=stride_in_1x1,
        normalization=normalization,
        res6_channels=res6_channels,
        frozen_norms=("",),
    )


# ---- plain, and with pooling over dilations ------------------------------------------------------


def baseline_resnet50(
    classes: int = 40, *, tasks: Sequence[str] = SEGMENTATION, trunk: ResNet | None = None
) -> SceneParser:
    """The trunk and its heads: the deck's baseline."""
    return _parser(trunk or resnet_trunk(50), classes, tasks)


def multi_pool_resnet50(
    classes: int = 40,
    *,
    at: str = "res5",
    weighting: str = "attention",
    tasks: Sequence[str] = SEGMENTATION,
    trunk: ResNet | None = None,
) -> SceneParser:
    """MP@Res3 to MP@Res6 without gates: a :class:`MultiDilationPool` as ``insert_pool`` puts it.

    "attention" is the deck's w-Avg., "pag" its PAG; res5 its choice.
    """
    trunk = trunk or resnet_trunk(50, res6_channels=512 if at == "res6" else None)
    insert_pool(trunk, at, weighting=weighting)
    return _parser(trunk, classes, tasks)


def multi_scale_resnet50(
    classes: int = 40,
    *,
    scales: Sequence[float] = (0.5, 1.0),
    tasks: Sequence[str] = SEGMENTATION,
    trunk: ResNet | None = None,
) -> SceneParser:
    """MultiScale (input): attention over image scales instead of dilations."""
    trunk = trunk or resnet_trunk(50)
    heads = make_heads(trunk.feature_info, tasks, classes=classes)
    return SceneParser(MultiScaleTrunk(trunk, scales), heads)


# ---- pixel-wise attentional gating, and its baselines --------------------------------------------


def pag_resnet50(
    classes: int = 40,
    *,
    weighting: str = "pag",
    perforate_f3: bool = True,
    gates_pool: bool = False,
    at: str = "res5",
    tied: bool = False,
    tasks: Sequence[str] = SEGMENTATION,
    trunk: ResNet | None = None,
) -> SceneParser:
    """MP@Res5 and a gate in each of the 15 other bottlenecks: the deck's PAG network.

    ``gates_pool`` gives the block that holds the pool a gate too; ``at`` puts the pool elsewhere,
    as in ``insert_pool``, and ``tied`` gives it one kernel for all dilations.
    """
    trunk = trunk or resnet_trunk(50, res6_channels=512 if at == "res6" else None)
    return _pag(trunk, at, weighting, tied, perforate_f3, gates_pool, classes, tasks)


def pag_resnet101(
    classes: int = 19,
    *,
    weighting: str = "pag",
    perforate_f3: bool = True,
    gates_pool: bool = False,
    at: str = "res5",
    tied: bool = False,
    tasks: Sequence[str] = SEGMENTATION,
    trunk: ResNet | None = None,
) -> SceneParser:
    """The same on a ResNet-101, 32 gates: the likely network of the deck's Cityscapes rows."""
    trunk = trunk or resnet_trunk(101, res6_channels=512 if at == "res6" else None)
    return _pag(trunk, at, weighting, tied, perforate_f3, gates_pool, classes, tasks)


def gated_resnet50(
    classes: int = 40,
    *,
    perforate_f3: bool = True,
    tasks: Sequence[str] = SEGMENTATION,
    trunk: ResNet | None = None,
) -> SceneParser:
    """A gate in each of the 16 bottlenecks, and no pool."""
    trunk = trunk or resnet_trunk(50)
    gate_blocks(trunk, perforate_f3=perforate_f3)
    return _parser(trunk, classes, tasks)


def truncated_resnet50(
    classes: int = 40,
    *,
    dropped: Sequence[str] = DROPPED[0.9],
    tasks: Sequence[str] = SEGMENTATION,
    trunk: ResNet | None = None,
) -> SceneParser:
    """The baseline without some of its identity blocks; ``DROPPED`` has sets for three budgets."""
    trunk = trunk or resnet_trunk(50)
    drop_blocks(trunk, dropped)
    return _parser(trunk, classes, tasks)


def layer_skipping_resnet50(
    classes: int = 40,
    *,
    tasks: Sequence[str] = SEGMENTATION,
    trunk: ResNet | None = None,
) -> SceneParser:
    """One gate for each image and identity bottleneck, which skips the whole block.

    Train the gates under ``density_loss(..., form="budget")``; see there.
    """
    trunk = trunk or resnet_trunk(50)
    for layer, index, block in _blocks(trunk):
        if isinstance(block, Bottleneck) and block.downsample is None:
            gate = LayerGate(block.conv1.in_channels)
            layer[index] = GatedBottleneck(block, gate=gate)
    return _parser(trunk, classes, tasks)


# ---- depth-aware gating and recurrent refinement -------------------------------------------------


def depth_aware_resnet50(
    classes: int = 40,
    *,
    weighting: str = "predicted_depth",
    assignment: str = "soft",
    tied: bool = False,
    bins: DepthBins = NYUV2_M,
    trunk: ResNet | None = None,
) -> DepthAwareParser:
    """res6, a :class:`DepthAwarePool` and a classifier: the rows "average" to "predDepth"."""
    trunk = trunk or resnet_trunk(50, res6_channels=512)
    return _depth_aware(trunk, classes, weighting, assignment, tied, bins)


def depth_aware_resnet101(
    classes: int = 19,
    *,
    weighting: str = "predicted_depth",
    assignment: str = "soft",
    tied: bool = False,
    bins: DepthBins = CITYSCAPES_M,
    trunk: ResNet | None = None,
) -> DepthAwareParser:
    """The same on a ResNet-101 with the three-conv stem: the authors' Cityscapes network.

    Its depth branch has bins only: it predicts no log depth.
    """
    trunk = trunk or resnet_trunk(101, stem="three_convs", res6_channels=512)
    return _depth_aware(trunk, classes, weighting, assignment, tied, bins, has_regression=False)


def recurrent_depth_resnet50(
    classes: int = 40,
    *,
    loops: int = 2,
    loop_weighting: str = "predicted_depth",
    assignment: str = "soft",
    bins: DepthBins = NYUV2_M,
    trunk: ResNet | None = None,
) -> DepthAwareParser:
    """Depth-aware gating by predicted depth, then loops: "none", true or predicted depth there."""
    trunk = trunk or resnet_trunk(50, res6_channels=512)
    parser = _depth_aware(trunk, classes, "predicted_depth", assignment, False, bins)
    return _with_loops(parser, classes, loops, loop_weighting, assignment, bins)


def recurrent_depth_resnet101(
    classes: int = 19,
    *,
    loops: int = 2,
    loop_weighting: str = "predicted_depth",
    assignment: str = "soft",
    bins: DepthBins = CITYSCAPES_M,
    trunk: ResNet | None = None,
) -> DepthAwareParser:
    """The same on a ResNet-101 with the three-conv stem: the authors' Cityscapes network.

    Its depth branches have bins only, those of the loops begin with a 3x3.
    """
    trunk = trunk or resnet_trunk(101, stem="three_convs", res6_channels=512)
    parser = _depth_aware(
        trunk, classes, "predicted_depth", assignment, False, bins, has_regression=False
    )
    return _with_loops(
        parser,
        classes,
        loops,
        loop_weighting,
        assignment,
        bins,
        has_regression=False,
        depth_kernel=3,
    )


# ---- parts, for networks of one's own ------------------------------------------------------------


def insert_pool(trunk: ResNet, at: str, *, weighting: str = "pag", tied: bool = False) -> None:
    """Puts a :class:`MultiDilationPool` into the second block of a stage, or on top of res6.

    In a bottleneck the pool takes the place of the 3x3 with its BatchNorm and ReLU, and starts
    from their weights: load pretrained ones before.

    Args:
        trunk: changed in place.
        at: "res2" to "res5", or "res6".

    Raises:
        ValueError: the trunk has no such stage, or no second bottleneck there.
    """
    if at == "res6" and trunk.res6 is not None:
        channels = trunk.feature_info[-1].channels
        trunk.res6.append(MultiDilationPool(channels, weighting=weighting, tied=tied))
        return
    layer = trunk.get_submodule(LAYERS[at]) if at in LAYERS else ()
    block = layer[1] if len(layer) > 1 else None  # type: ignore[index,arg-type]
    if not isinstance(block, Bottleneck) or not isinstance(block.conv2, nn.Conv2d):
        raise ValueError(
            f"insert_pool: at must be a stage with a second bottleneck, or res6 of a trunk that "
            f"has it, got {at!r}. Choose res5, the authors' place."
        )
    block.conv2 = MultiDilationPool.from_conv(
        block.conv2, block.bn2, weighting=weighting, tied=tied
    )
    block.bn2 = nn.Identity()


def gate_blocks(trunk: ResNet, *, perforate_f3: bool = True, gates_pool: bool = False) -> None:
    """Gives every residual block of ``trunk`` an open gate, in place.

    Args:
        perforate_f3: of bottlenecks, see :class:`GatedBottleneck`.
        gates_pool: also the blocks that hold a pool.
    """
    for layer, index, block in _blocks(trunk):
        if isinstance(block, BasicBlock):
            layer[index] = GatedBasicBlock(block)
        elif isinstance(block, Bottleneck) and isinstance(block.conv2, nn.Conv2d):
            keeps_size = block.conv2.stride == (1, 1)
            layer[index] = GatedBottleneck(block, perforate_f3=perforate_f3 or not keeps_size)
        elif isinstance(block, Bottleneck) and gates_pool:
            layer[index] = GatedPoolBottleneck(block, perforate_f3=perforate_f3)


def drop_blocks(trunk: ResNet, names: Sequence[str]) -> None:
    """Puts a :class:`DroppedBlock` in the place of blocks of ``trunk``, as ``truncate`` does.

    The state dict keeps the names of the other blocks, so that weights of the whole trunk fit.

    Args:
        names: such as "res4_6", the sixth block of res4; only blocks whose shortcut is the input.

    Raises:
        ValueError: there is no such block, its shortcut is a projection, or it is gone already;
            then the trunk is as it was.
    """
    places = []
    for name in names:
        stage, _, number = name.partition("_")
        layer = trunk.get_submodule(LAYERS[stage]) if stage in LAYERS else nn.Sequential()
        index = int(number) - 1 if number.isdecimal() else -1
        assert isinstance(layer, nn.Sequential)
        is_there = 0 <= index < len(layer) and (layer, index) not in places
        if not is_there or getattr(layer[index], "downsample", False) is not None:
            raise ValueError(
                f"drop_blocks: names must be those of blocks without a projection, got {name!r}. "
                "The first block of a stage cannot be dropped, and none twice."
            )
        places.append((layer, index))
    for layer, index in places:
        layer[index] = DroppedBlock().train(layer[index].training)


def _blocks(trunk: ResNet) -> list[tuple[nn.Sequential, int, nn.Module]]:
    found = []
    for name in LAYERS.values():
        layer = trunk.get_submodule(name)
        assert isinstance(layer, nn.Sequential)
        found += [(layer, index, block) for index, block in enumerate(layer)]
    return found


def _parser(trunk: ResNet, classes: int, tasks: Sequence[str]) -> SceneParser:
    return SceneParser(trunk, make_heads(trunk.feature_info, tasks, classes=classes))


def _pag(
    trunk: ResNet,
    at: str,
    weighting: str,
    tied: bool,
    perforate_f3: bool,
    gates_pool: bool,
    classes: int,
    tasks: Sequence[str],
) -> SceneParser:
    insert_pool(trunk, at, weighting=weighting, tied=tied)
    gate_blocks(trunk, perforate_f3=perforate_f3, gates_pool=gates_pool)
    return _parser(trunk, classes, tasks)


def _depth_aware(
    trunk: ResNet,
    classes: int,
    weighting: str,
    assignment: str,
    tied: bool,
    bins: DepthBins,
    *,
    has_regression: bool = True,
) -> DepthAwareParser:
    res5, res6 = trunk.feature_info[-2:]
    branch = None
    if weighting == "predicted_depth":
        branch = DepthBranch(res5.channels, has_regression=has_regression)
    pool = DepthAwarePool(
        res6.channels,
        weighting=weighting,
        assignment=assignment,
        tied=tied,
        bins=bins,
        depth_branch=branch,
    )
    return DepthAwareParser(trunk, pool, classes)


def _with_loops(
    parser: DepthAwareParser,
    classes: int,
    loops: int,
    weighting: str,
    assignment: str,
    bins: DepthBins,
    *,
    has_regression: bool = True,
    depth_kernel: int = 1,
) -> DepthAwareParser:
    channels = parser.trunk.feature_info[-1].channels
    parser.refinement = RecurrentRefinement(
        channels,
        classes,
        channels=channels,
        loops=loops,
        weighting=weighting,
        assignment=assignment,
        bins=bins,
        has_regression=has_regression,
        depth_kernel=depth_kernel,
    )
    return parser
