"""The networks of these tests are a plain module beside them; the importlib mode of pytest does not look here by itself."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
