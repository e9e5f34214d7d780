"""The numbers of a run for TensorBoard, epoch by epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from bnfold.errors import DataError
from bnfold.training.run import Epoch

Log = Callable[[Epoch], None]

TAGS = {
    "loss/training": "train_loss",
    "loss/held out": "held_out_loss",
    "accuracy/training": "train_accuracy",
    "accuracy/held out": "held_out_accuracy",
    "learning rate": "learning_rate",
    "seconds": "seconds",
}


def check_tensorboard() -> None:
    """Raise DataError, before any work is done, where the package is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401 (whether it is there)
    except ImportError:
        raise DataError(
            "--tensorboard needs the package tensorboard, which is not installed; pip install 'bnfold[tensorboard]'"
        ) from None


@contextlib.contextmanager
def scalars(folder: Path | None, done: int) -> Iterator[Log]:
    """What writes a row of the history into an event file of a folder, or does nothing for None.

    done: epochs before the first row; what the folder has of later ones, from a run that was stopped, no longer counts.
    Raises DataError when it cannot be written.
    """
    if folder is None:
        yield lambda _row: None
        return
    from torch.utils.tensorboard import SummaryWriter

    try:
        writer = SummaryWriter(str(folder), purge_step=done + 1 if done else None)
    except OSError as problem:
        raise _cannot(folder, problem) from None

    def log(row: Epoch) -> None:
        try:
            for tag, name in TAGS.items():
                writer.add_scalar(tag, getattr(row, name), row.epoch)
            writer.flush()
        except OSError as problem:
            raise _cannot(folder, problem) from None

    try:
        yield log
    finally:
        with contextlib.suppress(OSError):  # what it could not write has been said
            writer.close()


def _cannot(folder: Path, problem: OSError) -> DataError:
    return DataError(f"the folder {folder} cannot be written for TensorBoard: {problem}; name another")
