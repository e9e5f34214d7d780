"""The trainings of a study, in processes side by side: each is small, and a process has its own random numbers."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from bnfold.errors import BnfoldError
from bnfold.training.duration import duration
from bnfold.training.study.experiments import Arm, Experiment


@dataclass(frozen=True)
class Run:
    """One training. accuracies: held out, after each epoch. failure: the sentence that ended it early, or empty."""

    experiment: str
    label: str
    place: float
    seed: int
    accuracies: tuple[float, ...]
    seconds: float
    failure: str

    @property
    def final(self) -> float:
        """The accuracy after the last epoch; 0 for a training that failed."""
        return 0.0 if self.failure or not self.accuracies else self.accuracies[-1]


@dataclass(frozen=True)
class Task:
    """What one process is asked for."""

    recipe: Path
    overrides: tuple[str, ...]
    experiment: str
    arm: Arm
    seed: int
    device: str


def train_all(
    recipe: Path,
    overrides: Sequence[str],
    experiments: Sequence[Experiment],
    seeds: int,
    *,
    device: str,
    jobs: int,
    progress: Callable[[str], None],
) -> list[Run]:
    """Every arm with every seed. jobs: processes beside each other, 0 for one a core (one in all on CUDA)."""
    tasks = [
        Task(recipe, (*overrides, *arm.overrides, f"seed={seed}"), experiment.name, arm, seed, device)
        for experiment in experiments
        for arm in experiment.arms
        for seed in range(seeds)
    ]
    found = []
    progress(f"0/{len(tasks)} trainings")
    begun = time.monotonic()
    for number, run in enumerate(_results(tasks, jobs or _cores(device)), 1):
        found.append(run)
        result = run.failure or f"{run.final:.2%}"
        left = duration((time.monotonic() - begun) / number * (len(tasks) - number))
        about = f"{run.experiment}: {run.label}{_at(run)}, seed {run.seed}: {result}"
        progress(f"{number}/{len(tasks)}  {left} left  {about}")
    return sorted(found, key=lambda run: (run.experiment, run.label, run.place, run.seed))


def train_one(task: Task) -> Run:
    """One training, in memory. A recipe that cannot be followed, or a loss that is not finite, is its failure."""
    from bnfold.training.recipe import load_recipe
    from bnfold.training.trainer import train_in_memory

    arm = task.arm
    try:
        recipe = load_recipe(task.recipe, task.overrides)
        _, history = train_in_memory(recipe, device=task.device)
    except BnfoldError as problem:
        return Run(task.experiment, arm.label, arm.place, task.seed, (), 0.0, str(problem))
    accuracies = tuple(row.held_out_accuracy for row in history)
    seconds = sum(row.seconds for row in history)
    return Run(task.experiment, arm.label, arm.place, task.seed, accuracies, seconds, "")


def _results(tasks: Sequence[Task], jobs: int) -> Iterator[Run]:
    if jobs == 1:
        yield from map(train_one, tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(train_one, task) for task in tasks]):
            yield future.result()


def _cores(device: str) -> int:
    if device != "cpu":
        import torch

        if torch.cuda.is_available():
            return 1
    return len(os.sched_getaffinity(0))


def _at(run: Run) -> str:
    return f" at {run.place:g}" if run.place else ""
