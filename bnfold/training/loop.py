"""The training loop: one device, the whole data set on it, augmentation there too, the same code on CPU and CUDA."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from bnfold.training.augmentation import augment
from bnfold.training.data import Array, Dataset, scaling
from bnfold.training.distributed import ALONE, Group
from bnfold.training.divergence import Divergence, Watch, first_layer_not_finite
from bnfold.training.duration import duration
from bnfold.training.execution import Forward, autocast, forward_of
from bnfold.training.memory import does_not_fit
from bnfold.training.networks.factory import run_by
from bnfold.training.run import Epoch as Epoch
from bnfold.training.run import Run
from bnfold.training.schedules import SCHEDULES
from bnfold.training.smallest_batch import smallest_batch
from bnfold.training.trends import channels_of, norm_numbers

Progress = Callable[[str], None]

_EVALUATED = 1024  # images at once
_EVALUATED_BYTES = 2**26  # and no more of them than this as float32


class Feed:
    """Images (N, C, H, W) and classes (N,) on a device, the images as they are stored: those of bytes stay bytes."""

    def __init__(self, part: tuple[Array, Array], data: Dataset, device: torch.device, channels_last: bool) -> None:
        self.images, self.classes = (torch.from_numpy(array).to(device) for array in part)
        self._scaling: tuple[torch.Tensor, ...] | None = None
        if self.images.dtype == torch.uint8:
            self._scaling = tuple(torch.from_numpy(array).to(device) for array in scaling(data.preprocessing))
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Images as the network takes them, float32, and classes."""
        # index_select copies whole images, indexing goes pixel by pixel.
        images = self.images[index] if isinstance(index, slice) else self.images.index_select(0, index)
        if self._scaling is not None:
            factor, offset = self._scaling
            images = images.to(torch.float32).mul_(factor).add_(offset)
        return images.contiguous(memory_format=self._format), self.classes[index]


def fit(run: Run, data: Dataset, progress: Progress, snapshot: Callable[[], None]) -> None:
    """Train to the end, from wherever the run stands. snapshot: called after an epoch, as often as the recipe says.

    The order of the data and the augmentation come from the recipe's seed alone. Raises Divergence when the loss is no
    longer finite, and DataError when a batch does not fit the memory.
    """
    wanted = run.recipe.train
    training = Feed(data.training_part(), data, run.device, wanted.channels_last)
    held_out = Feed(data.held_out_part(), data, run.device, wanted.channels_last)
    forward = forward_of(run.network, wanted, run.device)
    before = channels_of(run.judged)
    while not run.is_over:
        start = time.perf_counter()
        out_of_memory = False
        try:
            rate, train_loss, train_accuracy = _train_epoch(run, training, forward)
        except torch.OutOfMemoryError:
            out_of_memory = True  # outside of this block the batch that failed is let go
        if out_of_memory:
            smallest = smallest_batch(run.network)
            raise does_not_fit(
                wanted.batch_size, run.device, lambda size: _attempt(run, training, size), smallest, run.group
            )
        with run_by(run.recipe.network.kind):
            held_out_loss, held_out_accuracy = evaluate(run.judged, held_out, run.group)
        epoch = len(run.history) + 1
        if not math.isfinite(held_out_loss):
            # The last step of an epoch can break the network while its own loss is still finite.
            raise _diverged(run.judged, "held-out loss", held_out_loss, epoch, held_out.batch(slice(_EVALUATED))[0])
        now = channels_of(run.judged)
        numbers, before = norm_numbers(before, now), now
        seconds = time.perf_counter() - start
        run.add(Epoch(epoch, rate, train_loss, train_accuracy, held_out_loss, held_out_accuracy, seconds), numbers)
        if epoch % wanted.snapshot == 0 or run.is_over:
            snapshot()
        progress(_line(run, len(training)))


