"""Latency in ONNX Runtime with all its optimisations: our fold against the best peer's and torch's default export.

Runs alternate (a machine that slows down slows all of them), their order turns by one each round, and one image a run.
First every right file runs a few rounds, which picks the best peer; then the few that matter run for the medians.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

import bnfold
from zoo.files import Array, Folder, is_right
from zoo.peers import PEERS, tiny

THREADS = (1, 2)
ROUNDS = 31
SCREENING_ROUNDS = 9
_WARM_UP = 4
_FOLDS = 3
_FOLDS_S = 20.0  # no further turn after that many seconds
_SAMPLE_S = 0.004  # a sample repeats a quick network until it takes this long
_OURS, _DEFAULT, _HOOKS = "ours_default", "default", "hooks"


def measure(folder: Folder) -> dict[str, Any]:
    """Latency on one thread and on two, and the seconds that folding takes."""
    return {"threads": {str(n): _measure(folder, n) for n in THREADS}, "fold_seconds": _measure_folding(folder)}


def _measure(folder: Folder, threads: int) -> dict[str, Any]:
    """Median milliseconds of each file that matters, and the ratios of ours to them.

    ratio: the median over rounds of ours / theirs in one round, with its quartiles. same_graph: both files come to the
    same operators on the same sizes after optimisation, so that a ratio other than 1 is noise.
    """
    x = folder.load("x")[:1]
    candidates = [name for name in (_OURS, *_right_peers(folder), _HOOKS) if folder.model(name).exists()]
    timers: dict[str, Callable[[], float]] = {}
    prints: dict[str, str] = {}
    for name in candidates:
        timers[name], prints[name] = _open(folder.model(name), x, threads)
    rivals = [name for name in candidates if name not in (_OURS, _HOOKS)]
    screened = _alternate(timers, SCREENING_ROUNDS)
    best = min(rivals, key=lambda name: statistics.median(screened[name]))
    chosen = list(dict.fromkeys((_OURS, best, _DEFAULT, _HOOKS)))
    timers = {name: timers[name] for name in chosen if name in timers}  # the sessions of the others are closed
    samples = _alternate(timers, ROUNDS)
    medians = {name: 1e3 * statistics.median(taken) for name, taken in samples.items()}
    return {
        "best_peer": best,
        "screened_ms": {name: 1e3 * statistics.median(taken) for name, taken in screened.items()},
        "median_ms": medians,
        "ratio": {name: _ratio(samples[_OURS], samples[name]) for name in samples if name != _OURS},
        "same_graph": [name for name in samples if name != _OURS and prints[name] == prints[_OURS]],
        "rounds": ROUNDS,
    }


def _measure_folding(folder: Folder) -> dict[str, float]:
    """Seconds from the bytes of unfolded.onnx to the bytes of the folded model, in turn, the quickest of three turns.

    Of fewer, where they take long.
    """
    data = folder.model("unfolded").read_bytes()
    tools: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {"bnfold": lambda model: bnfold.fold(model).model}
    tools |= {name: fold for name, fold in PEERS.items() if "seconds" in (folder.read(f"peer-{name}") or {})}
    for fold in tools.values():
        fold(tiny())  # imports, and what is done once
    taken: dict[str, list[float]] = {name: [] for name in tools}
    for turn in range(_FOLDS):
        if turn and sum(sum(seconds) for seconds in taken.values()) > _FOLDS_S:
            break
        for name, fold in tools.items():
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                fold(onnx.load_from_string(data)).SerializeToString()
            taken[name].append(time.perf_counter() - start)
    return {name: min(seconds) for name, seconds in taken.items()}


def _right_peers(folder: Folder) -> list[str]:
    """The files of peers that compute the network, torch's default export among them."""
    unfolded = (folder.read("onnx") or {})["float32_error"]
    found = {name: folder.read(f"peer-{name}") or {} for name in PEERS}
    found[_DEFAULT] = (folder.read("prepare") or {})["default export"]
    return [name for name, result in found.items() if is_right(result, unfolded)]


def _open(path: Path, x: Array, threads: int) -> tuple[Callable[[], float], str]:
    """A function that runs a model once, or several times, and gives the seconds of one run; and its fingerprint."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        session = ort.InferenceSession(  # noqa: TID251 - bnfold.runtime does not save what the runtime makes of a model
            str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        fingerprint = _fingerprint(onnx.load(options.optimized_model_filepath))
    feeds = {session.get_inputs()[0].name: x}
    repeat = 1

    def sample() -> float:
        start = time.perf_counter()
        for _ in range(repeat):
            session.run(None, feeds)
        return (time.perf_counter() - start) / repeat

    quickest = min(sample() for _ in range(_WARM_UP))
    repeat = max(1, round(_SAMPLE_S / quickest))
    return sample, fingerprint


def _alternate(timers: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run all in turn, `rounds` times."""
    names = list(timers)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            samples[name].append(timers[name]())
    return samples


def _ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    by_round = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(by_round, n=4)
    return {
        "median": middle,
        "low": low,
        "high": high,
        "of_medians": statistics.median(ours) / statistics.median(theirs),
    }


def _fingerprint(model: onnx.ModelProto) -> str:
    """Operators, attributes and sizes of the stored tensors, whatever things are called."""
    sizes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        attributes = sorted(
            str(onnx.helper.get_attribute_value(item)) for item in node.attribute if not item.HasField("t")
        )
        nodes.append([node.op_type, attributes, [sizes.get(name, "data") for name in node.input if name]])
    return json.dumps(sorted(nodes, key=str))
