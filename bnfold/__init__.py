"""bnfold: put networks with batch norm into production, folded exactly and proven.

The public names are loaded when they are first used: `import bnfold` loads neither torch nor onnxruntime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bnfold.errors import BnfoldError, BundleError, DataError, ExportError, FoldError, ParityError

if TYPE_CHECKING:
    from bnfold.api import FoldResult, fold
    from bnfold.build import build_bundle
    from bnfold.bundle import Bundle, load_bundle
    from bnfold.export import export_onnx
    from bnfold.folding.report import FoldReport, NormOutcome
    from bnfold.parity import ParityReport, verify
    from bnfold.parity.audit import AuditReport, audit
    from bnfold.training import Checkpoint, load_checkpoint, train

__version__ = "0.1.0"

__all__ = [
    "AuditReport",
    "BnfoldError",
    "Bundle",
    "BundleError",
    "Checkpoint",
    "DataError",
    "ExportError",
    "FoldError",
    "FoldReport",
    "FoldResult",
    "NormOutcome",
    "ParityError",
    "ParityReport",
    "audit",
    "build_bundle",
    "export_onnx",
    "fold",
    "load_bundle",
    "load_checkpoint",
    "train",
    "verify",
]

_HOME = {
    "AuditReport": "bnfold.parity.audit",
    "Bundle": "bnfold.bundle",
    "Checkpoint": "bnfold.training",
    "FoldReport": "bnfold.folding.report",
    "FoldResult": "bnfold.api",
    "NormOutcome": "bnfold.folding.report",
    "ParityReport": "bnfold.parity",
    "audit": "bnfold.parity.audit",
    "build_bundle": "bnfold.build",
    "export_onnx": "bnfold.export",
    "fold": "bnfold.api",
    "load_bundle": "bnfold.bundle",
    "load_checkpoint": "bnfold.training",
    "train": "bnfold.training",
    "verify": "bnfold.parity",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
