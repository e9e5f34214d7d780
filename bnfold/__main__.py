"""`python -m bnfold`, and the console script `bnfold`."""

from __future__ import annotations

import os
import signal
import sys

if sys.argv[1:2] == ["serve"]:  # the imports take a while, and nothing is accepted yet
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

from bnfold.cli import main

if __name__ == "__main__":
    sys.exit(main())
