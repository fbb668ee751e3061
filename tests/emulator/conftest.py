"""The emulator's feature library, opened once a run."""

from functools import cache

import pytest
from cuda_backend import refuse
from emulator.library import LIBRARY, Features

opened = cache(Features)


@pytest.fixture
def features() -> Features:
    """Kernels to run by name, with the emulator's options as they are by default."""
    if not LIBRARY.exists():
        refuse(
            "PERFCONV_REQUIRE_EMULATOR",
            "the emulator's features are not built (no nvcc when perfconv was built)",
        )
    result = opened()
    result.reset()
    return result
