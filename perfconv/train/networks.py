"""Networks by name and plain arguments: what recipes and checkpoints write down.

Names are those of ``perfconv.models``' builders, and ``small_depth_aware``. Arguments are what JSON
can hold; two of them stand for objects:

- "trunk": {"depth": 50, ...} for ``resnet_trunk``, or {"block": "basic", "depths": [1, 1, 1, 1],
  "width": 12, ...} for ``ResNet``.
- "bins": [1.5, 2.1, 3.0, 4.7], thresholds of depth in metres.
"""

import inspect
import re
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from perfconv import models
from perfconv.models import DepthAwareParser, SceneParser, resnet_trunk
from perfconv.models.resnet import BasicBlock, Bottleneck, ResNet
from perfconv.nn import DepthAwarePool, DepthBins, DepthBranch, RecurrentRefinement
from perfconv.nn.dilation_branches import Branch, BranchPool, DilationBranches

Network = SceneParser | DepthAwareParser
BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


def small_depth_aware(
    classes: int,
    *,
    trunk: ResNet,
    bins: DepthBins,
    dilations: Sequence[int] = (1, 2, 3, 4, 6),
    weighting: str = "predicted_depth",
    assignment: str = "soft",
    tied: bool = False,
    loops: int = 0,
    loop_weighting: str = "predicted_depth",
    dropout: float = 0.1,
) -> DepthAwareParser:
    """``depth_aware_resnet50`` and ``recurrent_depth_resnet50`` with dilations to choose.

    Small images have small feature maps, on which dilation 16 would see nothing but zeros.

    Args:
        classes: of the classifier.
        trunk: with res6.
        bins: of depth, as many as ``dilations`` where depth decides.
        dilations, weighting, assignment, tied: of the pool, see :class:`DepthAwarePool`.
        loops: of recurrent refinement; 0 for the feed-forward network alone.
        loop_weighting: of their pool.
        dropout: before the classifiers.
    """
    res5, res6 = trunk.feature_info[-2:]
    branch = None
    if weighting == "predicted_depth":
        branch = DepthBranch(res5.channels, len(dilations), dropout=dropout)
    pool = DepthAwarePool(
        res6.channels,
        dilations,
        weighting,
        assignment,
        tied,
        bins=bins,
        depth_branch=branch,
    )
    refinement = None
    if loops:
        refinement = RecurrentRefinement(
            res6.channels,
            classes,
            channels=res6.channels,
            loops=loops,
            weighting=loop_weighting,
            assignment=assignment,
            dilations=dilations,
            bins=bins,
            dropout=dropout,
        )
    return DepthAwareParser(trunk, pool, classes, refinement=refinement, dropout=dropout)


NETWORKS: dict[str, Callable[..., Network]] = {
    **{name: vars(models)[name] for name in models.__all__ if re.search(r"_resnet\d+$", name)},
    "small_depth_aware": small_depth_aware,
}


def build_network(name: str, arguments: Mapping[str, object]) -> Network:
    """The network of that name, with random weights from torch's global generator.

    Args:
        name: of ``NETWORKS``.
        arguments: of the builder; "trunk" and "bins" as this file's head says.

    Raises:
        ValueError: no such network, or an argument that it does not have.

    Example:
        >>> trunk = {"block": "bottleneck", "depths": [1, 1, 1, 2], "width": 8, "output_stride": 8}
        >>> network = build_network("pag_resnet50", {"classes": 5, "trunk": trunk})
        >>> len(perfconv.gates(network))
        4
    """
    if name not in NETWORKS:
        raise ValueError(
            f"build_network: name must be one of {', '.join(sorted(NETWORKS))}, got {name!r}."
        )
    builder = NETWORKS[name]
    given = dict(arguments)
    trunk = given.get("trunk")
    if isinstance(trunk, Mapping):
        given["trunk"] = _trunk(trunk)
    if isinstance(given.get("bins"), Sequence):
        given["bins"] = DepthBins(tuple(given["bins"]))  # type: ignore[arg-type]
    _check_arguments(name, builder, given)
    return builder(**given)


