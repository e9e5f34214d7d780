"""The cells of a running server: first whether it serves this very bundle, then what it answers, door by door."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from bnfold.bundle import Bundle
from bnfold.bundle.manifest import MODEL
from bnfold.datatypes import DATATYPES
from bnfold.errors import BnfoldError, DataError
from bnfold.parity.runtimes.cells import Cell, Invariance
from bnfold.parity.runtimes.doors import Entrance, list_entrances
from bnfold.parity.runtimes.judgement import Answers, distance, invariance, judge, judge_chances
from bnfold.parity.runtimes.trials import Outputs, Trials
from bnfold.remote import Reply, ask, printable

Say: TypeAlias = Callable[[str], None]

SECONDS = 60.0  # for one answer
_REFUSING = (400, 404, 405, 413, 415, 501)  # of a batch that is too large, a door that is not there
_DIGEST = "bnfold-model-digest"


@dataclass(frozen=True)
class ServerResult:
    """What was found at a URL. identity: what the server says that it serves."""

    cells: tuple[Cell, ...] = ()
    invariances: tuple[Invariance, ...] = ()
    notes: tuple[str, ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)


def check_server(
    bundle: Bundle, url: str, trials: Trials, local: Mapping[int, Answers], decided: str | None, say: Say
) -> ServerResult:
    """Ask a server for the rows of the trials. local: answers by batch size of the folded model on the CPU, one thread,
    optimisations all, which is how `bnfold serve` runs it.

    Never raises for what the server does: that is a finding.
    """
    base = url.rstrip("/").removesuffix(f"/models/{bundle.manifest.name}")  # as `bnfold predict` takes it
    blank = Cell(f"server {_shown(base)}")
    say(f"{blank.place}: what it serves")
    wrong = _identify(bundle, base, blank)
    if wrong is not None:
        return ServerResult(
            (wrong,), identity={"url": _shown(base), "serves_this_bundle": False if wrong.problem else None}
        )
    cells: list[Cell] = []
    invariances: list[Invariance] = []
    digests: set[str] = set()
    for entrance in list_entrances(bundle.manifest, trials.yardstick[trials.sizes[0]][0]):
        place = dataclasses.replace(blank, door=entrance.door)
        say(f"{place.configuration}: batches of {', '.join(map(str, trials.sizes))}")
        visit = _Visit(bundle, base, entrance, place, trials, local, decided)
        cells += visit.cells(digests)
        if entrance.door == "v2 binary":
            invariances += visit.invariances(cells)
        if any(cell.doubt and cell.batch is None for cell in cells):
            break  # it has gone: the other doors would only wait for it again
    if all(cell.absent for cell in cells):
        reason = next((cell.absent for cell in cells), "")
        cells.append(dataclasses.replace(blank, doubt=f"it took no batch through any door: {reason}"))
    notes, other = _digest_notes(bundle, blank, digests)
    identity = {"url": _shown(base), "serves_this_bundle": not other, "model_digests": sorted(digests)}
    return ServerResult((*other, *cells), tuple(invariances), notes, identity)


def _identify(bundle: Bundle, base: str, blank: Cell) -> Cell | None:
    """A cell that says why the server does not serve this bundle; None when it does, by name, version and shapes."""
    manifest = bundle.manifest
    label = f"{manifest.name}/{manifest.version}"
    unsent = [spec for spec in (*manifest.inputs, *manifest.outputs) if spec.dtype not in DATATYPES]
    if unsent:
        doubt = f"'{unsent[0].name}' is {unsent[0].dtype}, which cannot be sent to a server"
        return dataclasses.replace(blank, doubt=doubt)
    try:
        reply = ask(f"{base}/v2/models/{manifest.name}/versions/{manifest.version}", seconds=SECONDS)
    except BnfoldError as problem:
        return dataclasses.replace(blank, doubt=str(problem))
    if reply.status == 404:
        problem_ = f"it does not serve {label}: it answered 404, {reply.error()}"
        return dataclasses.replace(
            blank, problem=f"{problem_}; give the address of a server of this bundle, without a path"
        )
    if reply.status != 200:
        return dataclasses.replace(blank, doubt=f"asked for {label} it answered {reply.status}: {reply.error()}")
    try:
        document = reply.document()
        found = {side: _ports(document[side]) for side in ("inputs", "outputs")}
        name = document["name"]
    except (ValueError, KeyError, TypeError):
        return dataclasses.replace(
            blank, problem=f"what it says of {label} is no metadata of the Open Inference Protocol"
        )
    if name != manifest.name:
        return dataclasses.replace(blank, problem=f"it does not serve {label}, but {name!r:.80}")
    for side, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        wanted = {spec.name: (DATATYPES[spec.dtype], list(spec.shape)) for spec in specs}
        if found[side] != wanted:
            said = f"it does not serve this bundle: its {side} of {label} are {_words(found[side])}"
            return dataclasses.replace(blank, problem=f"{said}; expected {_words(wanted)}")
    return None


def _ports(entries: Any) -> dict[str, tuple[Any, Any]]:
    return {str(entry["name"]): (entry["datatype"], entry["shape"]) for entry in entries}


def _words(ports: Mapping[str, tuple[Any, Any]]) -> str:
    words = ", ".join(f"{name} {datatype} {shape}" for name, (datatype, shape) in sorted(ports.items()))
    return printable(words)[:300]


@dataclass(frozen=True)
class _Visit:
    """One door of one server, with all batches."""

    bundle: Bundle
    base: str
    entrance: Entrance
    place: Cell
    trials: Trials
    local: Mapping[int, Answers]
    decided: str | None
    answers: dict[int, Answers] = field(default_factory=dict)

    def cells(self, digests: set[str]) -> Iterator[Cell]:
        """A cell a batch size; one for all where the door is closed. digests: takes what answers say they are of."""
        missing = self.entrance.missing or self._unsendable()
        if missing:
            yield dataclasses.replace(self.place, absent=missing)
            return
        for size in self.trials.sizes:
            batches = self.trials.batches[size]
            cell = dataclasses.replace(self.place, batch=size, rows=size * len(batches))
            try:
                replies = self._ask(size)
            except BnfoldError as problem:
                yield dataclasses.replace(self.place, doubt=str(problem))
                return
            bad = next((reply for reply in replies if reply.status != 200), None)
            if bad is not None:
                yield self._refused(cell, bad)
                continue
            digests |= {reply.headers.get(_DIGEST, "") for reply in replies}
            yield self._judged(
                dataclasses.replace(cell, provider=replies[0].headers.get("bnfold-provider", "")), replies
            )

    def invariances(self, cells: list[Cell]) -> Iterator[Invariance]:
        """How much a row depends on its batch, of what the door answered."""
        found = next((cell for cell in cells if cell.batch in self.answers and cell.corners), None)
        if not self.trials.independent or found is None:
            return
        limits = {corner.output: corner.error_limit for corner in found.corners}
        if all(map(math.isfinite, limits.values())):
            sizes = tuple(self.answers)
            runs = [pair for size in sizes for pair in zip(self.trials.batches[size], self.answers[size], strict=True)]
            yield invariance(dataclasses.replace(self.place, place=self.place.configuration), runs, limits, sizes)

    def _ask(self, size: int) -> list[Reply]:
        """One reply a batch, up to the first that is not a success."""
        replies = []
        for batch in self.trials.batches[size]:
            body, headers = self.entrance.write(batch.inputs)
            replies.append(ask(f"{self.base}{self.entrance.path}", body, headers, seconds=SECONDS))
            if replies[-1].status != 200:
                break
        return replies

    def _refused(self, cell: Cell, reply: Reply) -> Cell:
        said = f"it answered {reply.status}: {reply.error()}"
        if reply.status in _REFUSING:
            return dataclasses.replace(cell, absent=said)
        # 500: the model failed on an input that the reference takes; anything else is the server's state.
        return dataclasses.replace(cell, problem=said) if reply.status == 500 else dataclasses.replace(cell, doubt=said)

    def _judged(self, cell: Cell, replies: list[Reply]) -> Cell:
        size, view = cell.batch or 0, self.entrance.view
        yardstick = self.trials.yardstick[size]
        try:
            answers = [self.entrance.read(reply, like) for reply, like in zip(replies, yardstick, strict=True)]
        except DataError as problem:
            return dataclasses.replace(cell, problem=str(problem))
        self.answers[size] = answers
        truth = self.trials.truth[size]
        if self.entrance.softmax is not None:
            cell = judge_chances(cell, truth, yardstick, answers, output=self.entrance.softmax)
            return self._held_against_local(cell, answers, view)
        # /predict writes doubles; in the model's dtype they are what it computed, with its roundoff.
        narrow = [
            {name: array.astype(like[name].dtype, copy=False) for name, array in outputs.items()}
            for outputs, like in zip(answers, yardstick, strict=True)
        ]
        shown = [{name: like[name] for name in outputs} for outputs, like in zip(answers, yardstick, strict=True)]
        true = [{name: outputs[name] for name in narrow[0]} for outputs in truth]
        copies = partial(self.trials.copies, cell.batch) if cell.batch else None
        cell = judge(cell, true, shown, narrow, decided=self.decided, copies=copies)
        return self._held_against_local(cell, answers, view)

    def _held_against_local(self, cell: Cell, answers: Answers, view: Callable[[Outputs], Outputs]) -> Cell:
        """With the difference from this machine's own run; the wire adds none, so that any is another runtime's."""
        local = self.local.get(cell.batch or 0, ())
        if len(local) != len(answers):
            return cell
        apart = [
            distance(np.asarray(view(here)[name]), outputs[name])
            for here, outputs in zip(local, answers, strict=True)
            for name in outputs
        ]
        worst, ulp = (max(column) for column in zip(*apart, strict=True))
        if worst == 0:
            return dataclasses.replace(cell, difference=0.0)
        units = "" if self.entrance.softmax else f" ({ulp:.3g} ulp)"  # small probabilities have ulp of no meaning
        note = f"not bit for bit what this machine computes: up to {worst:.3g} away{units}"
        return dataclasses.replace(cell, difference=worst, note=note)

    def _unsendable(self) -> str:
        """Why JSON cannot carry these rows."""
        if self.entrance.door == "v2 binary":
            return ""
        arrays = list(self.trials.pool.values())
        arrays += [array for found in self.trials.yardstick.values() for outputs in found for array in outputs.values()]
        finite = all(np.isfinite(array.astype(np.float64)).all() for array in arrays)
        return "" if finite else "there are NaN or infinite values among these rows, which JSON does not carry"


def _digest_notes(bundle: Bundle, blank: Cell, digests: set[str]) -> tuple[tuple[str, ...], tuple[Cell, ...]]:
    """What the answers say of the file that they are of: notes, and a failing cell when it is another one."""
    own = bundle.hashes.get(MODEL) or bundle.manifest.files[MODEL]
    said = digests - {""}
    if not said:
        return (
            (f"{blank.place} does not say which file it runs; name, version and shapes are all that was compared",)
            if digests
            else ()
        ), ()
    if said == {f"sha256:{own}"}:
        return (), ()
    other = ", ".join(sorted(said))[:200]
    problem = f"it runs another model.onnx under this name, {other}; expected sha256:{own}; serve this bundle"
    return (), (dataclasses.replace(blank, problem=problem),)


def _shown(url: str) -> str:
    """The address for a sentence, without a user's name and password."""
    scheme, separator, rest = url.rpartition("://")
    authority, slash, path = rest.partition("/")
    return printable(f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}")[:200]
