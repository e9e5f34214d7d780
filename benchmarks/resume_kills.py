"""Kill a training again and again at random moments, and look whether it still ends with the same bits.

    python benchmarks/resume_kills.py [RUNS]

Each run is killed (SIGKILL) once at a random moment between its first write and its end, resumed, and its weights are
compared byte for byte with those of a run that was left alone. Writes benchmarks/results/resume_kills.json.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
import random
import sys
import tempfile
import time
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch
from safetensors import safe_open

from bnfold.training import train

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "models/digits-mlp/recipe.toml"
# Everything that has a state is on: the average, the best weights, the augmentation.
SETTINGS = ("train.epochs=40", "train.ema=0.9", "train.keep=best", "augmentation.flip=true", "network.widths=[32, 16]")


def main() -> None:
    """Run all, print a line each, write the results."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        process = start(whole, "output")
        began = time.perf_counter()
        process.join()
        length = time.perf_counter() - began
        expected = digest(whole)
        rows = []
        for number in range(count):
            rows.append(kill_once(Path(scratch) / str(number), chance.random() * length, expected))
            print(f"{number + 1}/{count}: {rows[-1]}", file=sys.stderr)
    document = {
        "recipe": RECIPE.parent.name,
        "settings": SETTINGS,
        "n": count,
        "same_bits": sum(row["same_bits"] for row in rows),
        "killed": sum(row["killed"] for row in rows),
        "killed_with_a_snapshot": sum(row["found"] == "snapshot" for row in rows),
        "killed_after_epochs": sorted(row["epochs"] for row in rows if row["found"] == "snapshot"),
        "killed_with_a_checkpoint": sum(row["found"] == "checkpoint" for row in rows),
        "killed_before_an_epoch": sum(row["found"] == "nothing" for row in rows),
        "hardware": {"cpu": cpu(), "cores": os.cpu_count(), "gpu": None},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    target = ROOT / "benchmarks/results/resume_kills.json"
    target.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"{document['same_bits']} of {count} with the same bits, {document['killed']} killed; {target}")


def kill_once(folder: Path, after: float, expected: str) -> dict[str, bool | int | str]:
    """after: seconds from the moment that the run has begun to write. found: what lay there after the kill."""
    process = start(folder, "output")
    time.sleep(after)
    process.kill()
    process.join()
    killed = process.exitcode != 0
    snapshot = folder.with_name(f"{folder.name}.partial") / "snapshot.safetensors"
    epochs, found = 0, "checkpoint" if folder.exists() else "nothing"
    if snapshot.exists():
        with safe_open(snapshot, framework="np") as file:
            found, epochs = "snapshot", len(json.loads(file.metadata()["snapshot"])["history"])
    again = start(folder, "resume")
    again.join()
    return {"killed": killed, "found": found, "epochs": epochs, "same_bits": digest(folder) == expected}


def start(folder: Path, option: str) -> ForkProcess:
    """A training in a process of its own, once it has begun to write or has ended.

    Forked, so that each does not import torch again: nothing is written during that.
    """
    process = multiprocessing.get_context("fork").Process(target=run, args=({option: folder},))
    process.start()
    partial = folder.with_name(f"{folder.name}.partial")
    while process.is_alive() and not partial.exists():
        time.sleep(0.002)
    return process


def run(place: dict[str, Path]) -> None:
    """What the process does. place: output or resume, and the folder."""
    train(RECIPE, device="cpu", overrides=SETTINGS, **place)


def digest(folder: Path) -> str:
    """SHA-256 of the weights; empty where there are none."""
    try:
        return hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def cpu() -> str:
    """The model of the processor, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