def tasks_of(network: Network) -> tuple[str, ...]:
    """What it predicts."""
    if isinstance(network, SceneParser):
        return tuple(network.heads)
    pools = [module for module in network.modules() if isinstance(module, DepthAwarePool)]
    branches = [pool.depth_branch for pool in pools]
    predicts_depth = any(b is not None and b.regression is not None for b in branches)
    return ("segmentation", "log_depth") if predicts_depth else ("segmentation",)


def check_network(name: str, arguments: Mapping[str, object], tasks: Sequence[str]) -> None:
    """Builds the network without memory, so that a recipe's last stage is checked before its first.

    Raises:
        ValueError: it cannot be built, or does not predict one of ``tasks``.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="for .*copying from a non-meta parameter")
        try:
            found = tasks_of(build_network(name, arguments))
        except TypeError as error:
            raise ValueError(
                f"build_network: {name} got an argument of another type: {error}"
            ) from error
    if missing := sorted(set(tasks) - set(found)):
        raise ValueError(
            f"the recipe's tasks must be among those of {name}, {', '.join(found)}; got "
            f"{', '.join(missing)}. Change tasks, or the model's argument of that name."
        )


def _trunk(arguments: Mapping[str, object]) -> ResNet:
    given = dict(arguments)
    if "depth" in given:
        _check_arguments("trunk", resnet_trunk, given)
        return resnet_trunk(**given)  # type: ignore[arg-type]
    block = given.pop("block", "basic")
    if block not in BLOCKS:
        raise ValueError(
            f"build_network: the trunk's block must be 'basic' or 'bottleneck', got {block!r}."
        )
    given["block"] = BLOCKS[block]
    _check_arguments("trunk", ResNet, given)
    return ResNet(**given)  # type: ignore[arg-type]


def _check_arguments(
    name: str, function: Callable[..., object], given: Mapping[str, object]
) -> None:
    try:
        inspect.signature(function).bind(**given)
    except TypeError as error:
        known = ", ".join(inspect.signature(function).parameters)
        raise ValueError(
            f"build_network: {name} got arguments that do not fit ({error}). It has {known}."
        ) from None


@torch.no_grad()
def transfer_weights(source: nn.Module, target: nn.Module) -> list[str]:
    """Starts ``target`` at the weights of ``source``, the network of the stage before.

    Parameters and buffers of the same name and shape are copied. The branches of a pool that
    ``source`` does not have start at the convolution and BatchNorm in whose place it is; those of a
    depth-aware pool with other dilations at the first branch of the one before. Gates stay open.

    Returns:
        The names in ``target`` that keep their own initial values.

    Source: Kong and Fowlkes 2018 and 2019, released code: each stage begins at the last one's
        checkpoint, new branches at the kernel that was there.
    """
    old, new = source.state_dict(), target.state_dict()
    common = {
        name: value for name, value in old.items() if name in new and value.shape == new[name].shape
    }
    target.load_state_dict(common, strict=False)
    fresh = set(new) - set(common)
    modules = dict(source.named_modules())
    for name, pool in target.named_modules():
        if not isinstance(pool, BranchPool) or not isinstance(pool.branches, DilationBranches):
            continue
        of_branches = {f"{name}.branches.{key}" for key in pool.branches.state_dict()}
        found = _origin(modules, name)
        if found is not None and of_branches & fresh:
            pool.branches.copy_from(*found)
            fresh -= of_branches
    return sorted(fresh)


def _origin(
    modules: Mapping[str, nn.Module], name: str
) -> tuple[nn.Conv2d, nn.Module | None] | None:
    """The convolution and BatchNorm that were where a pool is now."""
    before = modules.get(name)
    if isinstance(before, nn.Conv2d):
        stem, _, leaf = name.rpartition(".")
        return before, modules.get(f"{stem}.{leaf.replace('conv', 'bn')}")
    if isinstance(before, BranchPool) and isinstance(before.branches, DilationBranches):
        first = next(child for child in before.branches.children() if isinstance(child, Branch))
        return first.conv, first.norm
    return None
