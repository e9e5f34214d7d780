"""The proofs of one test run in one report: HTML, JSON or JUnit, by the ending of its file."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bnfold
from bnfold.errors import DataError
from bnfold.pages.page import write_page
from bnfold.parity.report import ParityReport, TierResult
from bnfold.testing.proof import ParityProof

ENDINGS = (".html", ".json", ".xml")


def check_path(path: str) -> None:
    """Raises DataError for a file that no report can be written to."""
    if Path(path).suffix not in ENDINGS:
        raise DataError(f"--bnfold-report is {path}, expected a file ending in {', '.join(ENDINGS)}")
    if Path(path).is_dir():
        raise DataError(f"--bnfold-report is {path}, a folder; expected the name of a file, as in {path}/parity.html")


def pack(test: str, proof: ParityProof) -> str:
    """A proof as text, as one process hands it to another."""
    return json.dumps({"test": test, "tiers": proof.to_dict()["tiers"], "notes": list(proof.report.notes)})


def gather(packed: Sequence[str]) -> ParityReport:
    """All proofs as one report; the title of a tier says of which test it is."""
    tiers: list[TierResult] = []
    notes: list[str] = []
    for text in packed:
        document = json.loads(text)
        tiers += [_tier(document["test"], tier) for tier in document["tiers"]]
        notes += [f"{document['test']}: {note}" for note in document["notes"]]
    environment = {"bnfold": bnfold.__version__, "python": platform.python_version(), "machine": platform.machine()}
    name = json.loads(packed[0])["test"] if len(packed) == 1 else f"{len(packed)} proofs"
    return ParityReport(name, None, tuple(tiers), environment, tuple(notes))


def _tier(test: str, tier: Mapping[str, Any]) -> TierResult:
    known = {field.name for field in dataclasses.fields(TierResult)}
    parts: dict[str, Any] = {
        name: tuple(part) if isinstance(part, list) else part for name, part in tier.items() if name in known
    }
    return TierResult(**{**parts, "title": f"{tier['title']}: {test}"})


def write(packed: Sequence[str], path: str) -> None:
    """Write the report. Raises DataError where the file cannot be written."""
    report = gather(packed)
    match Path(path).suffix:
        case ".html":
            from bnfold.pages.parity import parity_page

            text = parity_page(report.to_dict(), command=f"pytest --bnfold-report={path}")
        case ".xml":
            from bnfold.parity.junit import to_junit

            text = to_junit(report)
        case _:
            text = json.dumps(report.to_dict(), indent=2) + "\n"
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise DataError(f"the report cannot be written to {path} ({problem.strerror}); give another file") from problem
    write_page(text, Path(path), ENDINGS)  # whole or not at all
