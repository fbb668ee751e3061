"""Clusters of blocks: each other's shared memory, their barrier, and faults of both."""

import pytest
import torch
from emulator.library import Features, KernelError

pytestmark = pytest.mark.emulated

(
    RIGHT, NO_BARRIER_BEFORE, NO_BARRIER_AFTER, OVERWRITTEN, RELAXED, WAITS_TWICE, ARRIVES_TWICE,
    WRONG_RANK, OF_BLOCK, SOME_EXIT, NO_WAIT_BEFORE_EXIT,
) = range(11)  # fmt: skip
THREADS = 64
CLUSTERS = 2
SEEDS = range(1, 6)


def exchange(features: Features, size: int, order: int) -> torch.Tensor:
    out = torch.full((CLUSTERS * size, THREADS), -1, dtype=torch.int32)
    features.run("exchange_in_cluster", out, size, order)
    return out


def neighbours(size: int) -> torch.Tensor:
    block = torch.arange(CLUSTERS * size, dtype=torch.int32)[:, None]
    next_block = block // size * size + (block + 1) % size
    return 100 * next_block + torch.arange(THREADS, dtype=torch.int32)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_neighbours_read_each_other(features: Features, size: int) -> None:
    for seed in SEEDS:
        features.set(seed=seed, resident=1 + seed % 2 * 16)
        assert torch.equal(exchange(features, size, RIGHT), neighbours(size))


def test_exited_threads_are_not_waited_for(features: Features) -> None:
    half = THREADS // 2
    for seed in SEEDS:
        features.set(seed=seed)
        out = exchange(features, 2, SOME_EXIT)
        assert torch.equal(out[:, :half], neighbours(2)[:, :half])
        assert (out[:, half:] == -1).all()


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (NO_BARRIER_BEFORE, r"which may not have started|which has exited"),
        (OF_BLOCK, r"which may not have started|which has exited"),
        (NO_BARRIER_AFTER, r"which has exited|exits while thread \d+ of block \d+ may still"),
        (NO_WAIT_BEFORE_EXIT, r"which has exited|exits while thread \d+ of block \d+ may still"),
        (OVERWRITTEN, r"RACE between blocks"),
        (RELAXED, r"which may not have started"),
        (WAITS_TWICE, r"waits at the cluster's barrier without having arrived"),
        (ARRIVES_TWICE, r"arrives at the cluster's barrier again without having waited"),
        (WRONG_RANK, r"mapa: no block of that rank in the cluster"),
    ],
)
def test_faults_are_found_in_any_schedule(features: Features, order: int, message: str) -> None:
    for seed in SEEDS:
        features.set(seed=seed)
        with pytest.raises(KernelError, match=message):
            exchange(features, 4, order)


def test_registers(features: Features) -> None:
    out = torch.zeros(CLUSTERS * 4, 3, dtype=torch.int32)
    features.run("cluster_registers", out, 4)
    assert out.tolist() == [[block // 4, block % 4, 4] for block in range(CLUSTERS * 4)]


@pytest.mark.parametrize(("size", "more_blocks"), [(16, 0), (4, 1)])
def test_what_a_device_refuses(features: Features, size: int, more_blocks: int) -> None:
    out = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(KernelError, match="more than eight blocks in a cluster, or a grid"):
        features.run("cluster_registers", out, size, 0, more_blocks)


def test_none_before_capability_9(features: Features) -> None:
    features.set(cc=80)
    with pytest.raises(KernelError, match=r"clusters before capability 9\.0"):
        features.run("cluster_registers", torch.zeros(1, dtype=torch.int32), 4)
