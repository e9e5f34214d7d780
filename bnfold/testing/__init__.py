"""For tests of other people's: `assert_parity(model, folded, inputs)` proves a fold, whoever made it.

asserting.py   assert_parity, tier by tier        networks.py   what may be given, and how it runs
proof.py       the proof, and how a failure reads batches.py    the inputs, as every network takes them
gathering.py   the proofs of one test run, in one report (bnfold.pytest_plugin)

Loaded when used: `import bnfold.testing` loads neither torch nor onnxruntime nor pytest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold.testing.asserting import assert_parity
    from bnfold.testing.proof import ParityFailure, ParityProof

__all__ = ["ParityFailure", "ParityProof", "assert_parity"]

_HOME = {
    "ParityFailure": "bnfold.testing.proof",
    "ParityProof": "bnfold.testing.proof",
    "assert_parity": "bnfold.testing.asserting",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bnfold.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
