"""Named networks: golden counts, a training step and a prediction each, compile and export."""

import pytest
import torch
import torch.nn.functional as F
from named_networks import VARIANTS, depth_for, narrow_network, narrow_trunk, table
from networks import randomized
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import perfconv
from perfconv.models import builders
from perfconv.models.builders import (
    depth_aware_resnet50,
    drop_blocks,
    gate_blocks,
    insert_pool,
    pag_resnet50,
    recurrent_depth_resnet50,
    resnet_trunk,
)
from perfconv.models.heads import DepthHead, make_heads, upsample
from perfconv.models.multi_scale import MultiScaleTrunk
from perfconv.models.parsers import DepthAwareParser, StageOutput
from perfconv.models.resnet import Bottleneck, FeatureInfo, ResNet
from perfconv.nn import DepthAwarePool, MultiDilationPool, record_gates

# ---- counts --------------------------------------------------------------------------------------


def macs(model: nn.Module) -> int:
    return perfconv.flops.count(model.eval(), torch.empty(1, 3, 425, 560)).dense_macs


@pytest.mark.parametrize(
    ("stride_in_1x1", "expected"), [(True, 96_096_165_760), (False, 96_463_167_360)]
)
def test_macs_of_the_deck(stride_in_1x1: bool, expected: int) -> None:
    """425x560, 40 classes: trunk and head 95.6e9, attention branch, 15 gates."""
    with torch.device("meta"):
        model = pag_resnet50(trunk=resnet_trunk(50, stride_in_1x1=stride_in_1x1))
        assert macs(model) == expected
    assert len(perfconv.gates(model)) == 15
    assert sum(p.numel() for p in model.parameters()) == 36_504_877


def test_numbers_of_gates() -> None:
    with torch.device("meta"):
        assert len(perfconv.gates(builders.gated_resnet50())) == 16
        assert len(perfconv.gates(builders.pag_resnet50(gates_pool=True))) == 16
        assert len(perfconv.gates(builders.layer_skipping_resnet50())) == 12
        assert len(perfconv.gates(builders.pag_resnet101())) == 32


@pytest.mark.slow
def test_the_table_in_the_docs_is_up_to_date() -> None:
    assert table().main(["--check"]) == 0


# ---- every builder trains a step and predicts ----------------------------------------------------


def loss_of(output: dict[str, Tensor] | list[StageOutput]) -> Tensor:
    """Something every output has a part in."""
    if isinstance(output, dict):
        return sum((value * value[..., :1, :1].detach()).mean() for value in output.values())
    losses = [stage.segmentation.square().mean() for stage in output]
    for stage in output:
        if stage.depth is not None:
            losses += [d.square().mean() for d in stage.depth if d is not None]
    return sum(losses)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.call)
def test_a_training_step_and_a_prediction(variant) -> None:
    model = narrow_network(variant).train()
    images = torch.rand(1, 3, 41, 56, generator=torch.Generator().manual_seed(1))
    depth = depth_for(variant, images)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with record_gates(model) as record:
        loss = loss_of(model(images, *depth))
        if record:
            loss = loss + perfconv.losses.density_loss(record, 0.7)
    loss.backward()
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(moved) >= 0.8 * len(moved)
    model.eval()
    with torch.no_grad():
        is_depth_aware = isinstance(model, DepthAwareParser)
        found = model.predict(images, *depth) if is_depth_aware else model(images)
    for task, value in found.items():
        assert value.shape[2:] == (41, 56), task
        assert value.isfinite().all(), task


# ---- parts ---------------------------------------------------------------------------------------


def test_the_pool_starts_from_the_weights_of_the_block() -> None:
    trunk = narrow_trunk()
    weight = trunk.layer4[1].conv2.weight.detach().clone()
    insert_pool(trunk, "res5")
    pool = trunk.layer4[1].conv2
    assert isinstance(pool, MultiDilationPool)
    assert torch.equal(pool.branches.dilation1.conv.weight, weight)
    gate_blocks(trunk)
    assert list(perfconv.gates(trunk)) == [
        f"layer{k}.{i}" for k, i in [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (4, 0)]
    ]
    for at in ("res2", "res5", "res6", "stem"):  # one block; a pool already; no res6; no such
        with pytest.raises(ValueError, match="insert_pool: at must be a stage"):
            insert_pool(trunk, at)


