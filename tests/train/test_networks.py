"""Networks by name: every name builds, errors name what fits, stages hand their weights on."""

import pytest
import torch

from perfconv.models import DepthAwareParser, SceneParser
from perfconv.train.networks import NETWORKS, build_network, transfer_weights

BOTTLENECKS = {"block": "bottleneck", "depths": [1, 1, 1, 2], "width": 4, "output_stride": 8}
BASIC = {"block": "basic", "depths": [1, 1, 1, 1], "width": 4, "output_stride": 8}
WITH_RES6 = {**BASIC, "res6_channels": 8}
SPECIAL = {
    "truncated_resnet50": {"trunk": BOTTLENECKS, "dropped": ["res5_2"]},
    "small_depth_aware": {"trunk": WITH_RES6, "bins": [2.0, 3.0, 5.0, 9.0], "loops": 1},
}


def arguments(name: str) -> dict:
    if name in SPECIAL:
        return {"classes": 5, **SPECIAL[name]}
    has_res6 = "depth" in name
    return {"classes": 5, "trunk": WITH_RES6 if has_res6 else BOTTLENECKS}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_name_builds(name: str) -> None:
    network = build_network(name, arguments(name)).eval()
    image = torch.rand(1, 3, 32, 40)
    with torch.no_grad():
        if isinstance(network, SceneParser):
            assert network(image)["segmentation"].shape == (1, 5, 32, 40)
        else:
            assert network(image)[-1].segmentation.shape == (1, 5, 32, 40)


def test_a_trunk_by_depth() -> None:
    network = build_network("baseline_resnet50", {"classes": 3, "trunk": {"depth": 18}})
    assert network.trunk.feature_info[-1].channels == 512


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("resnet", {}, "name must be one of baseline_resnet50"),
        ("baseline_resnet50", {"class": 3}, "baseline_resnet50 got arguments that do not fit"),
        ("baseline_resnet50", {"trunk": {"block": "dense"}}, "must be 'basic' or 'bottleneck'"),
        ("baseline_resnet50", {"trunk": {"depth": 18, "size": 3}}, "trunk got arguments"),
    ],
)
def test_errors(name: str, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(name, given)


def test_a_pool_starts_at_the_convolution_before_it() -> None:
    plain = build_network("baseline_resnet50", {"classes": 5, "trunk": BOTTLENECKS})
    block = plain.trunk.layer4[1]
    block.bn2.running_mean.normal_()
    pooled = build_network("multi_pool_resnet50", {"classes": 5, "trunk": BOTTLENECKS})
    fresh = transfer_weights(plain, pooled)
    assert fresh
    assert all(".conv2.gate." in name for name in fresh)
    for branch in pooled.trunk.layer4[1].conv2.branches.children():
        assert torch.equal(branch.conv.weight, block.conv2.weight)
        assert torch.equal(branch.norm.running_mean, block.bn2.running_mean)
    assert torch.equal(pooled.trunk.conv1.weight, plain.trunk.conv1.weight)


def test_gates_come_last_and_open() -> None:
    pooled = build_network("multi_pool_resnet50", {"classes": 5, "trunk": BOTTLENECKS}).eval()
    gated = build_network(
        "pag_resnet50", {"classes": 5, "trunk": BOTTLENECKS, "weighting": "attention"}
    ).eval()
    fresh = transfer_weights(pooled, gated)
    assert len(fresh) == 4 * 2
    assert all(".gate.conv." in name for name in fresh)
    image = torch.rand(1, 3, 32, 40)
    with torch.no_grad():
        torch.testing.assert_close(gated(image)["segmentation"], pooled(image)["segmentation"])


def test_depth_aware_branches_start_at_one_kernel() -> None:
    common = {"classes": 5, "trunk": WITH_RES6, "bins": [2.0, 3.0, 5.0, 9.0]}
    plain = build_network("small_depth_aware", {**common, "dilations": [1], "weighting": "average"})
    aware = build_network("small_depth_aware", common)
    assert isinstance(plain, DepthAwareParser)
    fresh = transfer_weights(plain, aware)
    assert all(name.startswith("pool.depth_branch.") for name in fresh)
    kernel = plain.pool.branches.dilation1.conv.weight
    for branch in aware.pool.branches.children():
        assert torch.equal(branch.conv.weight, kernel)
    again = build_network("small_depth_aware", common)
    assert transfer_weights(aware, again) == []
    assert all(
        torch.equal(a, b) for a, b in zip(aware.parameters(), again.parameters(), strict=True)
    )
