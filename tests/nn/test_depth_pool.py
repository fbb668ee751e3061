"""Depth bins, the depth-aware pool and the recurrent module, against what the issue writes out."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import randomized
from torch import Tensor

import perfconv
from perfconv.nn import DepthAwarePool, RecurrentRefinement, ScaleGate, merge
from perfconv.nn.depth_bins import (
    CITYSCAPES,
    CITYSCAPES_M,
    INVALID,
    NYUV2,
    NYUV2_M,
    DepthBins,
    hard_bins,
    quantile_bins,
    soft_bins,
)
from perfconv.nn.depth_branch import DepthBranch

DILATIONS = (1, 2, 3)
BINS = DepthBins((2.0, 5.0))


def images(channels: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, 7, 9, generator=generator, dtype=torch.float64)


def depths() -> Tensor:
    """At four times the resolution, with missing pixels, the second image without any depth."""
    generator = torch.Generator().manual_seed(2)
    depth = 7 * torch.rand(2, 1, 28, 36, generator=generator, dtype=torch.float64)
    depth[0, :, 4:12, 4:16] = 0
    depth[1] = 0
    return depth


def pool(weighting: str, assignment: str, **options) -> DepthAwarePool:
    torch.manual_seed(3)
    made = DepthAwarePool(8, DILATIONS, weighting, assignment, bins=BINS, **options)
    return randomized(made).double().eval()


def branch_maps(model: DepthAwarePool, input: Tensor) -> list[Tensor]:
    maps = []
    for step in DILATIONS:
        branch = getattr(model.branches, "tied" if model.branches.is_tied else f"dilation{step}")
        features = F.conv2d(input, branch.conv.weight, padding=step, dilation=step)
        maps.append(F.relu(branch.norm(features)))
    return maps


def weighted(maps: list[Tensor], weights: Tensor) -> Tensor:
    return sum(weights[:, k : k + 1] * maps[k] for k in range(len(maps)))


# ---- bins ----------------------------------------------------------------------------------------


def test_bins_of_nyuv2() -> None:
    raw = torch.tensor([0, 1, 1.5, 1500, 1500.5, 2100, 3000, 4700, 4701, torch.nan, torch.inf])
    assert NYUV2.index(raw).tolist() == [-1, -1, 4, 4, 3, 3, 2, 1, 0, -1, -1]


def test_bins_of_cityscapes() -> None:
    raw = torch.tensor([0, 10, 11, 2**11, 2**11 + 1, 2**12.5 + 1, 2**13.2 + 1, 2**13.9 + 1])
    assert CITYSCAPES.index(raw).tolist() == [-1, -1, 0, 0, 1, 2, 3, 4]
    assert CITYSCAPES.index(raw.to(torch.int32)).tolist() == [-1, -1, 0, 0, 1, 2, 3, 4]


def test_quantiles_hold_equal_numbers() -> None:
    depth = torch.rand(4, 1, 25, 20, generator=torch.Generator().manual_seed(0)) + 0.1
    depth[0, 0, :2] = 0
    counts = torch.bincount(quantile_bins(depth).index(depth).flatten() + 1)
    assert counts[0] == 40
    assert counts[1:].max() - counts[1:].min() <= 4
    few = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert quantile_bins(few).index(few).tolist() == [4, 3, 2, 1, 0]
    with pytest.raises(ValueError, match="at least 5 valid pixels, got 0"):
        quantile_bins(torch.zeros(3))
    with pytest.raises(ValueError, match="must have values enough for 5 bins"):
        quantile_bins(torch.ones(9))


def test_bins_of_metres() -> None:
    millimetres = torch.arange(0, 12_000)
    depth_m = torch.where(millimetres > 1, millimetres / 1000, 0.0)  # as NYUv2 reads it
    assert torch.equal(NYUV2_M.index(depth_m), NYUV2.index(millimetres))
    raw = torch.arange(11, 2**15)
    depth_m = 0.209313 * 2262.52 / ((raw - 1).float() / 256)  # as Cityscapes reads it
    assert torch.equal(CITYSCAPES_M.index(depth_m), CITYSCAPES.index(raw))


def test_soft_bins_see_every_pixel_of_a_cell() -> None:
    index = (torch.arange(64) % 8 == 0).long().expand(1, 1, 64, 64)  # an eighth of each cell
    weights = soft_bins(index, 2, (8, 8))[..., 2:-2]
    torch.testing.assert_close(weights[:, 1], torch.full((1, 8, 4), 0.125), atol=0.01, rtol=0)


def test_soft_bins_share_missing_pixels() -> None:
    index = torch.full((1, 1, 16, 16), 2)
    index[..., :8] = INVALID
    weights = soft_bins(index, 4, (2, 2))
    torch.testing.assert_close(weights.sum(1), torch.ones(1, 2, 2))
    plain = soft_bins(torch.full((1, 1, 16, 16), INVALID), 4, (2, 2))
    torch.testing.assert_close(plain, torch.full((1, 4, 2, 2), 0.25))
    assert (weights[0, 2, :, 1] > 0.9).all()


def test_hard_bins_take_the_nearest_valid_pixel() -> None:
    index = torch.full((2, 1, 4, 6), INVALID)
    index[0, 0, 0, 0], index[0, 0, 3, 5] = 2, 1
    found = hard_bins(index, (4, 6))
    distances = [[(y * y + x * x, (3 - y) ** 2 + (5 - x) ** 2) for x in range(6)] for y in range(4)]
    expected = [[2 if first <= second else 1 for first, second in row] for row in distances]
    assert found[0, 0].tolist() == expected
    assert not found[1].any()  # dilation 1


def test_samples_of_nyuv2() -> None:
    """The bins stored in the authors' sample files, reproduced without an error."""
    folder = os.environ.get("PERFCONV_SAMPLES")
    if not folder:
        pytest.skip("PERFCONV_SAMPLES names no folder of samples")
    scipy_io = pytest.importorskip("scipy.io")
    paths = sorted(Path(folder).rglob("*.mat"))
    checked = 0
    for path in paths:
        try:
            content = scipy_io.loadmat(path)
        except NotImplementedError:
            continue
        if "datamat" not in content:
            continue
        record = content["datamat"][0, 0]
        if "depthBin" not in (record.dtype.names or ()):
            continue
        depth = torch.from_numpy(record["depth"].astype("float64"))
        stored = torch.from_numpy(record["depthBin"].astype("int64"))
        index = NYUV2.index(depth)
        expected = torch.where(stored == 0, INVALID, 5 - stored)  # theirs: 1 is near
        assert torch.equal(index, expected), path.name
        checked += 1
    assert checked or not paths


