"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import pathlib

from tests.processes import FAST_COMPILATION

# Before JAX and transformers are imported.
CACHE = pathlib.Path(__file__).parents[1] / ".cache"
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "alone")
os.environ.setdefault("XLA_FLAGS", FAST_COMPILATION)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "jax"))
os.environ.setdefault("XDG_CACHE_HOME", str(CACHE / "home"))
os.environ.setdefault("HF_MODULES_CACHE", str(CACHE / f"modules-{WORKER}"))  # of exported models

import hypothesis
import pytest

# Machines differ in speed, and a slow one is no failure.
hypothesis.settings.register_profile("rc3", deadline=None)
hypothesis.settings.load_profile("rc3")


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data beside the project: skipped where absent, failed in CI."""
    folder = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        reason = "../shared/data is absent; it is needed only for tests on real data"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
