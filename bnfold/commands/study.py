"""`bnfold study`: what batch norm does for the network of a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.commands.options import Commands, add_command, add_recipe

if TYPE_CHECKING:
    from bnfold.commands.console import Console


def add(commands: Commands) -> None:
    """Declare the parser."""
    parser = add_command(
        commands,
        "study",
        run,
        "Train the network of a recipe with and without batch norm, with other norms, learning rates and batch sizes. "
        "Writes study.html, one sentence for each finding and the curves behind it, and study.json.",
    )
    add_recipe(parser)
    parser.add_argument("--seeds", metavar="N", type=int, default=5, help="trainings of each kind (default: 5)")
    parser.add_argument(
        "--experiment",
        dest="experiments",
        metavar="NAME",
        action="append",
        default=[],
        help="speed, rates, batches, norms, order or bias; repeatable (default: all that the network has the keys for)",
    )
    parser.add_argument(
        "--jobs", metavar="N", type=int, default=0, help="trainings side by side (default: one a core, one on CUDA)"
    )
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", type=Path, required=True, help="the folder to write, which must not exist"
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Study; prints the findings and where the page is."""
    from bnfold.commands.console import shown
    from bnfold.training.study import run_study

    study = run_study(
        options.recipe,
        output=options.output,
        overrides=options.overrides,
        experiments=options.experiments,
        seeds=options.seeds,
        device=options.device,
        jobs=options.jobs,
        progress=console.progress,
    )
    lines = [f"{finding.claim}: {finding.verdict}\n  {finding.sentence}" for finding in study.findings]
    findings = [
        {"claim": finding.claim, "verdict": finding.verdict, "sentence": finding.sentence} for finding in study.findings
    ]
    document = {"folder": str(study.folder), "trainings": len(study.runs), "findings": findings}
    console.result(document, "\n".join([*lines, f"{shown(study.folder / 'study.html')}"]))
    return 0
