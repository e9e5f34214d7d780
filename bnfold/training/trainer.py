"""From a recipe to a checkpoint."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bnfold.training.checkpoint import SCHEMA_VERSION, Checkpoint, check_folder, save_checkpoint
from bnfold.training.data import Dataset, load_dataset
from bnfold.training.loop import Epoch, Progress, choose_device, fit
from bnfold.training.networks import build_network
from bnfold.training.recipe import Recipe, load_recipe

RUNS = Path("runs")


def train(
    recipe: Path | str,
    *,
    device: str = "auto",
    overrides: Sequence[str] = (),
    output: Path | str | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Train the network of a recipe.

    device: auto, cpu or cuda. overrides: `key=value` with dots between tables. output: the checkpoint folder, which
    must not exist; the next free `runs/<name>/<n>` by default. progress: called with one line an epoch.

    The same recipe, seed and machine give the same weights bit for bit on the CPU. Raises DataError for a recipe that
    cannot be followed, a device that is not there, a loss that is not finite, or a folder that exists.
    """
    wanted = load_recipe(recipe, overrides)
    place = choose_device(device)
    folder = Path(output) if output is not None else _next_run(wanted.name)
    check_folder(folder)
    data = load_dataset(wanted.data, wanted.folder)
    shape = data.images.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(wanted.seed)
        network = build_network(wanted.network.kind, shape, len(data.labels), wanted.network.args)
    threads = torch.get_num_threads()
    torch.set_num_threads(wanted.train.threads)
    try:
        history = fit(network, data, wanted, place, progress or (lambda _: None))
    finally:
        torch.set_num_threads(threads)
    meta = _meta(wanted, data, history, place)
    return save_checkpoint(folder, network.to("cpu"), meta, history, data.held_out_part(), counted=output is None)


def _next_run(name: str) -> Path:
    """The first number that is above all that are taken."""
    root = RUNS / name
    taken = [int(item.name) for item in root.iterdir() if item.name.isdecimal()] if root.is_dir() else []
    return root / str(max(taken, default=0) + 1)


def _meta(recipe: Recipe, data: Dataset, history: Sequence[Epoch], device: torch.device) -> dict[str, Any]:
    last = history[-1]
    return {
        "schema_version": SCHEMA_VERSION,
        "name": recipe.name,
        "network": {"kind": recipe.network.kind, "args": dict(recipe.network.args)},
        "input": {"name": "input", "shape": list(data.images.shape[1:]), "dtype": "float32"},
        "labels": list(data.labels),
        "preprocessing": data.preprocessing.to_dict(),
        "data": data.name,
        "recipe": {key: value for key, value in dataclasses.asdict(recipe).items() if key != "folder"},
        "seed": recipe.seed,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "scikit-learn": importlib.metadata.version("scikit-learn"),
        },
        "metrics": {
            "held_out_accuracy": last.held_out_accuracy,
            "held_out_loss": last.held_out_loss,
            "train_accuracy": last.train_accuracy,
            "train_loss": last.train_loss,
            "epochs": last.epoch,
            "seconds": round(sum(row.seconds for row in history), 3),
            "device": device.type,
        },
    }
