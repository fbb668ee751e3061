"""Each kind of mutation does what it says, and nothing else."""

import pytest
import torch
from emulator.library import Features, In, KernelError

pytestmark = pytest.mark.emulated

KERNEL = "7mutatedE"
VALUES = torch.arange(64, dtype=torch.int32) ** 2
WANTED = VALUES.flip(0) - VALUES


def run(features: Features, count: int = 64) -> torch.Tensor:
    out = torch.full((64,), -1, dtype=torch.int32)
    features.run("mutated", In(VALUES), out, count)
    return out


def outcomes(features: Features, pattern: str, template: str, count: int = 64) -> list[str]:
    """What becomes of each mutant: "same", "wrong" or the report."""
    results = []
    for number in range(features.count(pattern, KERNEL)):
        features.mutate(template.format(number) + "@" + KERNEL)
        try:
            results.append("same" if torch.equal(run(features, count), WANTED) else "wrong")
        except KernelError as error:
            results.append(str(error))
    features.mutate("")
    assert torch.equal(run(features), WANTED)
    return results


def test_drop(features: Features) -> None:
    results = outcomes(features, "bar.sync", "drop:bar.sync:{}")
    assert len(results) == 1
    assert "RACE" in results[0] or "nobody wrote" in results[0]


def test_swap(features: Features) -> None:
    assert "wrong" in outcomes(features, "swap:sub", "swap:sub:{}")
    assert set(outcomes(features, "swap:add", "swap:add:{}")) <= {"same"}


def test_unpredicate(features: Features) -> None:
    results = outcomes(features, "unpred:", "unpred:{}", 64)
    assert results == ["wrong"]  # the branch around the store is always taken


def test_shift(features: Features) -> None:
    results = outcomes(features, "shift:", "shift:{}:4")
    assert len(results) == 5  # one load and two accesses of global memory, three of shared
    assert "same" not in results
    assert any("out of bounds" in result or "illegal" in result for result in results)
    assert all("misaligned" in r for r in outcomes(features, "shift:", "shift:{}:2"))


def test_wait(features: Features) -> None:
    source = torch.arange(512, dtype=torch.int32)
    out = torch.zeros(512, dtype=torch.int32)
    places = features.count("wait:", "11copy_groupsE")
    assert places > 0
    reports = 0
    for number in range(places):
        features.mutate(f"wait:{number}:1@11copy_groupsE")
        try:
            features.run("copy_groups", In(source), out, 0)
        except KernelError as error:
            reports += "in-flight cp.async" in str(error)
    assert reports >= 1


def test_places_that_ran(features: Features) -> None:
    assert [runs for runs, _, _ in features.places("st.", KERNEL)] == [0, 0]  # no profile
    features.set(profile=1)
    run(features, 64)
    shared, stored = features.places("st.", KERNEL)
    assert shared[:2] == stored[:2] == (2, 0)  # two warps, no lane held back
    assert "st.shared" in shared[2]
    assert "memory.cu" in stored[2] or "order.cu" in stored[2]
    ((_, all_run, _),) = features.places("unpred:", KERNEL)
    run(features, 32 + 8)
    ((_, held, where),) = features.places("unpred:", KERNEL)
    assert where.endswith("bra")
    assert held > all_run
    features.set(profile=0)
    run(features)
    assert features.places("st.", KERNEL)[0][0] == 0


@pytest.mark.parametrize(
    "spec",
    [
        "gone:bar.sync:0",
        "drop:bar.sync",
        "drop:bar.sync:x",
        "wait:0",
        "shift:0",
        "drop",
        "add:sub:0",
        "source:0",
    ],
)
def test_nonsense(features: Features, spec: str) -> None:
    assert features.library.emu_mutate(spec.encode()) == -1
    assert "mutation" in features.text("last_error")
