"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real questions and passages, beside the repo or named by STEPER_SHARED_DATA."""
    named = os.environ.get("STEPER_SHARED_DATA")
    folder = Path(named) if named else REPO.parent / "shared" / "data"
    if not (folder / "README.md").is_file():
        pytest.skip(f"real data not found: looked at {folder} (set STEPER_SHARED_DATA)")
    return folder
