"""Barriers, collectives, races and what looks like one, deadlock and livelock."""

import pytest
import torch
from emulator.library import Features, In, KernelError

pytestmark = pytest.mark.emulated

NONE, BARRIER, WARP = range(3)
NOTHING, FENCE, FENCE_OF_BLOCK, RELEASE_ACQUIRE, NO_BARRIER = range(5)
SEEDS = range(1, 6)


def ints(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int32)


def numbers(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int32)


@pytest.mark.parametrize(
    ("name", "distance", "right", "wrong"),
    [
        ("exchange_shared", 1, [BARRIER, WARP], [NONE]),
        ("exchange_warps", 32, [BARRIER], [NONE, WARP]),
    ],
)
def test_exchange_in_shared_memory(
    features: Features, name: str, distance: int, right: list[int], wrong: list[int]
) -> None:
    values = numbers(64)
    for seed in SEEDS:
        features.set(seed=seed)
        for order in right:
            out = ints(64)
            features.run(name, In(values), out, order)
            assert torch.equal(out, values ^ distance)
        for order in wrong:
            with pytest.raises(KernelError, match=r"RACE|nobody wrote"):
                features.run(name, In(values), ints(64), order)


def test_overwriting_what_others_still_read(features: Features) -> None:
    out = ints(192)
    features.run("overwrite_shared", out, BARRIER)
    assert out.tolist() == [0] * 64 + [1] * 64 + [2] * 64
    for seed in SEEDS:
        features.set(seed=seed)
        with pytest.raises(KernelError, match="RACE"):
            features.run("overwrite_shared", ints(192), NONE)


def test_exchange_in_global_memory(features: Features) -> None:
    out = ints(64)
    features.run("exchange_global", ints(64), out, BARRIER)
    assert torch.equal(out, numbers(64) ^ 33)
    with pytest.raises(KernelError, match=r"RACE: .*global memory \(256 bytes\)"):
        features.run("exchange_global", ints(64), ints(64), NONE)


@pytest.mark.parametrize(("blocks", "threads"), [(1, 2), (4, 1)])
def test_same_place(features: Features, blocks: int, threads: int) -> None:
    out = ints(1)
    features.run("same_place", out, 1, blocks, threads)
    assert out.item() == blocks * threads
    message = "RACE between blocks" if blocks > 1 else "RACE: write after an unordered write"
    with pytest.raises(KernelError, match=message):
        features.run("same_place", ints(1), 0, blocks, threads)
    features.set(race=0)
    features.run("same_place", out, 0, blocks, threads)


def test_neighbouring_bytes_are_no_race(features: Features) -> None:
    out = torch.zeros(64, dtype=torch.uint8)
    features.run("neighbouring_bytes", out)
    assert out.tolist() == list(range(64))


def publish(features: Features, how: int) -> torch.Tensor:
    out = ints(64)
    features.run("last_block_sums", ints(256), ints(1), out, how)
    return out


@pytest.mark.parametrize("how", [FENCE, RELEASE_ACQUIRE])
def test_publication_to_the_last_block(features: Features, how: int) -> None:
    for seed in SEEDS:
        features.set(seed=seed)
        assert torch.equal(publish(features, how), 4 * numbers(64) + 6)


@pytest.mark.parametrize("how", [NOTHING, FENCE_OF_BLOCK, NO_BARRIER])
def test_publication_without_order(features: Features, how: int) -> None:
    for seed in SEEDS:
        features.set(seed=seed)
        with pytest.raises(KernelError, match="RACE between blocks: read"):
            publish(features, how)


def test_flag_between_blocks(features: Features) -> None:
    for seed in SEEDS:
        features.set(seed=seed)
        out = ints(1)
        features.run("wait_for_flag", ints(1), ints(1), out, 1)
        assert out.item() == 42
        with pytest.raises(KernelError, match="RACE between blocks: read"):
            features.run("wait_for_flag", ints(1), ints(1), out, 0)


def test_named_barriers(features: Features) -> None:
    out = ints(128)
    features.run("named_barriers", out, 1)
    assert out.tolist() == [7] * 64 + [8] * 64
    with pytest.raises(KernelError, match=r"RACE|nobody wrote"):
        features.run("named_barriers", out, 0)


def test_arriving_without_waiting(features: Features) -> None:
    for seed in SEEDS:
        features.set(seed=seed)
        out = ints(32)
        features.run("arrive_and_wait", out)
        assert out.tolist() == [3 * (31 - i) for i in range(32)]


def test_one_seed_is_one_schedule(features: Features) -> None:
    def report(seed: int) -> str:
        features.set(seed=seed)
        with pytest.raises(KernelError) as caught:
            publish(features, NOTHING)
        return str(caught.value)

    reports = [report(seed) for seed in SEEDS]
    assert reports == [report(seed) for seed in SEEDS]
    assert len({text.split("(seed")[0] for text in reports}) > 1


def test_deadlock_names_who_waits_where(features: Features) -> None:
    with pytest.raises(KernelError, match=r"deadlock: thread 0 waits at order\.cu:\d+"):
        features.run("wrong_barriers")


def test_divergence(features: Features) -> None:
    with pytest.raises(KernelError, match=r"divergent barrier: meets order\.cu:\d+"):
        features.run("divergent_barrier", ints(2))
    with pytest.raises(
        KernelError, match=r"divergent warp-wide instructions: meets .*order\.cu:\d+"
    ):
        features.run("divergent_collective", ints(34))


def test_livelock(features: Features) -> None:
    features.set(max_spins=1000, max_instructions=100_000)
    with pytest.raises(KernelError, match="livelock"):
        features.run("wait_for_ever", In(ints(1)))
    with pytest.raises(KernelError, match="livelock"):
        features.run("count_for_ever", ints(1))


def test_lanes_of_a_warp_run_on_their_own(features: Features) -> None:
    for seed in SEEDS:
        features.set(seed=seed)
        count = ints(1)
        features.run("lock_within_warp", ints(1), count)
        assert count.item() == 64
