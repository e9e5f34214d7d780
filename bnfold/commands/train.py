"""`bnfold train`: a recipe becomes a checkpoint."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.commands.options import Commands, add_command, add_recipe
from bnfold.errors import DataError

if TYPE_CHECKING:
    from bnfold.commands.console import Console


def add(commands: Commands) -> None:
    """Declare the parser."""
    parser = add_command(
        commands,
        "train",
        run,
        "Train the network of a recipe. Writes a checkpoint folder: weights.safetensors, checkpoint.json, "
        "held_out.safetensors, history.csv, norms.csv, curves.png, readiness.html and readiness.json. While it trains, "
        "it warns of norms that are on their way to trouble, and FOLDER.partial has a snapshot of the last epoch, from "
        "which --resume goes on after whatever stopped it, bit for bit on the CPU. Started by torchrun, the processes "
        "share every batch.",
    )
    add_recipe(parser)
    parser.add_argument(
        "--resume",
        metavar="FOLDER",
        type=Path,
        help="go on with the run that was to write this checkpoint folder, with the same recipe and --set",
    )
    parser.add_argument(
        "--tensorboard",
        metavar="FOLDER",
        type=Path,
        help="write the history, epoch by epoch, into an event file for TensorBoard in this folder",
    )
    parser.add_argument(
        "--mlflow",
        metavar="URI",
        help="log recipe, history and checkpoint at this MLflow tracking server (http:, https:, or file: for a folder)",
    )
    parser.add_argument(
        "--mlflow-experiment", metavar="NAME", help="the experiment there (default: the name of the recipe)"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        type=Path,
        help="the checkpoint folder, which must not exist (default: the next free runs/<recipe>/<n>)",
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Train; prints where the checkpoint is and what it reached."""
    from bnfold.commands.console import shown
    from bnfold.training import train
    from bnfold.training.distributed import is_first_process
    from bnfold.training.readiness.writing import verdict_counts
    from bnfold.training.voice import is_said_elsewhere

    with _terminated_like_interrupted():
        try:
            checkpoint = train(
                options.recipe,
                device=options.device,
                overrides=options.overrides,
                output=options.output,
                resume=options.resume,
                progress=console.progress,
                warn=lambda sentence: console.note(f"bnfold: {sentence}"),
                tensorboard=options.tensorboard,
                mlflow=options.mlflow,
                mlflow_experiment=options.mlflow_experiment,
            )
        except (DataError, KeyboardInterrupt) as problem:
            if is_said_elsewhere(problem):
                return 2 if isinstance(problem, DataError) else 130
            raise
    if not is_first_process():
        return 0
    metrics = checkpoint.meta["metrics"]
    verdicts = verdict_counts(checkpoint.path)
    document = {
        "checkpoint": str(checkpoint.path),
        "name": checkpoint.name,
        "seed": checkpoint.meta["seed"],
        "metrics": metrics,
        "readiness": verdicts,
    }
    lines = [f"  {key.replace('_', ' ')}: {_shown(key, value)}" for key, value in metrics.items()]
    console.result(document, "\n".join([shown(checkpoint.path), *lines, f"  fold-readiness: {_readiness(verdicts)}"]))
    return 0


def _shown(key: str, value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2%}" if key.endswith("accuracy") else f"{value:.4g}"


def _readiness(verdicts: Mapping[str, int] | None) -> str:
    """What readiness.html says, in a line."""
    if verdicts is None:
        return "not judged"
    ready, count = verdicts.get("ready", 0), sum(verdicts.values())
    others = ", ".join(f"{verdict}: {norms}" for verdict, norms in sorted(verdicts.items()) if verdict != "ready")
    return f"{ready} of {count} norms ready" + (f"; {others}; readiness.html says why" if others else "")


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, by which batch systems end what they run, is an interrupt too: it says how to go on."""
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
