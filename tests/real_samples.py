"""Real files for tests: a folder named by PERFCONV_SAMPLES (layout: docs/datasets.md)."""

import os
from pathlib import Path

import pytest


def sample_folder(name: str) -> Path:
    """The samples of one data set; skips the test without them."""
    root = os.environ.get("PERFCONV_SAMPLES")
    if not root:
        pytest.skip("PERFCONV_SAMPLES names no folder with real samples (docs/datasets.md)")
    folder = Path(root) / name
    if not folder.is_dir():
        pytest.skip(f"{root} has no samples of {name}")
    return folder
