"""The published schemas of the documents of `verify` and `audit`: JSON Schema 2020-12, in the wheel."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, Literal


def load_schema(document: Literal["parity", "audit"] = "parity") -> dict[str, Any]:
    """The schema of `ParityReport.to_dict()`, which parity.json has too, or of `AuditReport.to_dict()`."""
    text = files("bnfold.parity").joinpath(f"{document}.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
