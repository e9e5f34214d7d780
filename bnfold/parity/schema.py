"""The published schema of parity.json and of `verify --json`: JSON Schema 2020-12, in the wheel."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

NAME = "parity.schema.json"


def load_schema() -> dict[str, Any]:
    """The schema of the documents of `ParityReport.to_dict()`, of the version report.SCHEMA_VERSION."""
    schema: dict[str, Any] = json.loads(files("bnfold.parity").joinpath(NAME).read_text(encoding="utf-8"))
    return schema
