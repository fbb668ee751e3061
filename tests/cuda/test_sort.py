"""The counting sort and the tap patterns, on the emulator: no operator of the product is them."""

import pytest
import torch
from cuda_backend import Backend, native_geometry
from helpers import Problem
from torch import Tensor


@pytest.fixture
def emulated(backend: Backend) -> Backend:
    if backend.emulator is None:
        pytest.skip("the gradients test these kernels on a GPU")
    return backend


def random_keys(count: int, high: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(high, (count,), generator=generator, dtype=torch.int32)


# Ends of a warp's, a block's and a section's share; several sections; one bin only.
@pytest.mark.parametrize("count", [0, 1, 31, 33, 255, 257, 2047, 2048, 2049, 9000])
@pytest.mark.parametrize("bits", [1, 4, 9])
def test_counting_sort(emulated: Backend, count: int, bits: int) -> None:
    """Two lists in one call, the second with one bin only."""
    last = (1 << bits) - 1
    lists = torch.stack([random_keys(count, last + 1), torch.full((count,), last).int()])
    orders, starts = emulated.ops.counting_sort(lists, bits)
    for keys, order, begins in zip(lists, orders, starts, strict=True):
        assert order.tolist() == torch.sort(keys, stable=True).indices.tolist()
        sizes = torch.bincount(keys, minlength=last + 1)
        assert begins.tolist() == [0, *sizes.cumsum(0).tolist()]


def test_the_order_does_not_depend_on_the_schedule(emulated: Backend) -> None:
    keys = random_keys(5000, 37).view(1, -1)
    order, _ = emulated.ops.counting_sort(keys, 9)
    for seed, sms in ((5, 1), (6, 7)):
        emulated.emulator.set(seed=seed, sms=sms)
        assert torch.equal(emulated.ops.counting_sort(keys, 9)[0], order)


PATTERNS = {
    "plain": Problem(),
    "shared-mask": Problem(is_mask_shared=True),
    "stride2-dil2": Problem(stride=(2, 1), dilation=(1, 2), padding=(2, 1)),
    "five-by-five": Problem(kernel=(5, 5), padding=(2, 2)),
    "one-by-one": Problem(kernel=(1, 1), padding=(0, 0)),
    "empty-mask": Problem(density=0.0),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_tap_patterns(emulated: Backend, name: str) -> None:
    """Bit t: dense dgrad with a weight that is 1 at tap t alone reaches the pixel."""
    problem = PATTERNS[name]
    mask = problem.tensors(torch.float32)["mask"].expand(problem.batch, -1, -1, -1).contiguous()
    geometry = native_geometry(problem)
    del geometry["groups"]
    patterns, keys = emulated.ops.tap_patterns(mask, problem.size, problem.kernel, **geometry)
    taps = problem.kernel[0] * problem.kernel[1]
    expected = torch.zeros(problem.batch, 1, *problem.size, dtype=torch.long)
    for tap in range(taps):
        weight = torch.zeros(taps)
        weight[tap] = 1
        reached = torch.nn.grad.conv2d_input(
            expected.shape, weight.view(1, 1, *problem.kernel), mask.float(),
            problem.stride, problem.padding, problem.dilation,
        )  # fmt: skip
        expected += (reached > 0).long() << tap
    assert patterns.tolist() == expected.flatten().tolist()
    bits = min(taps, 9)
    assert keys.max() < 1 << bits
    assert ((keys == (1 << bits) - 1) == (patterns == 0)).all()
    if taps <= 9:  # one key for each pattern, and neighbouring keys differ in one tap
        pairs = dict(zip(keys.tolist(), patterns.tolist(), strict=True))
        assert len(set(pairs.values())) == len(pairs) == len(patterns.unique())
        for key, pattern in pairs.items():
            if key + 1 in pairs:
                assert bin(pattern ^ pairs[key + 1]).count("1") == 1
