"""What the runs of a study say, a sentence each, with n and a 95% interval; whether it is what the literature says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from bnfold.training.study.experiments import AS_IT_IS, INITS, Experiment
from bnfold.training.study.runs import Run

HOLDS, FAILS, OPEN, SEEN = "holds", "does not hold here", "not decided", "seen"
_SHARE = 0.95  # of the best mean final accuracy: what a run has to reach
_SAME = 1.0  # percentage points: a difference that is smaller makes no difference
_FEWEST = 3  # seeds: two that happen to differ by the same have an interval of no width
_TRAINS = 0.9  # of the best mean final accuracy: from here on a learning rate is said to train


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95% interval, of Student's t. low and high are NaN for a single value."""

    mean: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        """The mean, the interval and n, each number as the spec says."""
        if math.isnan(self.low):
            return f"{self.mean:{spec}} (n = {self.n})"
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}] (n = {self.n})"


@dataclass(frozen=True)
class Finding:
    """claim: of the literature, or a question. verdict: HOLDS, FAILS, OPEN, or SEEN where nothing was claimed."""

    experiment: str
    claim: str
    verdict: str
    sentence: str


def interval(values: Sequence[float]) -> Interval:
    """The mean of values, one a seed."""
    from scipy.stats import t

    count, mean = len(values), fmean(values)
    if count < 2:
        return Interval(mean, math.nan, math.nan, count)
    half = float(t.ppf(0.975, count - 1)) * stdev(values) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def find(experiments: Sequence[Experiment], runs: Sequence[Run]) -> list[Finding]:
    """All findings."""
    tellers = {"speed": _speed, "rates": _rates, "batches": _batches, "norms": _norms, "order": _order, "bias": _bias}
    found = []
    for experiment in experiments:
        own = _by_arm([run for run in runs if run.experiment == experiment.name])
        found += [
            replace(finding, sentence=f"{finding.sentence} {experiment.left_out}".rstrip())
            for finding in tellers[experiment.name](own)
        ]
    return found


Arms = Mapping[tuple[str, float], Sequence[Run]]


def _by_arm(runs: Sequence[Run]) -> Arms:
    arms: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        arms.setdefault((run.label, run.place), []).append(run)
    return {key: sorted(arm, key=lambda run: run.seed) for key, arm in arms.items()}


def _final(runs: Sequence[Run]) -> Interval:
    """Of the final accuracies; an accuracy is a share, and so are the ends of its interval."""
    found = interval([run.final for run in runs])
    return Interval(found.mean, max(found.low, 0.0), min(found.high, 1.0), found.n) if found.n > 1 else found


def _difference(one: Sequence[Run], other: Sequence[Run]) -> Interval:
    """Of the final accuracies, seed by seed, in percentage points."""
    return interval([100 * (a.final - b.final) for a, b in zip(one, other, strict=True)])


def _verdict(difference: Interval) -> str:
    """Whether a difference that should be above zero is."""
    if difference.n < _FEWEST or difference.low <= 0 <= difference.high:
        return OPEN
    return HOLDS if difference.low > 0 else FAILS


def _speed(arms: Arms) -> Iterator[Finding]:
    target = _SHARE * max(_final(runs).mean for runs in arms.values())
    never = 1 + max(len(run.accuracies) for runs in arms.values() for run in runs)
    for init in INITS:
        with_norm, without = (
            [_epochs(run, target, never) for run in arms[f"{norm}, {init} initialisation", 0.0]]
            for norm in ("batch", "none")
        )
        finals = [_final(arms[f"{norm}, {init} initialisation", 0.0]) for norm in ("batch", "none")]
        fewer = interval([b - a for a, b in zip(with_norm, without, strict=True)])
        missed = without.count(never)
        note = f" ({missed} of {len(without)} never did, and count as {never})" if missed else ""
        yield Finding(
            "speed",
            f"Batch norm reaches an accuracy in fewer epochs ({init} initialisation)",
            _verdict(fewer),
            f"To {target:.1%} held out it took {interval(with_norm):.1f} epochs with batch norm and "
            f"{interval(without):.1f} without{note}; seed by seed {fewer:.1f} fewer. "
            f"Final accuracy: {finals[0]:.1%} and {finals[1]:.1%}.",
        )


def _epochs(run: Run, target: float, never: int) -> int:
    """Epochs until an accuracy was reached."""
    return next((at for at, accuracy in enumerate(run.accuracies, 1) if accuracy >= target), never)


def _is_of_ones_own(arms: Arms) -> bool:
    """Whether the network is the user's own, and was trained as it is."""
    return all(label == AS_IT_IS for label, _ in arms)


def _own_rates(arms: Arms) -> Finding:
    best = max(_final(runs).mean for runs in arms.values())
    finals = {rate: _final(runs) for (_, rate), runs in sorted(arms.items())}
    largest = _largest({rate: final.mean for rate, final in finals.items()}, best)
    listed = "; ".join(f"{final:.1%} at {rate:g}" for rate, final in finals.items())
    return Finding(
        "rates",
        "With which learning rates it trains",
        SEEN,
        f"Of {len(finals)}, the largest at which the mean accuracy is {_TRAINS:.0%} of the best one or more is "
        f"{_rate(largest)}. Final accuracy: {listed}.",
    )


