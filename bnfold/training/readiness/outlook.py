"""What is coming: trends in the numbers of a norm that make a network hard to deploy, said while it still trains.

Every threshold stands here, with its reason; those that it shares with the verdict at the end stand in verdicts.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from bnfold.training.data import Array
from bnfold.training.readiness.verdicts import FACTOR, HALF, ROOM, SHIFT
from bnfold.training.trends import DEAD, NUMBERS, Trends

Trouble: TypeAlias = Literal["broken", "overflows", "vanishes", "dead channels", "drifts"]

# Three epochs that all go the wrong way: weights that move about do so in one of eight triples.
SPAN = 3
# Three epochs foretell no more than a few: further than this, or than the training goes, nothing is said.
HORIZON = 8
# A limit that is further away than this factor is not in sight: numbers grow fast from a small start, and stop.
NEAR = 16.0
# Half of what the norm divides by: from there on eps, more than the variance, says how large the output is.
EPS_SHARE = 0.5
# The learning rate is to be small in the last quarter; before it statistics may move as they like. And no training is
# judged by its first three epochs, in which they come from their initial values.
LAST = 0.75

TROUBLES: Mapping[Trouble, str] = {
    "broken": "A parameter or a statistic is not finite, or a variance is negative.",
    "overflows": f"max|a|, max|b| or what goes in or out grows towards {HALF / ROOM:,.0f}, an eighth of what half "
    "precision holds.",
    "vanishes": "The variance of a channel falls towards eps, which then says how large the output is.",
    "dead channels": f"The output of a channel falls towards a standard deviation of {DEAD:g}.",
    "drifts": f"In the last quarter of the epochs the running statistics still move by more than {SHIFT:g} standard "
    f"deviations or a factor of {FACTOR:g} an epoch.",
}

_STILL = "look for an input that never changes or a ReLU that never fires"
_REACHES: Mapping[str, str] = {
    "max_scale": "max|a|",
    "max_shift": "max|b|",
    "output_reach": "the largest number that it gives",
    "input_reach": "the largest number that it takes in",
}


@dataclass(frozen=True)
class Forewarning:
    """What was to be seen after an epoch, of a norm; said once for a norm and a trouble."""

    epoch: int
    norm: str
    word: Trouble
    sentence: str

    def __str__(self) -> str:
        return f"epoch {self.epoch}: {self.norm}: {self.sentence}"


@dataclass(frozen=True)
class _Look:
    """A norm after an epoch: its numbers until then, by name, and how many epochs are left."""

    numbers: Mapping[str, Array]
    epoch: int
    left: int


def forewarnings(trends: Trends) -> tuple[Forewarning, ...]:
    """All that a training was warned of, in order."""
    said: set[tuple[str, Trouble]] = set()
    return tuple(one for epoch in range(1, len(trends.values) + 1) for one in foresee(trends, epoch, said))


def foresee(trends: Trends, epoch: int, said: set[tuple[str, Trouble]]) -> Iterator[Forewarning]:
    """What is new after an epoch. said: norms and troubles that were warned of before; those of now are added."""
    for number, norm in enumerate(trends.names):
        values = trends.values[max(0, epoch - SPAN - 1) : epoch, number]
        look = _Look(dict(zip(NUMBERS, values.T, strict=True)), epoch, trends.planned - epoch)
        for word, rule in _RULES:
            if (norm, "broken") in said:  # its other numbers say nothing
                break
            if (norm, word) not in said and (sentence := rule(look)):
                said.add((norm, word))
                yield Forewarning(epoch, norm, word, sentence)


def _broken(look: _Look) -> str:
    variance = look.numbers["smallest_variance"][-1]
    if variance < 0:
        return f"its smallest variance is {variance:.3g}; recalibrate its statistics"
    names = [name for name, values in look.numbers.items() if not math.isfinite(values[-1])]
    if not names:
        return ""
    return f"a statistic or a parameter is not finite ({names[0]} is {look.numbers[names[0]][-1]}); train anew"


def _overflows(look: _Look) -> str:
    limit, remedy = HALF / ROOM, "lower the learning rate, or train with weight decay"
    above = f"{limit:,.0f}, an eighth of what half precision holds"
    for number, what in _REACHES.items():
        values = look.numbers[number]
        coming = _coming(values, limit, look.left)
        if coming is None:
            continue
        if not coming.epochs:
            return f"{what} is {values[-1]:.3g}, above {above}; {remedy}"
        return (
            f"{what} grows {coming.pace:.2g}x an epoch and is {values[-1]:.3g} now; at this pace it is above {above}, "
            f"in epoch {look.epoch + coming.epochs}; {remedy}"
        )
    return ""


def _vanishes(look: _Look) -> str:
    shares, variance = look.numbers["eps_share"], look.numbers["smallest_variance"][-1]
    coming = _coming(shares, EPS_SHARE, look.left)
    if coming is None:
        return ""
    remedy = f"{_STILL}, or lower the learning rate or the weight decay"
    now = f"its smallest variance is {variance:.3g}, and eps makes {shares[-1]:.0%} of what it divides by"
    if not coming.epochs:
        return f"{now}; {remedy}"
    return (
        f"{now}, {coming.pace:.2g}x more an epoch; at this pace it is more than half in epoch "
        f"{look.epoch + coming.epochs}; {remedy}"
    )


def _dead(look: _Look) -> str:
    with np.errstate(divide="ignore"):
        coming = _coming(1 / look.numbers["smallest_spread"], 1 / DEAD, look.left)
    # A gamma that changes its sign is small for a moment, and those that begin at zero for the first epochs.
    dead = look.numbers["dead"][-SPAN:]
    if coming is None or (not coming.epochs and (look.epoch <= SPAN or not dead.all())):
        return ""
    if not coming.epochs:
        channels = "1 channel gives" if dead[-1] == 1 else f"{dead[-1]:.0f} channels give"
        return f"{channels} nearly the same number for every sample; a narrower layer would do"
    return (
        f"the output of a channel has a standard deviation of {look.numbers['smallest_spread'][-1]:.2g}, "
        f"{coming.pace:.2g}x less an epoch; at this pace it is dead in epoch {look.epoch + coming.epochs}; "
        f"{_STILL}, or take a narrower layer"
    )


def _drifts(look: _Look) -> str:
    shift, factor = (look.numbers[name][-1] for name in ("mean_drift", "variance_drift"))
    if look.epoch <= SPAN or look.epoch <= LAST * (look.epoch + look.left) or (shift <= SHIFT and factor <= FACTOR):
        return ""
    return (
        f"its running statistics moved by {shift:.2g} standard deviations and a factor of {factor:.3g} in this epoch, "
        f"with {look.left} to go; let the learning rate fall towards the end, or train longer"
    )


@dataclass(frozen=True)
class _Coming:
    """pace: the growth an epoch. epochs: until the limit is passed; 0 where it is."""

    pace: float
    epochs: int


def _coming(values: Array, limit: float, left: int) -> _Coming | None:
    """When a number that grows passes a limit, if that is in sight."""
    last = float(values[-1])
    if last > limit:
        return _Coming(1.0, 0)
    if len(values) <= SPAN or last * NEAR < limit or not (np.isfinite(values).all() and np.all(np.diff(values) > 0)):
        return None
    pace = float(last / values[0]) ** (1 / SPAN) if values[0] > 0 else math.inf
    if not math.isfinite(pace) or pace <= 1:
        return None
    epochs = math.floor(math.log(limit / last) / math.log(pace)) + 1
    return _Coming(pace, epochs) if epochs <= min(left, HORIZON) else None


_RULES: tuple[tuple[Trouble, Callable[[_Look], str]], ...] = (
    ("broken", _broken), ("overflows", _overflows), ("vanishes", _vanishes), ("dead channels", _dead),
    ("drifts", _drifts),
)  # fmt: skip
