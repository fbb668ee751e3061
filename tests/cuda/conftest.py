"""The backends of the CUDA tests, each opened once a run."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_backend import Backend, open_backend
from planted_faults import summary

opened = cache(open_backend)

FOLDER = Path(__file__).parent
LAST = "test_coverage.py"
GPU_ONLY = "test_graphs.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What asks for the kernels that were launched runs when all others have run."""
    items.sort(key=lambda item: item.path.name == LAST)


@pytest.fixture
def is_whole_suite(request: pytest.FixtureRequest) -> bool:
    """Whether every file of this folder runs, nothing left out by -k or by the name of a test."""
    files = {path.name for path in FOLDER.glob("test_*.py")} - {GPU_ONLY}
    is_part = request.config.option.keyword or any("::" in name for name in request.config.args)
    return files <= {item.path.name for item in request.session.items} and not is_part


@pytest.fixture
def gpu() -> torch.device:
    """For what only a real device can show."""
    return opened("cuda").device


@pytest.fixture(
    params=[
        pytest.param("emulated", marks=pytest.mark.emulated),
        pytest.param("cuda", marks=pytest.mark.cuda),
    ]
)
def backend(request: pytest.FixtureRequest) -> Backend:
    """The CUDA operators, emulated or on a GPU."""
    result = opened(request.param)
    if result.emulator is not None:
        result.emulator.set(race=1, bounds=1, seed=1, sms=2, occupancy=2, resident=2)
        result.emulator.set(max_spins=200_000)
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    """As in tests/conftest.py."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["planted_faults"] = list(summary)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    summary.extend(getattr(node, "workeroutput", {}).get("planted_faults", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if summary:
        terminalreporter.section("faults planted in the CUDA kernels")
        terminalreporter.write_line("\n".join(summary))
