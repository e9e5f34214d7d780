"""The speed run's network on the digits, with its whitening first layer and without: python benchmarks/whitening.py

Writes benchmarks/results/whitening.json with hardware, versions and n.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import torch
from digits_seeds import _cpu

from bnfold.training import load_recipe
from bnfold.training.study.findings import interval
from bnfold.training.trainer import train_in_memory

RESULTS = Path(__file__).parent / "results" / "whitening.json"
SEEDS = range(40)
EPOCHS = (6, 12)
RECIPE = """
name = "whitening"
data.name = "digits"
network = { kind = "airbench", widths = [16, 32] }
optimizer = { kind = "sgd", learning_rate = 0.5, momentum = 0.85, weight_decay = 0.0013 }
train = { epochs = 6, batch_size = 64, label_smoothing = 0.2 }
augmentation.shift = 1
"""


def main() -> None:
    """Train both ways for each number of epochs, print a line each, write the results."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.toml"
        recipe.write_text(RECIPE)
        for epochs in EPOCHS:
            for whiten in ("true", "false"):
                accuracies = [_accuracy(recipe, epochs, whiten, seed) for seed in SEEDS]
                rows.append({"epochs": epochs, "whiten": whiten == "true", "held_out_accuracies": accuracies})
                print(f"{epochs} epochs, whiten = {whiten}: {interval(accuracies):.1%}", file=sys.stderr)
    document = {
        "recipe": RECIPE,
        "n": len(SEEDS),
        "rows": rows,
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": None},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    RESULTS.write_text(json.dumps(document, indent=2) + "\n")
    print(RESULTS)


def _accuracy(recipe: Path, epochs: int, whiten: str, seed: int) -> float:
    """Held out, after the last epoch."""
    words = [f"train.epochs={epochs}", f"network.whiten={whiten}", f"seed={seed}"]
    _, history = train_in_memory(load_recipe(recipe, words), device="cpu")
    return history[-1].held_out_accuracy


if __name__ == "__main__":
    main()