def _own_batches(arms: Arms) -> Finding:
    listed, refused = [], []
    for (_, size), runs in sorted(arms.items()):
        if all(run.failure and not run.accuracies for run in runs):
            refused.append(f"At {size:g} it cannot be trained: {runs[0].failure}.")
        else:
            listed.append(f"{_final(runs):.1%} at {size:g}")
    reached = [f"Final accuracy: {'; '.join(listed)}."] if listed else []
    return Finding("batches", "What it reaches with small batches", SEEN, " ".join([*reached, *refused]))


def _rates(arms: Arms) -> Iterator[Finding]:
    if _is_of_ones_own(arms):
        yield _own_rates(arms)
        return
    best = max(_final(runs).mean for runs in arms.values())
    for init in INITS:
        largest = {}
        for norm in ("batch", "none"):
            label = f"{norm}, {init} initialisation"
            own = {place: _final(runs).mean for (name, place), runs in arms.items() if name == label}
            largest[norm] = _largest(own, best)
        rates = sorted({place for _, place in arms})
        top = rates[-1]
        runs = {norm: arms[f"{norm}, {init} initialisation", top] for norm in largest}
        yield Finding(
            "rates",
            f"Batch norm trains with larger learning rates ({init} initialisation)",
            HOLDS if largest["batch"] > largest["none"] else FAILS,
            f"Of {', '.join(f'{rate:g}' for rate in rates)}, the largest at which the mean accuracy is {_TRAINS:.0%} "
            f"of the best one or more is {_rate(largest['batch'])} with batch norm and {_rate(largest['none'])} "
            f"without. At {top:g}: {_final(runs['batch']):.1%} and {_final(runs['none']):.1%}.",
        )


def _largest(means: Mapping[float, float], best: float) -> float:
    """The largest learning rate that trains; 0 for none."""
    return max((rate for rate, mean in means.items() if mean > 0 and mean >= _TRAINS * best), default=0.0)


def _rate(largest: float) -> str:
    return f"{largest:g}" if largest else "none of them"


def _batches(arms: Arms) -> Iterator[Finding]:
    if _is_of_ones_own(arms):
        yield _own_batches(arms)
        return
    yield _one_sample(arms)
    sizes = sorted({place for _, place in arms} - {1.0})
    for size in (sizes[0], sizes[-1]):
        loss = _difference(arms["group", size], arms["batch", size])
        sentence = (
            f"At {size:g} samples a step group norm reaches {_final(arms['group', size]):.1%} and batch norm "
            f"{_final(arms['batch', size]):.1%}, a difference of {loss:+.2f} percentage points; layer norm reaches "
            f"{_final(arms['layer', size]):.1%}."
        )
        if size == sizes[0]:
            claim = f"Group norm is better than batch norm at batches of {size:g}"
            yield Finding("batches", claim, _verdict(loss), sentence)
        else:
            yield Finding("batches", f"And at batches of {size:g}", SEEN, sentence)


def _one_sample(arms: Arms) -> Finding:
    batch, group, layer = (arms[norm, 1.0] for norm in ("batch", "group", "layer"))
    refused = all(run.failure and not run.accuracies for run in batch)
    sentence = f"It cannot be trained: {batch[0].failure}" if refused else f"It reaches {_final(batch):.1%}"
    return Finding(
        "batches",
        "Batch norm cannot train on one sample a step",
        HOLDS if refused else FAILS,
        f"{sentence}. At one sample a step group norm reaches {_final(group):.1%} and layer norm {_final(layer):.1%}.",
    )


def _norms(arms: Arms) -> Iterator[Finding]:
    trained = {label: runs for (label, _), runs in arms.items() if any(run.accuracies for run in runs)}
    ranked = sorted(trained.items(), key=lambda item: -_final(item[1]).mean)
    listed = "; ".join(f"{label} {_final(runs):.1%}" for label, runs in ranked)
    left_out = sorted({label for label, _ in arms} - set(trained))
    note = f" No training with {', '.join(left_out)} came to its end." if left_out else ""
    yield Finding("norms", "Which norm is best here", SEEN, f"Final accuracy: {listed}.{note}")


def _order(arms: Arms) -> Iterator[Finding]:
    before, after = arms["norm first", 0.0], arms["activation first", 0.0]
    more = _difference(before, after)
    verdict = OPEN if _verdict(more) == OPEN else SEEN
    yield Finding(
        "order", "Whether the norm stands better before the activation", verdict,
        f"Before the activation it reaches {_final(before):.1%} and after it {_final(after):.1%}, a difference of "
        f"{more:+.2f} percentage points. Both fold: the second into the linear behind it.",
    )  # fmt: skip


def _bias(arms: Arms) -> Iterator[Finding]:
    without, with_bias = arms["without a bias", 0.0], arms["with a bias", 0.0]
    more = _difference(with_bias, without)
    verdict = OPEN
    if more.n >= _FEWEST:
        verdict = HOLDS if more.low > -_SAME and more.high < _SAME else OPEN
        verdict = FAILS if more.low > _SAME or more.high < -_SAME else verdict
    yield Finding(
        "bias", f"A bias before batch norm changes the accuracy by less than {_SAME:g} percentage point", verdict,
        f"With it the accuracy is {_final(with_bias):.1%} and without {_final(without):.1%}, a difference of "
        f"{more:+.2f} percentage points. The mean of the batch takes such a bias away, and its gradient is rounding "
        "alone.",
    )  # fmt: skip
