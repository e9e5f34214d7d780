"""What every test shares: property tests without deadlines, one thread for the numerics of child processes."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

# A slow machine is no failure, and a run in CI must be the run at home.
settings.register_profile("bnfold", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("bnfold")

# Two cores are all that CI has; children that each start a pool of threads get in one another's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_make_parametrize_id(val: Any) -> str | None:
    """A case of bytes that are no text goes by its place, not by its bytes: these can hold the time (gzip's header
    does), and processes that share the tests out refuse to run tests whose names differ between them."""
    return "bytes" if isinstance(val, bytes) and not val.isascii() else None
