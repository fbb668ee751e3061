"""Every test runs in torch's deterministic mode, where memory that nobody writes holds NaN.

Also: the histogram of the algorithms that were compared with the oracle, at the end of a run.
"""

import os
from collections.abc import Iterator
from typing import Any

# The float16 convolutions of torch's oneDNN, with which results are compared, crash in 2.13 on
# processors with float16 arithmetic (F.conv2d of (1, 3, 13, 1) with (7, 3, 2, 1), stride (4, 3),
# padding (0, 2), dilation 3). Read when torch runs its first one.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

os.environ["PERFCONV_TUNED"] = "0"  # a table in the user's cache is none of the tests' business

import helpers
import hypothesis
import pytest
import torch

import perfconv

# Tests that count what the ones before them did, or build the distributions once for all.
TOGETHER = ("tests/cuda/", "tests/build/", "tests/ops/test_conv_properties.py")

hypothesis.settings.register_profile(
    "perfconv", derandomize=True, database=None, deadline=None, print_blob=False
)
hypothesis.settings.load_profile("perfconv")


def pytest_configure(config: pytest.Config) -> None:
    ignored = "ignore:Using padding='same' with even kernel lengths"  # torch, about its own speed
    config.addinivalue_line("filterwarnings", ignored)


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Uninitialised memory holds NaN (torch.utils.deterministic.fill_uninitialized_memory)."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny problems wait longer for a second thread than it saves; some tests set two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_report_header() -> str:
    info = perfconv.build_info()
    return f"perfconv: {info['cpu_isa']} kernels, built with torch {info['torch_build']}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests go to the workers of pytest-xdist one by one, but TOGETHER stay in one process."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((scope for scope in TOGETHER if scope in nodeid), nodeid)

    return Scheduler(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist tells what it counted, the process that started it adds it up."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["algorithms_run"] = dict(helpers.algorithms_run)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    helpers.algorithms_run.update(getattr(node, "workeroutput", {}).get("algorithms_run", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if helpers.algorithms_run:
        terminalreporter.section("algorithms compared with float64 dense convolution")
        terminalreporter.write_line("\n".join(helpers.histogram()))