def test_a_gated_network_with_open_gates_is_the_plain_one() -> None:
    images = torch.rand(1, 3, 41, 56)
    plain = builders.baseline_resnet50(5, trunk=narrow_trunk()).eval()
    gated = builders.gated_resnet50(5, trunk=narrow_trunk()).eval()
    gated.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(gated(images), plain(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("at", ["res3", "res6"])
def test_gates_around_a_pool_elsewhere(at: str) -> None:
    trunk = narrow_trunk(16 if at == "res6" else None)
    model = pag_resnet50(5, at=at, trunk=trunk).eval()
    assert len(perfconv.gates(model)) == (7 if at == "res6" else 6)
    with record_gates(model) as record, torch.no_grad():
        assert model(torch.rand(1, 3, 41, 56))["segmentation"].shape == (1, 5, 41, 56)
    assert [call.name for call in record.choices] == [
        {"res3": "trunk.layer2.1.conv2", "res6": "trunk.res6.3"}[at]
    ]


def test_dropped_blocks() -> None:
    trunk = narrow_trunk()
    whole = trunk.state_dict()
    drop_blocks(trunk, ("res3_2",))
    assert isinstance(trunk.layer2[1], perfconv.nn.DroppedBlock)
    assert trunk.state_dict().keys() == {key for key in whole if not key.startswith("layer2.1.")}
    gate_blocks(trunk)
    assert "layer2.1" not in perfconv.gates(trunk)
    for names in (["res4_1"], ["res3_2"], ["res9_1"], ["layer4"], ["res5_1"]):
        with pytest.raises(ValueError, match="drop_blocks: names must be those of blocks"):
            drop_blocks(trunk, names)


def test_both_ways_of_truncating_are_one() -> None:
    images = torch.rand(1, 3, 41, 56)
    plain = builders.baseline_resnet50(5, trunk=narrow_trunk()).eval()
    by_budget = perfconv.truncate(plain, images, budget=0.999, blocks=["trunk.layer2.1"])
    by_name = builders.truncated_resnet50(5, dropped=("res3_2",), trunk=narrow_trunk()).eval()
    by_name.load_state_dict(by_budget.state_dict())
    with torch.no_grad():
        assert torch.equal(by_name(images)["segmentation"], by_budget(images)["segmentation"])


@pytest.mark.parametrize("size", [(41, 56), (40, 56), (33, 33)])
def test_upsampling_is_the_authors_transposed_convolution(size: tuple[int, int]) -> None:
    """Away from the border, where theirs fades to 0."""
    small = torch.randn(1, 2, -(-size[0] // 8), -(-size[1] // 8))
    ramp = 1 - (torch.arange(16) - 7.5).abs() / 8
    kernel = (ramp[:, None] * ramp)[None, None].expand(2, 1, 16, 16)
    theirs = F.conv_transpose2d(small, kernel, stride=8, padding=4, groups=2)
    found = upsample(small, 8, size)
    assert found.shape[2:] == size
    theirs = theirs[..., : size[0], : size[1]]
    torch.testing.assert_close(found[..., 4:-8, 4:-8], theirs[..., 4:-8, 4:-8])


def test_all_tasks_from_one_trunk() -> None:
    model = pag_resnet50(5, tasks=("segmentation", "log_depth", "normals", "boundary"),
                         trunk=narrow_trunk())  # fmt: skip
    images = torch.rand(2, 3, 33, 49)
    model.train()
    assert model(images)["boundary_sides"].shape == (2, 4, 33, 49)
    model.eval()
    with torch.no_grad():
        found = model(images)
    assert {task: value.size(1) for task, value in found.items()} == {
        "segmentation": 5, "log_depth": 1, "normals": 3, "boundary": 1,
    }  # fmt: skip
    torch.testing.assert_close(found["normals"].norm(dim=1), torch.ones(2, 33, 49))
    merged = perfconv.models.predict_augmented(model, images)
    assert set(merged) == set(found)


def test_scales_are_weighted_for_each_pixel() -> None:
    trunk = MultiScaleTrunk(narrow_trunk(), (1.0, 0.5)).eval()
    images = torch.rand(1, 3, 33, 40)
    with torch.no_grad():
        found = trunk(images)
        single = trunk.trunk(images)
        half = F.interpolate(images, size=(16, 20), mode="bilinear", antialias=True)
        other = F.interpolate(trunk.trunk(half)["res5"], size=(5, 5), mode="bilinear")
        weights = trunk.gate(single["res5"]).logits.softmax(1)
    expected = weights[:, :1] * single["res5"] + weights[:, 1:] * other
    torch.testing.assert_close(found["res5"], expected)
    assert torch.equal(found["res4"], single["res4"])
    with pytest.raises(ValueError, match="scales must be above 0 and hold 1"):
        MultiScaleTrunk(narrow_trunk(), (0.5, 2.0))


def test_blurred_depth() -> None:
    head = DepthHead(FeatureInfo("res5", 4, 8), hidden_channels=4, blur_radius=1)
    features = {"res5": torch.randn(1, 4, 3, 3)}
    head.eval()
    blurred = head(features, (20, 24))["log_depth"]
    head.blur_radius = 0
    sharp = head(features, (20, 24))["log_depth"]
    torch.testing.assert_close(blurred[0, 0, 5, 7], sharp[0, 0, 4:7, 6:9].mean())
    model = depth_aware_resnet50(4, trunk=narrow_trunk(16)).eval()
    images = torch.rand(1, 3, 24, 32)
    with torch.no_grad():
        sharp = model.predict(images)["log_depth"]
        model.blur_radius = 2
        found = model.predict(images)["log_depth"]
    torch.testing.assert_close(found[0, 0, 9, 9], sharp[0, 0, 7:12, 7:12].mean())


def test_merged_predictions() -> None:
    model = recurrent_depth_resnet50(4, trunk=narrow_trunk(16)).eval()
    images = torch.rand(1, 3, 33, 40)
    with torch.no_grad():
        stages = model(images)
        last, mean = (model.predict(images, merging=how) for how in ("last", "mean"))
    assert len(stages) == 3
    assert torch.equal(last["segmentation"], stages[-1].segmentation)
    expected = torch.stack([stage.segmentation.softmax(1) for stage in stages]).mean(0)
    torch.testing.assert_close(mean["segmentation"].softmax(1), expected)
    assert mean["log_depth"].shape == (1, 1, 33, 40)


def test_depth_is_of_the_last_stage_that_predicts_it() -> None:
    trunk = narrow_trunk(16)
    model = recurrent_depth_resnet50(4, loop_weighting="none", trunk=trunk).eval()
    images = torch.rand(1, 3, 32, 40)
    with torch.no_grad():
        first = model(images)[0].depth.log_depth
        found = model.predict(images)["log_depth"]
    assert torch.equal(found, upsample(first, 8, (32, 40)))


def test_errors() -> None:
    with pytest.raises(ValueError, match="depth must be one of 18, 34, 50, 101, got 20"):
        resnet_trunk(20)
    for tasks in ((), "segmentation", ("labels",)):
        with pytest.raises(ValueError, match="tasks must be a list of"):
            make_heads((FeatureInfo("res5", 8, 8),), tasks)
    with pytest.raises(ValueError, match="the trunk must have res6"):
        DepthAwareParser(narrow_trunk(), DepthAwarePool(8), 4)


def test_fused_and_in_bfloat16() -> None:
    model = pag_resnet50(5, trunk=narrow_trunk()).eval()
    images = torch.rand(1, 3, 41, 56)
    with torch.no_grad():
        expected = model(images)["segmentation"]
        fused = perfconv.fuse(model)
        torch.testing.assert_close(fused(images)["segmentation"], expected, atol=1e-4, rtol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            half = fused(images)["segmentation"]
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()
    assert "trunk.layer4.1.conv2.branches.weight" in fused.state_dict()


@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if not v.needs_depth], ids=lambda variant: variant.call
)
def test_fuse_leaves_no_batch_norm(variant) -> None:
    """Stem, blocks without a gate, gates of pools, depth branches and heads are folded too."""
    model = randomized(narrow_network(variant)).eval()
    images = torch.rand(1, 3, 41, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        fused = perfconv.fuse(model)
        for found, wanted in zip(tree_leaves(fused(images)), tree_leaves(model(images)),
                                 strict=True):  # fmt: skip
            if wanted is not None and wanted.is_floating_point():
                assert (found - wanted).norm() <= 1e-3 * wanted.norm()
    left = [name for name, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert not left


def test_fuse_folds_the_three_conv_stem() -> None:
    trunk = randomized(ResNet(Bottleneck, (1, 1, 1, 1), stem="three_convs", width=8)).eval()
    fused, images = perfconv.fuse(trunk), torch.rand(1, 3, 32, 32)
    assert isinstance(fused.bn1, nn.Identity)
    with torch.no_grad():
        torch.testing.assert_close(
            fused(images)["res5"], trunk(images)["res5"], rtol=1e-3, atol=1e-3
        )


# ---- torch's compilers ---------------------------------------------------------------------------


def test_compile_and_export() -> None:
    torch._dynamo.reset()
    model = pag_resnet50(5, trunk=narrow_trunk(depths=(1, 1, 1, 2))).eval()
    images = torch.rand(1, 3, 33, 40)
    with torch.no_grad():
        expected = model(images)["segmentation"]
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images)["segmentation"], expected)
        exported = torch.export.export(model, (images,))
        torch.testing.assert_close(exported.module()(images)["segmentation"], expected)


@pytest.mark.slow
def test_compile_of_a_hard_depth_aware_network() -> None:
    torch._dynamo.reset()
    model = depth_aware_resnet50(5, assignment="hard", trunk=narrow_trunk(16)).eval()
    images = torch.rand(1, 3, 33, 40)
    with torch.no_grad():
        expected = model.predict(images)["segmentation"]
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images)[-1].segmentation, expected)
