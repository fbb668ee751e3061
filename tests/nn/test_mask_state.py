"""MaskState: masks by resolution and thread, other resolutions, compilation, export."""

import threading

import pytest
import torch
import torch._dynamo.testing
from helpers import random_mask
from torch import Tensor, nn

import perfconv
from perfconv import MaskState, PerforatedConv2d
from perfconv.nn.mask_state import stride_between


def network(state: MaskState) -> nn.Sequential:
    """Three layers, at full, half and a quarter of the input size."""
    torch.manual_seed(0)
    layers = [
        PerforatedConv2d(3, 8, 3, padding=1, mask_state=state),
        PerforatedConv2d(8, 8, 3, padding=1, stride=2, mask_state=state),
        nn.ReLU(),
        PerforatedConv2d(8, 8, 3, padding=1, stride=2, mask_state=state),
    ]
    return nn.Sequential(*layers)


def dense_where(layers: nn.Sequential, input: Tensor, masks: list[Tensor]) -> Tensor:
    masks = list(masks)
    for layer in layers:
        is_conv = isinstance(layer, nn.Conv2d)
        if is_conv:
            input = torch.where(masks.pop(0), nn.Conv2d.forward(layer, input), 0)
        else:
            input = layer(input)
    return input


@pytest.mark.parametrize("size", [(16, 24), (15, 23), (13, 18)])
@pytest.mark.parametrize("images", [1, 2])
def test_one_mask_for_every_resolution(size: tuple[int, int], images: int) -> None:
    state = MaskState()
    model, input = network(state), torch.randn(2, 3, *size)
    mask = random_mask(images, 1, *size, density=0.1)
    half = perfconv.downsample_mask(mask, 2)
    quarter = perfconv.downsample_mask(mask, 4)
    expected = dense_where(model, input, [mask, half, quarter])
    state.set(mask)
    torch.testing.assert_close(model(input), expected)
    state.clear()
    assert state.is_empty()
    every = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    torch.testing.assert_close(model(input), dense_where(model, input, [every] * 3))


def test_a_mask_for_each_resolution() -> None:
    state = MaskState()
    model, input = network(state), torch.randn(2, 3, 16, 24)
    masks = [random_mask(2, 1, 16, 24), random_mask(1, 1, 8, 12), random_mask(2, 1, 4, 6)]
    for mask in masks:
        state.set(mask)
    torch.testing.assert_close(model(input), dense_where(model, input, masks))


def test_a_new_mask_replaces_what_was_made_of_the_old_one() -> None:
    state = MaskState()
    state.set(torch.ones(1, 1, 8, 8, dtype=torch.bool))
    assert state.get(1, 4, 4).all()
    state.set(torch.zeros(1, 1, 8, 8, dtype=torch.bool))
    assert not state.get(1, 4, 4).any()


def test_active_pixels() -> None:
    state, mask = perfconv.MaskState(), torch.eye(4, dtype=torch.bool)[None, None]
    state.set(perfconv.compact_mask(mask))
    assert state.get(1, 4, 4) is mask
    expected = perfconv.downsample_mask(mask, 2)
    assert torch.equal(perfconv.downsample_mask(perfconv.compact_mask(mask), 2), expected)


def test_floored_sizes() -> None:
    """Pooling without padding floors: (13, 18) to (6, 9)."""
    state = MaskState()
    mask = torch.zeros(1, 1, 13, 18, dtype=torch.bool)
    mask[..., 12, 0] = True  # in the row that the last cell takes along
    state.set(mask)
    found = state.get(1, 6, 9)
    assert found.shape == (1, 1, 6, 9)
    assert found.nonzero().tolist() == [[0, 0, 5, 0]]