# ---- the pool ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_true_depth(tied: bool) -> None:
    input, depth = images(), depths()
    index = BINS.index(depth)
    soft, hard = (pool("true_depth", name, tied=tied) for name in ("soft", "hard"))
    maps = branch_maps(soft, input)
    weights = soft_bins(index, 3, (7, 9)).double()
    torch.testing.assert_close(weights[1], torch.full_like(weights[1], 1 / 3))
    torch.testing.assert_close(soft(input, depth).features, weighted(maps, weights))
    choice = hard_bins(index, (7, 9))
    one_hot = F.one_hot(choice[:, 0], 3).movedim(-1, 1).double()
    found = hard(input, depth)
    torch.testing.assert_close(found.features, weighted(maps, one_hot))
    assert torch.equal(found.choice, choice)
    torch.testing.assert_close(found.features[1], maps[0][1])  # no depth: dilation 1


@pytest.mark.parametrize("weighting", ["predicted_depth", "attention"])
def test_learned_weights(weighting: str) -> None:
    input = images()
    soft, hard = pool(weighting, "soft"), pool(weighting, "hard")
    source = soft.depth_branch or soft.gate
    logits = source(input).logits
    maps = branch_maps(soft, input)
    torch.testing.assert_close(soft(input).features, weighted(maps, logits.softmax(1)))
    one_hot = F.one_hot(logits.argmax(1), 3).movedim(-1, 1).double()
    torch.testing.assert_close(hard(input).features, weighted(maps, one_hot))
    assert (soft(input).depth is not None) == (weighting == "predicted_depth")


def test_average() -> None:
    model, input = pool("average", "soft"), images()
    torch.testing.assert_close(model(input).features, sum(branch_maps(model, input)) / 3)


def test_a_hard_assignment_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pool("predicted_depth", "hard")
    monkeypatch.setattr(type(model.branches), "maps", None)
    model(images())
    counted = perfconv.flops.count(model, images())
    layer = next(row for row in counted.rows if row.name == "")
    assert layer.dense.tolist() == [63 * 8 * 8 * 9] * 2


def test_hard_training_is_straight_through() -> None:
    model, input = pool("predicted_depth", "hard", batch_norm="frozen").train(), images()
    model.depth_branch.eval()
    parameters = dict(model.named_parameters())
    weight = torch.linspace(-1, 1, input.numel(), dtype=input.dtype).view(input.shape)
    used = [name for name in parameters if "regression" not in name]
    grads = torch.autograd.grad((model(input).features * weight).sum(),
                                [parameters[name] for name in used])  # fmt: skip
    soft = model.depth_branch(input).logits.softmax(1)
    hard = F.one_hot(soft.argmax(1), 3).movedim(-1, 1) + soft - soft.detach()
    output = weighted(branch_maps(model, input), hard)
    expected = torch.autograd.grad((output * weight).sum(), [parameters[name] for name in used])
    for found, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(found, wanted)
        assert wanted.abs().sum() > 0


