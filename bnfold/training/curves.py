"""The history of a training as CSV, and as a picture of loss and accuracy."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path

from bnfold.training.folders import read_text
from bnfold.training.loop import Epoch


def write_history(path: Path, history: Sequence[Epoch]) -> None:
    """One row an epoch, the field names of Epoch as header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in dataclasses.fields(Epoch)])
        writer.writerows([f"{value:.6g}" for value in dataclasses.astuple(row)] for row in history)


def read_history(path: Path) -> list[Epoch]:
    """What `write_history` wrote; empty for a file that is anything else."""
    names = [field.name for field in dataclasses.fields(Epoch)]
    try:
        head, *rows = csv.reader(io.StringIO(read_text(path), newline=""))
        numbers = [[float(text) for text in row] for row in rows]
        history = [Epoch(epoch, *row) for epoch, (_, *row) in enumerate(numbers, start=1)]
    except (ValueError, TypeError, csv.Error):
        return []
    counted = [row[0] for row in numbers] == [row.epoch for row in history]
    finite = all(math.isfinite(value) for row in numbers for value in row)
    shares = all(0 <= share <= 1 for row in history for share in (row.train_accuracy, row.held_out_accuracy))
    return history if head == names and counted and finite and shares else []


def draw_curves(path: Path, history: Sequence[Epoch], title: str) -> None:
    """Loss (logarithmic) and accuracy by epoch, training and held-out, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    epochs = [row.epoch for row in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    for axes, train, held_out in (
        (loss, [row.train_loss for row in history], [row.held_out_loss for row in history]),
        (accuracy, [row.train_accuracy for row in history], [row.held_out_accuracy for row in history]),
    ):
        marker = "o" if len(epochs) == 1 else None
        axes.plot(epochs, train, label="training", color="#8a8f98", marker=marker)
        axes.plot(epochs, held_out, label="held out", color="#0b61a4", marker=marker)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    loss.set_yscale("log")
    loss.set_ylabel("cross-entropy (nats)")
    accuracy.set_ylabel("accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    accuracy.legend(frameon=False, loc="lower right")
    last = history[-1]
    accuracy.annotate(
        f"{last.held_out_accuracy:.2%}",
        (last.epoch, last.held_out_accuracy),
        xytext=(-4, -14),
        textcoords="offset points",
        ha="right",
        color="#0b61a4",
    )
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
