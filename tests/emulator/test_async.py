"""Asynchronous copies in flight; mbarrier, bulk copies and wgmma of sm_90a."""

import pytest
import torch
from emulator.library import Features, In, KernelError

pytestmark = pytest.mark.emulated

RIGHT, NO_WAIT, ONE_TOO_MANY, NO_BARRIER = range(4)
SEEDS = range(1, 6)


def test_groups_of_copies(features: Features) -> None:
    source = torch.arange(512, dtype=torch.int32)
    wanted = source.reshape(2, 64, 4).flip(1).reshape(-1)
    for seed in SEEDS:
        for mode in (0, 1, 2):
            features.set(seed=seed, **{"async": mode})
            out = torch.zeros(512, dtype=torch.int32)
            features.run("copy_groups", In(source), out, RIGHT)
            assert torch.equal(out, wanted)


@pytest.mark.parametrize("waiting", [NO_WAIT, ONE_TOO_MANY, NO_BARRIER])
def test_reading_copies_in_flight(features: Features, waiting: int) -> None:
    source = torch.arange(512, dtype=torch.int32)
    for seed in SEEDS:
        features.set(seed=seed)
        out = torch.zeros(512, dtype=torch.int32)
        with pytest.raises(KernelError, match=r"RACE|nobody wrote"):
            features.run("copy_groups", In(source), out, waiting)


def test_the_poison_shows_without_the_checker(features: Features) -> None:
    """A late copy leaves NaN, or -1, where it was not waited for."""
    source = torch.arange(512, dtype=torch.int32)
    out = torch.zeros(512, dtype=torch.int32)
    features.set(race=0, **{"async": 1})
    features.run("copy_groups", In(source), out, NO_WAIT)
    assert (out[:256] == -1).any()


def test_forgotten_copy(features: Features) -> None:
    with pytest.raises(KernelError, match="exits with cp.async that it did not wait for"):
        features.run("forgotten_copy", In(torch.zeros(128, dtype=torch.int32)))


def ring_problem(steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(steps)
    a, b = (
        (torch.randint(-16, 17, (64, 64 * steps), generator=generator) / 16).half()
        for _ in range(2)
    )
    tiles = b.reshape(64, steps, 8, 8).transpose(0, 1).contiguous()  # (step, row, chunk, element)
    rows = torch.arange(64)[:, None]
    swizzled = torch.empty_like(tiles)
    swizzled[:, rows, torch.arange(8)[None] ^ (rows & 7)] = tiles
    return a, swizzled, a.float() @ b.float().T


def run_ring(features: Features, steps: int = 5) -> None:
    a, b, wanted = ring_problem(steps)
    out = torch.full((64, 64), float("nan"))
    features.run("ring", In(a), In(b), out, steps)
    assert torch.equal(out, wanted)


def test_ring_of_bulk_copies_and_wgmma(features: Features) -> None:
    for seed in SEEDS:
        for mode in (0, 1, 2):
            features.set(seed=seed, **{"async": mode})
            run_ring(features)


@pytest.mark.parametrize("is_transposed", [0, 1])
def test_stmatrix_is_the_inverse_of_ldmatrix(features: Features, is_transposed: int) -> None:
    matrices = torch.randint(0, 2**31 - 1, (128,), dtype=torch.int32)
    out = torch.zeros(128, dtype=torch.int32)
    features.run("matrix_round_trip", In(matrices), out, is_transposed)
    assert torch.equal(out, matrices)


def test_narrow_wgmma(features: Features) -> None:
    a, b = ((torch.randint(-16, 17, (n, 64)) / 8).bfloat16() for n in (64, 8))
    for seed in SEEDS:
        features.set(seed=seed)
        out = torch.full((64, 8), float("nan"))
        features.run("narrow", In(a), In(b), out)
        assert torch.equal(out, a.float() @ b.float().T)


def is_ring_caught(features: Features, mutation: str) -> bool:
    """With one seed at least."""
    features.mutate(f"{mutation}@4ringE")
    for seed in SEEDS:
        features.set(seed=seed)
        try:
            run_ring(features)
        except (KernelError, AssertionError):
            return True
    return False


# The first barrier, after mbarrier.init, orders nothing that the one in the loop does not.
EQUIVALENT = {("bar.sync", 0)}


@pytest.mark.parametrize(
    "opcode",
    [
        "fence.proxy.async",
        "wgmma.wait_group",
        "wgmma.fence",
        "bar.sync",
        "cp.async.wait_group",
        "mbarrier.try_wait",
        "mbarrier.init",
        "cp.async.bulk",
    ],
)
def test_mutants_of_the_ring(features: Features, opcode: str) -> None:
    features.set(max_spins=20_000)
    places = features.count(opcode, "4ringE")
    assert places > 0
    for number in range(places):
        is_caught = is_ring_caught(features, f"drop:{opcode}:{number}")
        assert is_caught or (opcode, number) in EQUIVALENT, number


@pytest.mark.parametrize(
    ("pattern", "amount"),
    [
        ("source:", 16),
        ("add:mbarrier.arrive", 16),
        ("add:mbarrier.arrive", -16),
        ("add:mbarrier.try_wait", 1),
    ],
)
def test_wrong_sources_bytes_and_phases(features: Features, pattern: str, amount: int) -> None:
    features.set(max_spins=20_000, profile=1)
    run_ring(features)
    places = [n for n, (runs, *_) in enumerate(features.places(pattern, "4ringE")) if runs]
    features.set(profile=0)
    assert places
    for number in places:
        assert is_ring_caught(features, f"{pattern.removesuffix(':')}:{number}:{amount}"), number
