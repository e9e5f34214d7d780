"""Held-out accuracy of a recipe over five seeds: python benchmarks/digits_seeds.py [RECIPE.toml]

Writes benchmarks/results/<recipe>_seeds.json with hardware, versions and n.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from bnfold.training import load_recipe, train

ROOT = Path(__file__).parents[1]
SEEDS = range(5)


def main() -> None:
    """Train every seed, print a line each, write the results."""
    recipe = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "models/digits-cnn/recipe.toml"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            made = train(recipe, device="cpu", overrides=[f"seed={seed}"], output=Path(folder) / str(seed))
            metrics = made.meta["metrics"]
            rows.append({"seed": seed, **{key: metrics[key] for key in ("held_out_accuracy", "seconds")}})
            print(f"seed {seed}: {metrics['held_out_accuracy']:.2%} in {metrics['seconds']:.1f} s", file=sys.stderr)
    accuracies = [row["held_out_accuracy"] for row in rows]
    document = {
        "recipe": load_recipe(recipe).name,
        "held_out_samples": 359,
        "n": len(rows),
        "mean_held_out_accuracy": statistics.mean(accuracies),
        "lowest_held_out_accuracy": min(accuracies),
        "longest_seconds": max(row["seconds"] for row in rows),
        "runs": rows,
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": None},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    target = ROOT / "benchmarks/results" / f"{document['recipe']}_seeds.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=2) + "\n")
    print(f"mean {document['mean_held_out_accuracy']:.2%}, n = {len(rows)}; {target}")


def _cpu() -> str:
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    main()