@pytest.mark.parametrize("size", [(5, 8), (16, 16), (8, 5), (7, 9), (0, 0)])
def test_no_guess(size: tuple[int, int]) -> None:
    """Neither a finer grid nor one that is no whole fraction."""
    state = MaskState()
    state.set(random_mask(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"MaskState: .* has no mask; .* Set a mask of that size"):
        state.get(1, *size)


@pytest.mark.parametrize(
    ("fine", "coarse", "stride"),
    [
        ((16, 24), (8, 12), (2, 2)),
        ((15, 23), (8, 12), (2, 2)),
        ((13, 18), (4, 5), (4, 4)),  # not 3 in height, although 13 // 3 is 4
        ((13, 18), (6, 9), (2, 2)),
        ((224, 224), (7, 7), (32, 32)),
        ((65, 129), (9, 17), (8, 8)),
        ((16, 24), (16, 12), (1, 2)),
        ((9, 9), (3, 3), (4, 4)),  # two strides of 2 are likelier than one of 3
        ((12, 12), (4, 4), (3, 3)),
        ((7, 7), (1, 1), (8, 8)),
        ((8, 8), (8, 8), None),
        ((8, 8), (9, 4), None),
    ],
)
def test_stride_between(fine, coarse, stride) -> None:
    assert stride_between(fine, coarse) == stride


def test_wrong_batch() -> None:
    state = MaskState()
    state.set(random_mask(2, 1, 8, 8))
    with pytest.raises(ValueError, match="of 2 images, the layer has 3"):
        state.get(3, 8, 8)
    with pytest.raises(ValueError, match="of 2 images, the layer has 3"):
        state.get(3, 4, 4)


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (torch.ones(1, 1, 4, 4), TypeError),
        ([[True]], TypeError),
        (torch.ones(4, 4, dtype=torch.bool), ValueError),
        (torch.ones(1, 2, 4, 4, dtype=torch.bool), ValueError),
    ],
)
def test_bad_masks(mask: object, error: type[Exception]) -> None:
    state = MaskState()
    with pytest.raises(error, match=r"MaskState.set: mask must be .*, got .*\. [A-Z]"):
        state.set(mask)
    assert state.is_empty()


def test_a_thread_sees_its_own_masks_only() -> None:
    state = MaskState()
    state.set(random_mask(1, 1, 8, 8))
    other = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    seen = []

    def use() -> None:
        seen.append(state.get(1, 8, 8))
        state.set(other)
        seen.append(state.get(1, 8, 8))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [None, other]
    assert torch.equal(state.get(1, 8, 8), random_mask(1, 1, 8, 8))


def test_two_threads_with_two_masks() -> None:
    state = MaskState()
    model, input = network(state).eval(), torch.randn(1, 3, 16, 24)
    results: dict[float, Tensor] = {}

    def infer(density: float) -> None:
        state.set(random_mask(1, 1, 16, 24, density=density))
        for _ in range(10):
            results[density] = model(input)

    threads = [threading.Thread(target=infer, args=(density,)) for density in (0.1, 0.9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for density, found in results.items():
        state.set(random_mask(1, 1, 16, 24, density=density))
        assert torch.equal(found, model(input))


def test_one_compilation_for_changing_masks() -> None:
    state = MaskState()
    model, input = network(state), torch.randn(2, 3, 16, 24)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for density in (0.1, 0.4, 0.0, 1.0, 0.7):
        state.set(random_mask(2, 1, 16, 24, density=density))
        found = compiled(input)
        found.sum().backward()
        torch.testing.assert_close(found, model(input))
    assert counter.frame_count == 1


def test_setting_a_mask_inside_the_compiled_function() -> None:
    state = MaskState()
    model, input = network(state), torch.randn(2, 3, 16, 24)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def infer(input: Tensor, mask: Tensor) -> Tensor:
        state.set(mask)
        output = model(input)
        state.clear()
        return output

    for density in (0.1, 0.4, 0.7):
        mask = random_mask(2, 1, 16, 24, density=density)
        found = infer(input, mask)
        assert state.is_empty()
        state.set(mask)
        torch.testing.assert_close(found, model(input))
        state.clear()
    assert counter.frame_count == 1


def test_export_refuses_a_stored_mask() -> None:
    """It would be a constant of the exported program."""
    state = MaskState()
    model, input = network(state), torch.randn(2, 3, 16, 24)
    state.set(random_mask(2, 1, 16, 24))
    with pytest.raises(
        RuntimeError, match="MaskState: a mask is stored while the model is exported"
    ):
        torch.export.export(model, (input,))
    with pytest.raises(
        RuntimeError, match="MaskState: a mask is stored while the model is exported"
    ):
        torch.export.export(model, (input,), strict=True)
    state.clear()
    exported = torch.export.export(model, (input,)).module()
    torch.testing.assert_close(exported(input), model(input))
