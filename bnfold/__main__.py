"""`python -m bnfold`, and the console script `bnfold`."""

from __future__ import annotations

import sys

from bnfold.cli import main

if __name__ == "__main__":
    sys.exit(main())
