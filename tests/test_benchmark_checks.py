"""What perfconv bench times is right, and what is wrong is not timed."""

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from benchmark_runs import run
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

import perfconv
from perfconv._bench import (
    block,
    conv,
    network,
    networks,
    page,
    peers,
    timing,
    train_step,
)
from perfconv._bench.conv_case import ConvCase
from perfconv._bench.problems import Problem, quick_block_problems
from perfconv._bench.tasks import Options
from perfconv.models.resnet import Bottleneck


def test_a_wrong_kernel_is_not_timed():
    case = ConvCase(Problem(16, 16, 8, 8))
    for value in (0.0, float("nan")):
        with pytest.raises(AssertionError, match="implicit_gemm is off by"):
            case.check("implicit_gemm", torch.full((1, 16, 8, 8), value))


@pytest.mark.parametrize("pass_name", ["training", "dgrad", "wgrad"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_right_gradients_pass_their_check(pass_name, dtype):
    case = ConvCase(Problem(16, 24, 9, 8, dtype=dtype, dilation=2, density=0.4))
    if pass_name == "training":
        case.learns()
    conv.check(case, pass_name, ("implicit_gemm", "direct"))


@pytest.mark.parametrize("pass_name", ["training", "dgrad", "wgrad"])
def test_wrong_gradients_are_not_timed(pass_name, monkeypatch):
    """A quick run whose backward is wrong by a tenth, in one of its results."""
    right = torch.autograd.grad

    def wrong(*arguments: object, **options: object) -> tuple:
        *others, last = right(*arguments, **options)
        return (*others, 1.1 * last)

    monkeypatch.setattr(torch.autograd, "grad", wrong)
    options = Options(scope="quick", with_compile=False, pairs=5, modes=(pass_name,))
    task = next(task for task in conv.tasks(options) if "float32" in task.problem)
    of = {"training": "bias", "dgrad": "input", "wgrad": "weight"}[pass_name]
    with pytest.raises(AssertionError, match=f"the {of} gradient of auto is off by"):
        list(task.measure())


def test_a_wrong_training_step_is_not_timed():
    images, labels = torch.rand(2, 3, 10, 10), torch.randint(8, (2, 10, 10))
    plain = train_step.freeze_norms(train_step.make_network(8))
    models = {
        name: train_step.gated(8, 0.5, learns, images.device)
        for name, learns in (("frozen gates", False), ("learning gates", True))
    }
    train_step.check(plain, models, 0.5, images, labels)
    (first, *_) = perfconv.gates(models["frozen gates"]).values()
    assert first._forced_density == 0.5  # and its masks are new in every call again
    assert first._forced_generator is None
    with torch.no_grad():
        next(models["learning gates"].children()).weight.mul_(1.01)
    with pytest.raises(AssertionError, match="with learning gates: the gradient of .* is off"):
        train_step.check(plain, models, 0.5, images, labels)


def test_a_wrong_peer_is_not_timed(monkeypatch):
    case = ConvCase(Problem(16, 16, 8, 8))
    wrong = peers.Peer("wrong", lambda case: lambda: torch.zeros(1, 16, 8, 8))
    monkeypatch.setattr(peers, "PEERS", {"wrong": wrong})
    with pytest.raises(AssertionError, match="wrong is off by"):
        peers.peers_of(case, with_compile=False, is_captured=False)


@pytest.mark.parametrize(
    "problem", [Problem(8, 16, 9, 7, dilation=2, batch=2), Problem(8, 4, 5, 6, kernel=1)]
)
def test_peers_give_the_same_as_dense(problem):
    case = ConvCase(problem)
    for is_captured in (False, True):  # each is checked where it is made
        found = peers.peers_of(case, with_compile=False, is_captured=is_captured)
        assert {"unfold_gemm", "im2col_gemm", "gather_per_tap", "matmul"} <= found.keys()


@pytest.mark.slow
def test_the_compiled_peer_gives_the_same_as_dense():
    case = ConvCase(Problem(8, 16, 9, 7, dilation=2))
    assert "dense_times_mask" in peers.peers_of(case, with_compile=True, is_captured=False)


class FakeVoxels:
    """A voxel library of one layer, with spconv's names and its layout of the weight."""

    threads: ClassVar[list[int]] = []  # of each call

    class SparseConvTensor:
        def __init__(self, features, places, size, batch):
            self.features, self.places, self.size, self.batch = features, places, size, batch

    class SubMConv2d(torch.nn.Module):
        wrong_by = 0.0

        def __init__(self, channels, outputs, kernel, *, dilation, bias):
            super().__init__()
            assert not bias
            self.weight = torch.nn.Parameter(torch.zeros(outputs, kernel, kernel, channels))
            self.options = {"padding": dilation * (kernel // 2), "dilation": dilation}

        def forward(self, voxels):
            FakeVoxels.threads.append(torch.get_num_threads())
            image, y, x = voxels.places.long().T
            dense = torch.zeros(voxels.batch, voxels.features.size(1), *voxels.size)
            dense[image, :, y, x] = voxels.features
            weight = self.weight.permute(0, 3, 1, 2)
            if weight.shape[2:] == (1, 1):  # as spconv 2.3.8 has it
                weight = self.weight.view(weight.size(1), -1).T[:, :, None, None]
            made = torch.nn.functional.conv2d(dense, weight, **self.options) + self.wrong_by
            return FakeVoxels.SparseConvTensor(made[image, :, y, x], *[None] * 3)


@pytest.fixture
def voxels(monkeypatch):
    """Both voxel libraries, as if they were installed."""
    threads = torch.get_num_threads()
    peers.why_not_importable.cache_clear()
    for package in ("spconv", "spconv_triton"):
        for name in (package, f"{package}.pytorch"):
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            module.SubMConv2d = FakeVoxels.SubMConv2d
            module.SparseConvTensor = FakeVoxels.SparseConvTensor
            monkeypatch.setitem(sys.modules, name, module)
    yield
    torch.set_num_threads(threads)
    peers.why_not_importable.cache_clear()


@pytest.mark.parametrize("kernel", [1, 3])
def test_an_installed_voxel_library_is_a_peer(kernel, voxels, monkeypatch, capsys):
    """On the CPU spconv alone; what it computes is checked, and called another function."""
    case = ConvCase(Problem(8, 16, 9, 7, kernel=kernel, dilation=2, batch=2))
    with torch.inference_mode():
        found = peers.peers_of(case, with_compile=False, is_captured=False)
        torch.set_num_threads(2)  # of which the library gets one
        monkeypatch.setattr(FakeVoxels, "threads", [])
        peers.peers_of(case, with_compile=False, is_captured=False)["spconv"]()
    assert FakeVoxels.threads == [1, 1]
    assert torch.get_num_threads() == 2
    assert "spconv" in found
    assert "spconv_triton" not in found
    assert not peers.PEERS["spconv"].is_same_function
    assert peers.presence("cuda", with_compile=True)["spconv_triton"] is None
    assert "cuda only" in peers.presence("cpu", with_compile=True)["spconv_triton"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(FakeVoxels.SubMConv2d, "wrong_by", 1.0)
    left_out: dict[str, str] = {}
    with torch.inference_mode():
        found = peers.peers_of(case, with_compile=False, is_captured=False, left_out=left_out)
    assert "spconv" not in found  # the others are measured
    assert "im2col_gemm" in found
    assert "spconv is off by" in left_out["spconv"]
    assert "without spconv: AssertionError" in capsys.readouterr().err


def test_a_voxel_library_multiplies_pairs_of_active_pixels():
    problem = Problem(8, 16, 9, 7, density=0.4)
    case = ConvCase(problem)
    near = torch.nn.functional.unfold(case.mask.float(), 3, padding=1)  # (1, 9, H * W)
    pairs = (near * case.mask.float().flatten(2)).sum().item()
    assert peers.executed_share("spconv", case) == pytest.approx(pairs / (9 * 9 * 7))
    assert peers.executed_share("im2col_gemm", case) == case.density
    assert peers.executed_share("unfold_gemm", case) == 1


def test_a_peer_that_is_not_here_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _, rows = run(tmp_path, "machine", "--quick", "--filter", "peers", continues=False)
    assert {row["algorithm"] for row in rows} == set(peers.PEERS)
    why = {row["algorithm"]: row["why_not"] for row in rows}
    assert why["spconv"] == "spconv is not installed"
    assert why["dense_times_mask"] == "this run is without torch.compile"
    assert why["im2col_gemm"] is None
    for target in ("report.html", "report.md"):
        page.write(tmp_path / "results.jsonl", tmp_path / target)
        text = (tmp_path / target).read_text()
        assert "no: spconv_triton is not installed" in text
        assert "another function, inactive inputs count as zero" in text


def test_a_slow_call_sits_rounds_out_and_pairs_stay_pairs():
    calls = []
    clock = timing.CpuClock()
    quick = lambda: calls.append("quick")  # noqa: E731
    slow = lambda: (calls.append("slow"), sum(range(200_000)))  # noqa: E731
    times = clock.measure({"dense": quick, "slow": slow}, 20, {"slow": 1e-3})
    found = timing.compared(times)
    assert found["slow"]["pairs"] == 5
    assert found["dense"]["pairs"] == 20
    assert found["dense"]["speed_up"] == 1
    assert [name for name in calls if name == "slow"] == ["slow"] * 7  # two to warm up


def test_the_flops_ratio_of_a_network_is_that_of_the_masks_given():
    case = network.Case((64, 64), with_compile=False)
    with torch.inference_mode():
        case.check()
        ratios = [case.give(density, "random") for density in (0.25, 0.5, 1.0)]
    assert 0.25 < ratios[0] < ratios[1] < 0.9
    assert ratios[2] == 1


def test_a_compiled_network_computes_its_gates():
    """What nobody reads is left out of a compiled graph; the time of the gates is to be in it."""
    model = perfconv.convert(torch.nn.Sequential(*[Bottleneck(16, 4) for _ in range(2)]).eval())
    model.requires_grad_(False)
    image = torch.rand(1, 16, 6, 7).to(memory_format=torch.channels_last)
    networks.give_masks(model, image, 0.5)
    called: list[object] = []

    def recorded(graph: torch.fx.GraphModule, _inputs: list) -> Callable:
        called.extend(node.target for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    with torch.inference_mode():
        wanted = model(image)
        compiled = torch.compile(model, backend=aot_autograd(fw_compiler=recorded), dynamic=False)
        assert torch.equal(compiled(image), wanted)  # by the masks given
        assert called.count(torch.ops.perfconv.gate_mask.default) == 2
        count = len(called)
        networks.give_masks(model, image, 0.9)
        assert torch.equal(compiled(image), model(image))
        assert not torch.equal(compiled(image), wanted)
    assert len(called) == count  # new masks, the same graph


def test_a_wrong_block_is_not_timed():
    case = block.Case(quick_block_problems()[0], with_compile=False)
    with torch.no_grad():
        case.check()
        case.block.conv2.bias.add_(3)
        case.block.conv3.weight.mul_(100)
        with pytest.raises(AssertionError, match="the gated block is off by"):
            case.check()


def test_the_gates_of_a_benchmark_cost_and_open_what_they_are_told_to():
    case = block.Case(quick_block_problems()[0], with_compile=False)
    with torch.no_grad(), torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        active = case.gate()
    assert torch.equal(active.mask, case.mask)
    assert counter.get_total_flops() == 2 * 2 * case.inputs["nchw"].numel()
