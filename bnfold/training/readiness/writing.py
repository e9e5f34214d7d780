"""readiness.json and readiness.html, into the folder of a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bnfold.errors import BnfoldError
from bnfold.training.data import Array
from bnfold.training.readiness.measuring import NormReadiness, Readiness, measure_readiness
from bnfold.training.readiness.outlook import EPS_SHARE, HORIZON, LAST, NEAR, SPAN, forewarnings
from bnfold.training.readiness.page import readiness_page
from bnfold.training.readiness.verdicts import AMPLIFICATION, FACTOR, FEWEST, HALF, ROOM, SHIFT, Word, judge, word_of
from bnfold.training.trends import DEAD, Trends

SCHEMA_VERSION = 1
PAGE = "readiness.html"
DOCUMENT = "readiness.json"


def write_readiness(
    folder: Path,
    module: nn.Module,
    checkpoint_meta: Mapping[str, Any],
    held_out_images: Array,
    trends: Trends | None = None,
) -> None:
    """Measure a trained network and write both files. held_out_images: (N, C, H, W) float32 as the network takes them.

    trends: of the training, where these weights came out of one.
    A network that cannot be measured gets files that say why: a training is not lost for that. Raises OSError where
    nothing can be written.
    """
    try:
        found = measure_readiness(module, held_out_images)
    except (BnfoldError, RuntimeError) as problem:  # torch has no memory, or cannot run a user's network here
        found = Readiness((), 0, str(problem))
    name = str(checkpoint_meta["name"])
    document = {**_document(name, found), "trends": None if trends is None else _trends(trends)}
    (folder / DOCUMENT).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", "utf-8")
    page = readiness_page(name, checkpoint_meta, found, trends)
    (folder / PAGE).write_text(page, "utf-8", errors="backslashreplace")


def verdict_counts(folder: Path) -> dict[str, int] | None:
    """How many norms got which verdict, as the file in a checkpoint has it; None where there is no such file."""
    try:
        counts = json.loads((folder / DOCUMENT).read_text("utf-8"))["counts"]
        return {str(word): int(count) for word, count in counts.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # somebody may have removed it
        return None


def _document(name: str, found: Readiness) -> dict[str, Any]:
    """JSON has no NaN and no infinity: numbers that are not finite are written as "nan", "inf", "-inf"."""
    rows = [_row(row) for row in found.norms]
    counts: dict[Word, int] = {}
    for row in rows:
        counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "images": found.images,
        "untraced": found.untraced,
        "counts": counts,
        "thresholds": {
            "half_largest": HALF / ROOM,
            "mean_shift": SHIFT,
            "variance_factor": FACTOR,
            "fewest_values": FEWEST,
            "amplification": AMPLIFICATION,
        },
        "norms": rows,
    }


def _trends(trends: Trends) -> dict[str, Any]:
    """What was warned of, and when; the numbers stand in norms.csv."""
    return {
        "epochs": len(trends.values),
        "planned": trends.planned,
        "thresholds": {
            "largest": HALF / ROOM,
            "eps_share": EPS_SHARE,
            "dead": DEAD,
            "mean_drift": SHIFT,
            "variance_drift": FACTOR,
            "span": SPAN,
            "horizon": HORIZON,
            "near": NEAR,
            "last": LAST,
        },
        "warnings": [dataclasses.asdict(one) for one in forewarnings(trends)],
    }


def _row(row: NormReadiness) -> dict[str, Any]:
    findings = judge(row)
    numbers = {key: _plain(value) for key, value in dataclasses.asdict(row).items()}
    said = [{"word": finding.word, "sentence": finding.sentence} for finding in findings]
    return {**numbers, "dead": list(row.dead), "verdict": word_of(findings), "findings": said}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
