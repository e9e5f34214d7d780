"""The trainer against a plain PyTorch loop, in one run: python benchmarks/train_speed.py [--device cpu] [-n 3]

The plain loop is what is usually written: a Dataset that normalises, crops and mirrors one sample at a time, a
DataLoader (0 and 2 workers, which live on; pinned memory on CUDA), autocast, channels_last. Both have the same network,
initial weights, optimiser, schedule, augmentation, data, batch size and threads, and both judge the held-out samples
after every epoch, which is part of the epoch's time. The ways take turns, so that other work on the machine meets all.

images/s: training images by the seconds of an epoch, the median over the epochs of a turn without its first; of the
turns the median and the range. Time to accuracy: seconds of all epochs until the held-out samples are that accurate,
the first epoch and compilation included. On the CPU the CIFAR-shaped networks and data are small. Writes
benchmarks/results/train_speed.json with hardware, versions, n and commit.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from digits_seeds import _cpu
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Samples
from torch.utils.flop_counter import FlopCounterMode

from bnfold.training import load_recipe
from bnfold.training.data import Dataset, load_dataset, scaling
from bnfold.training.execution import autocast, settings
from bnfold.training.networks import build_network
from bnfold.training.optimizers import build_optimizer
from bnfold.training.recipe import Recipe
from bnfold.training.schedules import SCHEDULES
from bnfold.training.trainer import train_in_memory

ROOT = Path(__file__).parents[1]
# Dense bfloat16 with float32 sums, in FLOP/s, as their maker's data sheets have it.
PEAKS = {
    "H200": 989e12, "H100 80GB HBM3": 989e12, "H100 PCIe": 756e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12,
    "4090": 165e12,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A recipe, what is changed in it on both devices and on each, and the accuracy to reach."""

    recipe: str
    target: float
    changed: tuple[str, ...] = ()
    cpu: tuple[str, ...] = ()
    cuda: tuple[str, ...] = ()


