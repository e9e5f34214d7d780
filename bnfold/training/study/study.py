"""A whole study: plan, train, find, write."""

from __future__ import annotations

import dataclasses
import json
import platform
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bnfold
from bnfold.errors import DataError
from bnfold.training.folders import check_folder, write_folder
from bnfold.training.recipe import Recipe, load_recipe
from bnfold.training.snapshot import recipe_document
from bnfold.training.study.experiments import Experiment, plan
from bnfold.training.study.findings import Finding, find
from bnfold.training.study.page import render
from bnfold.training.study.runs import Run, train_all


@dataclass(frozen=True)
class Study:
    """What was done, and what it says. folder: where `study.json` and `study.html` are."""

    folder: Path
    name: str
    experiments: tuple[Experiment, ...]
    runs: tuple[Run, ...]
    findings: tuple[Finding, ...]
    about: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain values."""
        return {
            "name": self.name,
            "about": self.about,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "experiments": [dataclasses.asdict(experiment) for experiment in self.experiments],
            "runs": [dataclasses.asdict(run) for run in self.runs],
        }


def run_study(
    recipe: Path | str,
    *,
    output: Path | str,
    overrides: Sequence[str] = (),
    experiments: Sequence[str] = (),
    seeds: int = 5,
    device: str = "auto",
    jobs: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Study:
    """Train the network of a recipe with and without batch norm and otherwise, and write what that says.

    output: a folder, which must not exist. experiments: names, all by default. seeds: trainings of each kind.
    Raises DataError for a recipe that cannot be followed and a folder that exists.
    """
    path, folder = Path(recipe), Path(output)
    if seeds < 1:
        raise DataError(f"a study with {seeds} seeds says nothing; expected 1 or more, and 3 or more for verdicts")
    check_folder(folder, "study")
    base = load_recipe(path, overrides)
    planned = plan(base, tuple(experiments))
    runs = train_all(path, overrides, planned, seeds, device=device, jobs=jobs, progress=progress)
    broken = [run for run in runs if run.failure and not run.accuracies]
    if len(broken) == len(runs):
        raise DataError(f"no training of the study came to its end: {broken[0].failure}")
    findings = find(planned, runs)
    study = Study(
        folder,
        base.name,
        planned,
        tuple(runs),
        tuple(findings),
        _about(base, device, seeds, _command(path, folder, overrides, experiments, seeds, device, jobs)),
    )
    _write(study)
    return study


def _command(
    path: Path,
    folder: Path,
    overrides: Sequence[str],
    experiments: Sequence[str],
    seeds: int,
    device: str,
    jobs: int,
) -> str:
    """What does the same again on a command line."""
    words = [f"--set={text}" for text in overrides] + [f"--experiment={name}" for name in experiments]
    words += [f"--seeds={seeds}"]
    words += [f"--device={device}"] if device != "auto" else []
    words += [f"--jobs={jobs}"] if jobs else []
    return shlex.join(["bnfold", "study", str(path), *words, "-o", str(folder)])


def _about(base: Recipe, device: str, seeds: int, command: str) -> dict[str, Any]:
    import torch

    return {
        "command": command,
        "seeds": seeds,
        "device": device,
        "recipe": recipe_document(base),
        "bnfold": bnfold.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _write(study: Study) -> None:
    def fill(scratch: Path) -> None:
        (scratch / "study.json").write_text(json.dumps(study.to_dict(), indent=1) + "\n", encoding="utf-8")
        (scratch / "study.html").write_text(render(study.to_dict()), encoding="utf-8")

    write_folder(study.folder, "study", fill)
