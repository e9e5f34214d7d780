"""What every test shares: property tests without deadlines, one thread for the numerics of child processes."""

from __future__ import annotations

import os

from hypothesis import settings

# A slow machine is no failure, and a run in CI must be the run at home.
settings.register_profile("bnfold", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("bnfold")

# Two cores are all that CI has; children that each start a pool of threads get in one another's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