_MADE_UP = ("data.name=synthetic", "data.path=''")
CASES = {
    "digits": Case("digits-cnn", 0.98, ("train.epochs=16", "train.channels_last=true")),
    "airbench": Case(
        # Noise has nothing to whiten, and the plain loop has no layer that is computed from the data.
        "cifar10-airbench", 0.95, (*_MADE_UP, "network.whiten=false"),
        cpu=("network.widths=[16, 32, 32]", "train.epochs=4", "train.batch_size=125", "optimizer.learning_rate=0.3",
             "data.count=2500", "train.precision=float32"),
        cuda=("data.count=60000", "train.epochs=8"),
    ),
    "resnet": Case(
        "cifar10-resnet", 0.99, _MADE_UP,
        cpu=("network.widths=[16, 32]", "network.blocks=1", "train.epochs=4", "data.count=2500"),
        cuda=("data.count=60000", "train.epochs=4", "train.precision=bfloat16", "train.batch_size=512"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """An epoch: its seconds, and the accuracy after it."""

    seconds: float
    accuracy: float


def main() -> None:
    """Every case in every way by turns; prints a line a training and writes the results."""
    parser = argparse.ArgumentParser(description="The trainer against a plain PyTorch loop.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("-n", "--turns", type=int, default=3)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; leave out --device")
    device = torch.device(options.device)
    before = os.getloadavg()
    commit = {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": bool(_git("status", "--porcelain", "--", "bnfold", "benchmarks/train_speed.py")),
    }
    cases = {name: _measure(name, case, device, options.turns) for name, case in CASES.items()}
    document = {
        "device": device.type,
        "n": options.turns,
        "cases": cases,
        "load_average_before": before,
        "load_average_after": os.getloadavg(),
        "hardware": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
        **commit,
    }
    target = ROOT / "benchmarks/results/train_speed.json"
    target.write_text(json.dumps(document, indent=2) + "\n")
    print(target)


def _measure(name: str, case: Case, device: torch.device, turns: int) -> dict[str, Any]:
    words = [*case.changed, *(case.cuda if device.type == "cuda" else case.cpu)]
    path = ROOT / "models" / case.recipe / "recipe.toml"
    found: dict[str, list[list[Row]]] = {}
    for turn in range(turns):
        ways = list(_ways(device).items())
        for way, train in ways[turn % len(ways) :] + ways[: turn % len(ways)]:  # none is always the first
            rows = train(load_recipe(path, [*words, f"seed={turn}"]))
            found.setdefault(way, []).append(rows)
            print(f"{name}, turn {turn}, {way}: {sum(row.seconds for row in rows):.1f} s", file=sys.stderr)
    recipe = load_recipe(path, words)
    data = load_dataset(recipe.data, recipe.folder)
    images = len(data.training_part()[0])
    summary = {way: _summary(trainings, images, case.target) for way, trainings in found.items()}
    speed = {way: each["images_per_second"]["median"] for way, each in summary.items()}
    document = {
        "recipe": case.recipe,
        "changed": words,
        "images": images,
        "target_accuracy": case.target,
        "ways": summary,
        "times_the_faster_plain_loop": round(
            speed["bnfold"] / max(speed[way] for way in speed if way.startswith("plain")), 2
        ),
    }
    if device.type == "cuda":
        document |= _share_of_peak(recipe, data, device, speed["bnfold"])
    return document


def _ways(device: torch.device) -> dict[str, Callable[[Recipe], list[Row]]]:
    """On CUDA the trainer also compiles the network and replays it as CUDA graphs; once more without both."""
    plain = {f"plain_workers_{count}": partial(_plain, device=device, workers=count) for count in (0, 2)}
    if device.type == "cpu":
        return {"bnfold": partial(_bnfold, device=device), **plain}
    return {
        "bnfold": partial(_bnfold, device=device, compiled=True),
        "bnfold_not_compiled": partial(_bnfold, device=device),
        **plain,
    }


def _bnfold(recipe: Recipe, device: torch.device, compiled: bool = False) -> list[Row]:
    train = dataclasses.replace(recipe.train, compile=compiled, cuda_graphs=compiled)
    _, history = train_in_memory(dataclasses.replace(recipe, train=train), device=device.type)
    return [Row(row.seconds, row.held_out_accuracy) for row in history]


def _summary(trainings: list[list[Row]], images: int, target: float) -> dict[str, Any]:
    speeds = [images / statistics.median(row.seconds for row in rows[1:]) for rows in trainings]
    reached = [_seconds_to(rows, target) for rows in trainings]
    return {
        "images_per_second": _spread(speeds, 0),
        "seconds_to_accuracy": _spread([each for each in reached if each is not None], 2),
        "reached": sum(each is not None for each in reached),
        "final_accuracies": [round(rows[-1].accuracy, 4) for rows in trainings],
    }


def _seconds_to(rows: list[Row], target: float) -> float | None:
    for count, row in enumerate(rows, 1):
        if row.accuracy >= target:
            return sum(each.seconds for each in rows[:count])
    return None


def _spread(values: list[float], digits: int) -> dict[str, float] | None:
    if not values:
        return None
    middle = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
    return {name: round(value, digits) for name, value in middle.items()}


class _Augmented(Samples[tuple[torch.Tensor, torch.Tensor]]):
    """One sample at a time, as torchvision's transforms work: to float, normalised, cropped from padding, mirrored."""

    def __init__(self, data: Dataset, part: tuple[Any, Any], recipe: Recipe | None) -> None:
        self.images, self.classes = (torch.from_numpy(array) for array in part)
        bytes_ = self.images.dtype == torch.uint8
        self.scaling = [torch.from_numpy(array)[0] for array in scaling(data.preprocessing)] if bytes_ else None
        self.shift = recipe.augmentation.shift if recipe else 0
        self.flip = bool(recipe and recipe.augmentation.flip)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.images[index]
        if self.scaling is not None:
            image = image * self.scaling[0] + self.scaling[1]
        if self.shift:
            height, width = image.shape[1:]
            top, left = torch.randint(0, 2 * self.shift + 1, (2,)).tolist()
            image = F.pad(image, (self.shift,) * 4)[:, top : top + height, left : left + width]
        if self.flip and torch.rand(()) < 0.5:
            image = image.flip(2)
        return image, self.classes[index]


def _plain(recipe: Recipe, device: torch.device, workers: int) -> list[Row]:
    """The usual loop, from the same initial weights."""
    if recipe.augmentation.cutout or recipe.optimizer.clip_norm or recipe.train.ema:
        raise SystemExit(f"the plain loop has no cutout, clipping or average, which {recipe.name} asks for")
    data, wanted = load_dataset(recipe.data, recipe.folder), recipe.train
    loading = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": device.type == "cuda"}
    training = DataLoader(_Augmented(data, data.training_part(), recipe), wanted.batch_size, shuffle=True, **loading)
    held_out = DataLoader(_Augmented(data, data.held_out_part(), None), 1024, **loading)
    with settings(recipe, device):
        network = _network(recipe, data, device)
        optimizer = build_optimizer(network, recipe.optimizer)
        steps = wanted.epochs * len(training)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: SCHEDULES[wanted.schedule](step, steps))
        rows = []
        for _ in range(wanted.epochs):
            start = time.perf_counter()
            network.train()
            for images, classes in _moved(training, recipe, device):
                optimizer.zero_grad()
                with autocast(wanted, device):
                    loss = F.cross_entropy(network(images), classes, label_smoothing=wanted.label_smoothing)
                loss.backward()
                optimizer.step()
                schedule.step()
            network.eval()
            with torch.no_grad():
                correct = [(network(x).argmax(1) == y).sum() for x, y in _moved(held_out, recipe, device)]
            accuracy = float(sum(correct)) / len(held_out.dataset)
            rows.append(Row(time.perf_counter() - start, accuracy))
    return rows


def _network(recipe: Recipe, data: Dataset, device: torch.device) -> nn.Module:
    torch.manual_seed(recipe.seed)
    network = build_network(recipe.network.kind, data.images.shape[1:], len(data.labels), recipe.network.args)
    return network.to(device, memory_format=_format(recipe))


def _format(recipe: Recipe) -> torch.memory_format:
    return torch.channels_last if recipe.train.channels_last else torch.contiguous_format


def _moved(
    loader: DataLoader[Any], recipe: Recipe, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for images, classes in loader:
        yield (
            images.to(device, non_blocking=True, memory_format=_format(recipe)),
            classes.to(device, non_blocking=True),
        )


def _share_of_peak(recipe: Recipe, data: Dataset, device: torch.device, speed: float) -> dict[str, Any]:
    """Multiplications and additions of the layers, forward and backward, against the card's peak in bfloat16."""
    count = recipe.train.batch_size
    network = _network(recipe, data, device)
    images = torch.zeros(count, *data.images.shape[1:], device=device)
    with FlopCounterMode(display=False) as counter, autocast(recipe.train, device):
        network(images).float().sum().backward()
    each = counter.get_total_flops() / count
    name = torch.cuda.get_device_name()
    peak = next((value for card, value in PEAKS.items() if card in name), None)
    share = None if peak is None else round(each * speed / peak, 4)
    return {"flops_per_image": each, "peak_flops": peak, "share_of_peak": share}


def _git(*arguments: str) -> str:
    with contextlib.suppress(OSError):
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return ""


if __name__ == "__main__":
    main()
