"""The models of these tests are plain modules beside them, which pytest finds through this path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