def _train_epoch(run: Run, training: Feed, forward: Forward) -> tuple[float, float, float]:
    """One pass over the data: its first learning rate, and the mean loss and accuracy of its steps."""
    wanted, group = run.recipe.train, run.group
    batches = batch_slices(len(training), wanted.batch_size, group.smallest_batch)
    step, steps = len(run.history) * len(batches), wanted.epochs * len(batches)
    watch = Watch(run.device)
    run.network.train()
    order = torch.randperm(len(training), generator=run.generator).to(run.device)
    loss_sum, correct = torch.zeros((), device=run.device), torch.zeros((), device=run.device)
    first_rate = _set_rate(run, step, steps)
    for batch in batches:
        _set_rate(run, step, steps)
        images, classes = training.batch(order[batch])
        count = len(classes)
        # Every process draws for the whole batch, so that what happens to an image hangs on no number of processes.
        images = group.share(augment(images, run.recipe.augmentation, run.generator))
        classes = group.share(classes)
        with autocast(wanted, run.device):
            with run_by(run.recipe.network.kind):
                logits = forward(images)
                loss = F.cross_entropy(logits, classes, label_smoothing=wanted.label_smoothing)
            loss = group.part_of_mean(loss, len(classes), count)
        whole_loss = group.total(loss.detach())
        watch.note(whole_loss)
        run.optimizer.zero_grad(set_to_none=True)
        with run_by(run.recipe.network.kind):
            loss.backward()  # type: ignore[no-untyped-call]
        if not watch.is_finite():
            raise _diverged(run.network, "loss", float(whole_loss), len(run.history) + 1, images)
        group.add_gradients(run.network)
        if run.recipe.optimizer.clip_norm:
            nn.utils.clip_grad_norm_(run.network.parameters(), run.recipe.optimizer.clip_norm)
        run.optimizer.step()
        step += 1
        if run.average is not None:
            run.average.update(run.network, step)
        loss_sum += whole_loss * count
        correct += (logits.detach().argmax(1) == classes).sum()
    return first_rate, float(loss_sum) / len(training), float(group.total(correct)) / len(training)


def evaluate(network: nn.Module, feed: Feed, group: Group = ALONE) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in eval mode and float32; each process of a group takes its part."""
    network.eval()
    loss, correct = 0.0, 0
    at_once = max(1, min(_EVALUATED, _EVALUATED_BYTES // (4 * feed.images[0].numel())))
    with torch.no_grad():
        for start in range(group.rank * at_once, len(feed), group.size * at_once):
            images, classes = feed.batch(slice(start, start + at_once))
            logits = network(images)
            loss += float(F.cross_entropy(logits, classes, reduction="sum"))
            correct += int((logits.argmax(1) == classes).sum())
    loss, correct = group.total(torch.tensor([loss, correct], dtype=torch.float64, device=feed.classes.device)).tolist()
    return loss / len(feed), correct / len(feed)


def batch_slices(count: int, size: int, smallest: int = 2) -> list[slice]:
    """Slices of the shuffled data. A last batch below the smallest that can be trained on joins the one before.

    With a size of 1 all batches are of 1.
    """
    starts = list(range(0, count, size))
    if count - starts[-1] < min(smallest, size) and len(starts) > 1:
        starts.pop()
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], count], strict=True)]


def _set_rate(run: Run, step: int, steps: int) -> float:
    rate = run.recipe.optimizer.learning_rate * SCHEDULES[run.recipe.train.schedule](step, steps)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    return rate


def _attempt(run: Run, training: Feed, size: int) -> None:
    """One forward and one backward pass, of which nothing is kept."""
    run.optimizer.zero_grad(set_to_none=True)
    images, classes = training.batch(slice(size))
    with autocast(run.recipe.train, run.device):
        loss = F.cross_entropy(run.network(images), classes)
    loss.backward()  # type: ignore[no-untyped-call]
    run.optimizer.zero_grad(set_to_none=True)


def _diverged(network: nn.Module, which: str, value: float, epoch: int, images: torch.Tensor) -> Divergence:
    layer = first_layer_not_finite(network, images)
    where = f", first in the output of the layer '{layer}'" if layer else ""
    return Divergence(f"the {which} became {value} in epoch {epoch}{where}, expected a finite one")


def _line(run: Run, images: int) -> str:
    """What a person who waits wants to know."""
    row, wanted = run.history[-1], run.recipe.train
    left = (wanted.epochs - row.epoch) * sum(each.seconds for each in run.history) / len(run.history)
    return (
        f"epoch {row.epoch}/{wanted.epochs}  loss {row.train_loss:.4f}  "
        f"held-out accuracy {row.held_out_accuracy:.2%}  {images / row.seconds:.0f} images/s"
        + (f"  {duration(left)} left" if not run.is_over else "")
    )
