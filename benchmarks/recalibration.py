"""What recalibrating running statistics does to accuracy, over five seeds: python benchmarks/recalibration.py

Of digits-mlp, which trains on shifted digits. "same": the training digits as they are, without the shifts; "dimmed":
the training digits darker by half on a background of grey, judged by held-out digits that look the same. Writes
benchmarks/results/digits-mlp_recalibration.json with hardware, versions and n.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from digits_seeds import _cpu

from bnfold.training import Checkpoint, load_recipe, train
from bnfold.training.data import load_dataset
from bnfold.training.statistics import recalibrate

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "models/digits-mlp/recipe.toml"
SEEDS = range(5)
BATCH = 256

DOMAINS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "same": lambda x: x,
    "dimmed": lambda x: x * 0.5 + 0.3,
}


def main() -> None:
    """Train every seed, recalibrate it four ways, write the results."""
    recipe = load_recipe(RECIPE)
    images = torch.from_numpy(load_dataset(recipe.data, recipe.folder).training_part()[0])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            made = train(RECIPE, device="cpu", overrides=[f"seed={seed}"], output=Path(folder) / str(seed))
            row = {name: _measured(made, images, look) for name, look in DOMAINS.items()}
            rows.append({"seed": seed, **row})
            held_out = len(made.held_out()[1])
            print(json.dumps(rows[-1]), file=sys.stderr)
    mean = {
        name: {key: round(statistics.mean(row[name][key] for row in rows), 4) for key in rows[0][name]}
        for name in DOMAINS
    }
    document = {
        "recipe": recipe.name,
        "samples": {"recalibrated": len(images), "held_out": held_out},
        "n": len(rows),
        "mean_accuracy": mean,
        "runs": rows,
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": None},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    target = ROOT / "benchmarks/results/digits-mlp_recalibration.json"
    target.write_text(json.dumps(document, indent=2) + "\n")
    print(f"{json.dumps(mean)}, n = {len(rows)}; {target}")


def _measured(made: Checkpoint, images: torch.Tensor, look: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
    """Held-out accuracy as trained, and with the statistics of the images by batch and exactly."""
    x, classes = (torch.from_numpy(part) for part in made.held_out())
    batches = list(look(images).tensor_split(-(-len(images) // BATCH)))
    found = {}
    for meaning in ("trained", "batch", "exact"):
        module = made.module()
        if meaning != "trained":
            recalibrate(module, batches, "exact" if meaning == "exact" else "batch")
        with torch.no_grad():
            found[meaning] = float((module(look(x)).argmax(1) == classes).double().mean())
    return found


if __name__ == "__main__":
    main()
