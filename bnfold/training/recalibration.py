"""A checkpoint whose norms have the statistics of other data: no labels, no gradient, no weight that changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bnfold.bundle.manifest import TensorSpec
from bnfold.errors import DataError
from bnfold.samples import Array, load_samples
from bnfold.training.checkpoint import Checkpoint, load_checkpoint
from bnfold.training.folders import check_folder
from bnfold.training.saving import save_again
from bnfold.training.statistics import norms_of, recalibrate

BATCH_SIZE = 256
_EVALUATED = 256  # images at once


@dataclass(frozen=True)
class Score:
    """On the held-out samples of the checkpoint. loss: mean cross-entropy in nats; accuracy: a share of 1."""

    loss: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Recalibrated:
    """The new checkpoint, the norms and samples that made it, and how it judges what the old one was judged by."""

    checkpoint: Checkpoint
    norms: int
    samples: int
    before: Score
    after: Score


def recalibrate_checkpoint(
    source: Path | str,
    data: Path | str,
    output: Path | str,
    *,
    exact: bool = False,
    batch_size: int = BATCH_SIZE,
    network: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Recalibrated:
    """Measure every norm of a checkpoint over a data set and write the network with these statistics as a new one.

    data: an .npz or a folder of pictures, as `bnfold.samples.load_samples` takes them; labels are not looked at.
    exact: layer by layer over all data; otherwise in one pass, each norm by the batch (`bnfold.training.statistics`).
    batch_size: at most so many samples at once, from 2; the batches are as equal as they can be. network: as for
    `Checkpoint.module`.

    Raises DataError for data that do not fit, a network without such norms, statistics that are not finite, or an
    output that exists; then nothing is written.
    """
    if batch_size < 2:
        raise DataError(f"the batch size is {batch_size}; expected 2 or more, as one value has no variance")
    say = progress or (lambda _: None)
    old, output = load_checkpoint(source), Path(output)
    check_folder(output, "checkpoint")
    module = old.module(network)
    norms = norms_of(module)
    if not norms:
        raise DataError(f"{source} has no norm with running statistics; expected one; there is nothing to recalibrate")
    images = _images(old, data)
    before = _score(module, *old.held_out())
    say(f"{len(norms)} norms over {len(images)} samples")
    parts = np.array_split(images, math.ceil(len(images) / batch_size))
    recalibrate(module, [torch.from_numpy(part) for part in parts], "exact" if exact else "batch")
    after = _score(module, *old.held_out())
    if not math.isfinite(after.loss):
        raise DataError(
            f"with the statistics of {data} the outputs of {source} are not finite on its held-out samples; "
            "expected finite ones; give data that are more like them"
        )
    metrics = {key: value for key, value in old.meta["metrics"].items() if not key.startswith("train_")}
    metrics |= {
        "held_out_accuracy": after.accuracy,
        "held_out_loss": after.loss,
        "recalibrated_on": Path(data).name,
        "recalibrated_samples": len(images),
        "recalibrated_exactly": exact,
    }
    made = save_again(output, old, module, {**old.meta, "metrics": metrics})
    return Recalibrated(made, len(norms), len(images), before, after)


def _images(old: Checkpoint, data: Path | str) -> Array:
    spec = TensorSpec("input", "float32", (-1, *old.input_shape))
    samples = load_samples(Path(data), [spec], preprocessing=old.preprocessing, is_labelled=False)
    images = samples.inputs["input"]
    if len(images) < 2:
        raise DataError(f"{data} has {len(images)} sample, expected 2 or more; one alone has no variance")
    return images


def _score(module: nn.Module, images: Array, classes: Array) -> Score:
    loss, correct = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(images), _EVALUATED):
            logits = module(torch.from_numpy(images[start : start + _EVALUATED]))
            wanted = torch.from_numpy(classes[start : start + _EVALUATED])
            loss += float(F.cross_entropy(logits, wanted, reduction="sum"))
            correct += int((logits.argmax(1) == wanted).sum())
    return Score(loss / len(images), correct / len(images))
