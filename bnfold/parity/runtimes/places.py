"""The cells of this machine: ONNX Runtime on the CPU and, where it comes up, on CUDA."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from bnfold.bundle import Bundle
from bnfold.bundle.manifest import MODEL, REFERENCE
from bnfold.errors import BnfoldError
from bnfold.parity.runtimes.cells import SAME_YARDSTICK, Cell, Invariance
from bnfold.parity.runtimes.judgement import Answers, invariance, judge, judge_beside, with_reference
from bnfold.parity.runtimes.trials import Trials
from bnfold.runtime import NoCuda, open_session, run

Session: TypeAlias = Any  # ONNX Runtime's, which has no types
Say: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """Where sessions are opened. tf32: whether CUDA may round factors to TF32; None on the CPU."""

    label: str
    device: Literal["cpu", "cuda"]
    threads: int
    tf32: bool | None = None


def list_places() -> tuple[Place, ...]:
    """The CPU with one thread and with all, CUDA without and with TF32."""
    cores = _cores()
    found = [Place("CPU with 1 thread", "cpu", 1)]
    if cores > 1:
        found.append(Place(f"CPU with {cores} threads", "cpu", cores))
    return (
        *found,
        Place("CUDA with TF32 off", "cuda", 1, tf32=False),
        Place("CUDA with TF32 on", "cuda", 1, tf32=True),
    )


def open_model(bundle: Bundle, file: str, place: Place, *, optimise: bool) -> Session:
    """A session on a model of a bundle. Raises BnfoldError, also where CUDA does not come up."""
    return open_session(
        bundle.session_source(file), optimise=optimise, device=place.device, threads=place.threads,
        tf32=bool(place.tf32),
    )  # fmt: skip


def fill_place(
    bundle: Bundle, place: Place, trials: Trials, decided: str | None, say: Say
) -> Iterator[tuple[Cell, Answers] | Invariance]:
    """The cells of one place, each with what the folded model answered there, and its batch invariance.

    One absent cell where the reference cannot be opened there, or CUDA does not come up.
    """
    here: dict[int, Answers] = {}  # the reference in this place with optimisations off
    for optimise in (False, True):
        blank = Cell(place.label, optimised=optimise, threads=place.threads, tf32=place.tf32)
        say(f"{blank.configuration}: batches of {', '.join(map(str, trials.sizes))}")
        try:
            session = open_model(bundle, REFERENCE, place, optimise=optimise)
        except BnfoldError as problem:
            yield _absent(blank, place, problem), ()
            return
        blank = dataclasses.replace(blank, provider=session.get_providers()[0])
        found: dict[int, Answers] = {}
        absent = dict(trials.refused)
        for size in trials.sizes:
            try:
                found[size] = _answers(session, trials, size)
            except BnfoldError as problem:
                absent[size] = str(problem)
        del session
        here = here or found
        for size, reason in sorted(absent.items()):
            yield dataclasses.replace(blank, batch=size, absent=f"the reference does not run so either: {reason}"), ()
        yield from _folded(bundle, place, blank, trials, (found, here), decided)


def _folded(
    bundle: Bundle, place: Place, blank: Cell, trials: Trials, reference: tuple[dict[int, Answers], dict[int, Answers]],
    decided: str | None,
) -> Iterator[tuple[Cell, Answers] | Invariance]:  # fmt: skip
    """The cells of one session of the folded model. reference: with the same options, and with optimisations off."""
    same, plain = reference
    try:
        session = open_model(bundle, MODEL, place, optimise=bool(blank.optimised))
    except BnfoldError as problem:
        yield dataclasses.replace(blank, problem=str(problem)), ()
        return
    answered: dict[int, Answers] = {}
    limits: dict[str, float] = {}
    for size in same:
        cell = dataclasses.replace(blank, batch=size, rows=size * len(trials.batches[size]))
        try:
            folded = answered[size] = _answers(session, trials, size)
        except BnfoldError as problem:
            yield dataclasses.replace(cell, problem=str(problem)), ()
            continue
        truth, cpu, beside = trials.truth[size], trials.yardstick[size], plain.get(size, same[size])
        if place.tf32:
            cell = dataclasses.replace(cell, yardstick=SAME_YARDSTICK)
            cell = judge(cell, truth, beside, folded, decided=decided, tf32=True)
        elif place.device == "cuda":
            cell = judge_beside(cell, truth, cpu, beside, folded, decided=decided)
        else:
            cell = judge(cell, truth, cpu, folded, decided=decided, copies=partial(trials.copies, size))
        limits = limits or {corner.output: corner.error_limit for corner in cell.corners}
        yield with_reference(cell, truth, same[size]), folded
    if trials.independent and limits and all(map(math.isfinite, limits.values())):
        runs = [pair for size in answered for pair in zip(trials.batches[size], answered[size], strict=True)]
        turned = [batch for size in answered for batch in trials.turned(size)]
        try:
            runs += [(batch, run(session, batch.inputs)) for batch in turned]
        except BnfoldError as problem:
            yield dataclasses.replace(blank, problem=str(problem)), ()
            return
        yield invariance(blank, runs, limits, tuple(answered))


def _absent(blank: Cell, place: Place, problem: BnfoldError) -> Cell:
    """One cell for all that could not be tried: of CUDA as a whole, when its first session does not come up."""
    if place.device == "cuda" and not blank.optimised:
        blank = dataclasses.replace(blank, place="CUDA", optimised=None, tf32=None)
    return dataclasses.replace(blank, absent=problem.reason if isinstance(problem, NoCuda) else str(problem))


def _answers(session: Session, trials: Trials, size: int) -> Answers:
    return tuple(run(session, batch.inputs) for batch in trials.batches[size])


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
