"""Who hears of a run epoch by epoch: a person, TensorBoard, a tracking server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bnfold.training.loop import Progress
from bnfold.training.place import Place
from bnfold.training.run import Run
from bnfold.training.scalars import check_tensorboard, scalars
from bnfold.training.tracking import Tracking, check_tracking, tracked

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Followers:
    """progress: told a line an epoch. warn: told once of each trouble of a norm. board: TensorBoard's folder."""

    progress: Progress | None = None
    warn: Warn | None = None
    board: Path | None = None
    tracking: Tracking | None = None


@dataclass(frozen=True)
class Told:
    """How they are told. epoch: its line, when it is done. checkpoint: its folder, once it is there."""

    epoch: Callable[[str], None]
    checkpoint: Callable[[Path], None]


def check_followers(
    progress: Progress | None,
    warn: Warn | None,
    tensorboard: Path | str | None,
    mlflow: str | None,
    experiment: str | None,
) -> Followers:
    """Those that the arguments of `train` ask for. Raises DataError, before any work is done, where that cannot be."""
    board = None if tensorboard is None else Path(tensorboard)
    if board is not None:
        check_tensorboard()
    return Followers(progress, warn, board, check_tracking(mlflow, experiment, warn))


@contextlib.contextmanager
def following(followers: Followers, run: Run, place: Place) -> Iterator[Told]:
    """Tell them of a run, and of how it ends. Raises DataError where one of them cannot be told."""
    warn_of_news = _watch(run, followers.warn)
    with (
        scalars(followers.board, len(run.history)) as log,
        tracked(followers.tracking, run, place) as tracker,
    ):

        def tell(line: str) -> None:
            log(run.history[-1])
            if tracker is not None:
                tracker.log(run.history[-1])
            warn_of_news()
            if followers.progress is not None:
                followers.progress(line)

        yield Told(tell, _nothing if tracker is None else tracker.publish)


def _watch(run: Run, warn: Warn | None) -> Callable[[], None]:
    """What says, after an epoch, what is new of its norms. A run that goes on says nothing twice."""
    if warn is None:
        return lambda: None
    from bnfold.training.readiness import foresee, forewarnings

    said = {(one.norm, one.word) for one in forewarnings(run.trends)}

    def warn_of_news() -> None:
        for one in foresee(run.trends, len(run.history), said):
            warn(str(one))

    return warn_of_news


def _nothing(_: Path) -> None:
    """Nobody wants the checkpoint."""
