"""Arrivals that wait for copies, phases of barriers, and the fence before wgmma."""

import pytest
import torch
from emulator.library import Features, In, KernelError

pytestmark = pytest.mark.emulated

RIGHT = 0
WRONG = {
    "waits for no copies": (1, "RACE|nobody wrote"),
    "wrong parity": (2, "RACE|nobody wrote|livelock"),
    "no wait for a free place": (3, "RACE|more arrivals"),
    "arrives before its copies": (4, "RACE|did not wait for"),
    "a place is never free again": (5, "livelock"),
}
BY_READER, BY_WRITER, BY_NOBODY, BEFORE_THE_WAIT = range(4)
SEEDS = range(1, 6)
ROUNDS = 7


def relay(features: Features, wrong: int) -> None:
    source = torch.arange(ROUNDS * 128, dtype=torch.int32)
    out = torch.zeros_like(source)
    features.run("relay", In(source), out, ROUNDS, wrong)
    wanted = source.reshape(ROUNDS, 32, 4).flip(1).reshape(-1)
    assert torch.equal(out, wanted)


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_arrivals_after_copies(features: Features, mode: int) -> None:
    for seed in SEEDS:
        features.set(seed=seed, **{"async": mode})
        relay(features, RIGHT)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_relays(features: Features, name: str) -> None:
    wrong, report = WRONG[name]
    features.set(max_spins=20_000)
    for seed in SEEDS:
        features.set(seed=seed)
        with pytest.raises(KernelError, match=report):
            relay(features, wrong)


def proxy(features: Features, fence: int) -> None:
    a = (torch.randint(-16, 17, (64, 64)) / 16).half()
    out = torch.full((64, 64), float("nan"))
    features.run("proxy", In(a), out, fence)
    assert torch.equal(out, a.float() @ a.float().T)


@pytest.mark.parametrize("fence", [BY_READER, BY_WRITER])
def test_either_side_may_fence(features: Features, fence: int) -> None:
    for seed in SEEDS:
        features.set(seed=seed)
        proxy(features, fence)


@pytest.mark.parametrize("fence", [BY_NOBODY, BEFORE_THE_WAIT])
def test_missing_proxy_fence(features: Features, fence: int) -> None:
    for seed in SEEDS:
        features.set(seed=seed)
        with pytest.raises(KernelError, match=r"without fence\.proxy\.async"):
            proxy(features, fence)


def test_missing_fence_of_sums(features: Features) -> None:
    features.mutate("drop:wgmma.fence:0@5proxy")
    with pytest.raises(KernelError, match=r"without wgmma\.fence"):
        proxy(features, BY_READER)
