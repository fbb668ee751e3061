"""CapturedCall: the call itself on a CPU; what a graph is given and reads, with one made up.

On a GPU: tests/cuda/test_graphs.py.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import perfconv
from perfconv.nn import CapturedCall, captured

SHAPE = (1, 4, 9, 11)


def image(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Module:
    """Its gate opens where the first channel is positive."""
    model = perfconv.nn.GatedConv2d(nn.Conv2d(4, 4, 3, padding=1)).eval()
    gate = model.gate.conv
    with torch.no_grad():
        gate.weight.zero_()
        gate.bias.zero_()
        gate.weight[1, 0] = 1
        gate.weight[0, 0] = -1
    return model


def seen(model: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def call(input: Tensor) -> tuple[Tensor, Tensor]:
        with perfconv.record_gates(model) as record:
            output = model(input)
        return output, record.gates[0].mask

    return call


def check(call: CapturedCall, model: nn.Module) -> None:
    masks = []
    for seed in range(3):
        output, mask = call(image(seed))
        with torch.no_grad():
            wanted_output, wanted_mask = seen(model)(image(seed))
        assert torch.equal(output, wanted_output)
        assert torch.equal(mask, wanted_mask)
        assert not output.requires_grad
        masks.append(mask.clone())
    assert not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize("is_inference", [False, True])
def test_on_a_cpu_it_is_the_call(is_inference: bool) -> None:
    model = network()
    with torch.inference_mode(is_inference):
        call = CapturedCall(seen(model), image(7))
        check(call, model)
        first, second = call(image(0))[0], call(image(1))[0]
    assert torch.equal(first, call(image(0))[0])  # not overwritten by the one after
    assert not first.is_inference()
    assert not torch.equal(first, second)


class Graph:
    """Replays by calling again, on whatever lies where the graph reads."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.replay = call
        call()


def test_a_graph_reads_its_own_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    model = network()
    monkeypatch.setattr(captured, "_has_graphs", lambda device: True)
    monkeypatch.setattr(captured, "graph_of", Graph)

    def call(input: Tensor) -> tuple[Tensor, Tensor]:
        read.append(input.data_ptr())
        return seen(model)(input)

    example = image(7)
    before = example.clone()
    graph = CapturedCall(call, example)
    check(graph, model)
    assert len(read) == 4  # a capture, three replays
    assert len(set(read)) == 1
    assert example.data_ptr() not in read
    assert torch.equal(example, before)


def test_errors() -> None:
    call = CapturedCall(network(), image(0))
    with pytest.raises(ValueError, match=r"\(1, 4, 9, 11\), got \(1, 4, 9, 12\).*each size"):
        call(torch.rand(1, 4, 9, 12))
    with pytest.raises(ValueError, match=r"\(1, 4, 9, 11\), got \(4, 9, 11\)"):  # would broadcast
        call(image(0)[0])
    with pytest.raises(TypeError, match=r"torch.float32 as its example, got torch.float64"):
        call(image(0).double())
    with pytest.raises(ValueError, match="as many inputs as examples, 1, got 2"):
        call(image(0), image(0))
    with pytest.raises(ValueError, match="at least one example"):
        CapturedCall(network())