def test_true_depth_trains_in_one_launch_with_fixed_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, input, depth = (
        pool("true_depth", "hard", batch_norm="frozen").train(),
        images(),
        depths(),
    )
    expected = model(input, depth).features
    monkeypatch.setattr(type(model.branches), "maps", None)
    torch.testing.assert_close(model(input, depth).features, expected)


def test_fuse() -> None:
    model, input = pool("predicted_depth", "hard"), images()
    fused = perfconv.fuse(model)
    torch.testing.assert_close(fused(input).features, model(input).features)
    assert "branches.weight" in dict(fused.named_parameters())


def test_parameters() -> None:
    """512 channels: five branches with their kernels, and the depth branch of the release."""
    with torch.device("meta"):
        untied, tied = (DepthAwarePool(512, weighting="average", tied=t) for t in (False, True))
        branch = DepthBranch(512)
    one = 512 * 512 * 9 + 2 * 512
    assert sum(p.numel() for p in untied.parameters()) == 5 * one == 11_801_600
    assert sum(p.numel() for p in tied.parameters()) == one
    of_branch = 512 * 128 + 256 + 128 * 32 * 9 + 64 + 32 * 5 + 5 + 32 * 9 + 1
    assert sum(p.numel() for p in branch.parameters()) == of_branch == 103_174


ERRORS = {
    "weighting": ({"weighting": "depth"}, "weighting must be one of"),
    "assignment": ({"assignment": "both"}, "assignment must be one of"),
    "batch_norm": ({"batch_norm": "off"}, "batch_norm must be one of"),
    "average": ({"weighting": "average", "assignment": "hard"}, 'must have assignment "soft"'),
    "branch": ({"depth_branch": DepthBranch(4, 3)}, "depth_branch must have as many outputs"),
    "gate": ({"weighting": "attention", "gate": ScaleGate(4, 6)}, "dilations, 5, got 6"),
    "bins": ({"weighting": "true_depth", "bins": BINS}, "bins must be as many as dilations, 5"),
    "classes": ({"bins": BINS}, "bins must be as many as dilations, 5, got 3"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        DepthAwarePool(4, **changes)


def test_depth_must_be_given() -> None:
    model = pool("true_depth", "soft")
    for depth in (None, depths()[:1], depths()[:, 0]):
        with pytest.raises(ValueError, match="true_depth needs a depth map .2, 1, H, W."):
            model(images(), depth)
    with pytest.raises(ValueError, match="thresholds must ascend"):
        DepthBins((2.0, 1.0))


# ---- loops ---------------------------------------------------------------------------------------


def recurrent(weighting: str = "predicted_depth", **options) -> RecurrentRefinement:
    torch.manual_seed(4)
    made = RecurrentRefinement(
        8, 5, channels=6, weighting=weighting, dilations=DILATIONS, bins=BINS, **options
    )
    return randomized(made).double().eval()


@pytest.mark.parametrize(
    "weighting", ["none", "average", "attention", "true_depth", "predicted_depth"]
)
def test_loops_share_parameters_and_hand_on_a_feature(weighting: str) -> None:
    model = recurrent(weighting, loops=3)
    features, hidden, depth = images(), images(6), depths()
    outputs = model(features, hidden, depth)
    assert len(outputs) == 3
    for output in outputs:  # each loop alone, by hand
        mixed = model.block1(torch.cat([features, hidden], 1))
        pooled = model.pool(mixed) if weighting == "none" else model.pool(mixed, depth).features
        hidden = model.block3(pooled)
        torch.testing.assert_close(output.hidden, hidden)
        torch.testing.assert_close(output.logits, model.classifier(hidden))
        assert (output.depth is not None) == (weighting == "predicted_depth")
    one = model(features, images(6), depth, loops=1)
    assert torch.equal(one[0].logits, outputs[0].logits)


def test_gradients_pass_through_all_loops() -> None:
    model = recurrent().train()
    hidden = images(6).requires_grad_()
    last = model(images(), hidden)[-1]
    last.logits.square().sum().backward()
    assert hidden.grad.abs().sum() > 0
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert all("regression" in name for name in without)


def test_merge() -> None:
    logits = [torch.randn(1, 3, 2, 2, dtype=torch.float64) for _ in range(2)]
    first, second = (one.softmax(1) for one in logits)
    torch.testing.assert_close(merge(logits), second)
    torch.testing.assert_close(merge(logits, "mean"), (first + second) / 2)
    torch.testing.assert_close(merge(logits, "max"), torch.maximum(first, second))
    with pytest.raises(ValueError, match="how must be one of"):
        merge(logits, "sum")


def test_no_loop_is_an_error() -> None:
    with pytest.raises(ValueError, match="loops must be 1 or more, got 0"):
        recurrent(loops=0)
    with pytest.raises(ValueError, match="loops must be 1 or more"):
        recurrent()(images(), images(6), loops=-1)
