"""What the numbers of a norm mean, in words. Every threshold stands here, with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from bnfold.folding.rounding import LARGEST
from bnfold.training.readiness.measuring import NormReadiness
from bnfold.training.trends import DEAD

Word: TypeAlias = Literal["broken", "kept", "overflows", "drifts", "imprecise", "dead channels", "cannot tell", "ready"]

# Half precision ends at 65504 (IEEE 754 binary16). Other data may be larger than what was measured: an eighth of it is
# the room that is asked for.
HALF = LARGEST["float16"]
ROOM = 8.0
# Standard deviations, and a factor, over all channels of a norm: above what augmentation by shifts alone makes in
# digits-mlp (0.39 and 1.7), where recalibration without them lowers the held-out accuracy.
SHIFT = 0.5
FACTOR = 2.0
FEWEST = 100
# 2**14 roundoffs of float32 (2**-24) are a thousandth of the usual output, at worst; of half precision, all of it.
AMPLIFICATION = 2.0**14

MEANINGS: dict[Word, str] = {
    "broken": "A statistic is not finite, a variance is negative, or numbers that are not finite flow: it is no fixed "
    "map, and the fold refuses it.",
    "kept": "No linear may take it in, or not all of it: some of it stays to be computed at run time.",
    "overflows": f"A number around it is above {HALF:g} / {ROOM:g}: half precision overflows, or has little room.",
    "drifts": "What it sees on samples that training never saw is not what its running statistics say: means off by "
    f"more than {SHIFT:g} standard deviations, or variances by more than a factor of {FACTOR:g}, as root mean squares "
    f"over the channels. Not judged below {FEWEST} values a channel. Augmentation makes some of it, which is harmless.",
    "imprecise": f"Rounding the folded weights may move an output by more than {AMPLIFICATION:,.0f} roundoffs of its "
    "usual size: 0.1% in single precision at worst.",
    "dead channels": f"Channels whose output hardly changes from sample to sample (standard deviation below {DEAD:g}): "
    "they cost time and say nothing.",
    "cannot tell": "The network could not be traced, or does not call it: what the fold makes of it is not known.",
    "ready": "None of these.",
}


@dataclass(frozen=True)
class Finding:
    """Something that a person should know of a norm, and what to do."""

    word: Word
    sentence: str


def judge(row: NormReadiness) -> tuple[Finding, ...]:
    """What is to be said of a norm, the worst first; nothing of one that is ready."""
    found = ((word, rule(row)) for word, rule in _RULES)
    return tuple(Finding(word, sentence) for word, sentence in found if sentence)


def word_of(findings: Sequence[Finding]) -> Word:
    """The verdict on a norm: the worst of what was found."""
    return findings[0].word if findings else "ready"


def _broken(row: NormReadiness) -> str:
    if row.smallest_variance is not None and row.smallest_variance < 0:
        return f"its smallest variance is {row.smallest_variance:.3g}; recalibrate its statistics"
    if row.outcome == "refused":
        return f"the fold refuses it: {row.detail}"
    numbers = (row.smallest_variance, row.half_largest, row.mean_shift, row.variance_factor)
    if any(value is not None and not math.isfinite(value) for value in numbers):
        return "numbers that are not finite flow into it or out of it; look at the norms before it"
    return ""


def _kept(row: NormReadiness) -> str:
    if row.outcome == "reduced":
        return f"only reduced: {row.detail}"
    return row.detail if row.outcome == "kept" else ""


def _overflows(row: NormReadiness) -> str:
    if row.half_largest is None or row.half_largest * ROOM <= HALF or not math.isfinite(row.half_largest):
        return ""
    what = f"{row.half_where} reaches {row.half_largest:.3g}, and half precision ends at {HALF:g}"
    return f"{what}; serve it in single precision, or train with weight decay"


def _drifts(row: NormReadiness) -> str:
    if row.mean_shift is None or row.variance_factor is None or row.values < FEWEST:
        return ""
    parts = []
    if row.mean_shift > SHIFT:
        parts.append(f"means are off by {row.mean_shift:.2g} standard deviations")
    if row.variance_factor > FACTOR:
        parts.append(f"variances are off by a factor of {row.variance_factor:.3g}")
    return f"{' and '.join(parts)}; train longer, or recalibrate and compare the held-out accuracy" if parts else ""


def _imprecise(row: NormReadiness) -> str:
    if row.amplification is None or row.amplification <= AMPLIFICATION:
        return ""
    return f"rounding may move an output by {row.amplification:,.0f} roundoffs of its usual size; prove it on real data"


def _dead(row: NormReadiness) -> str:
    if not row.dead:
        return ""
    listed = ", ".join(map(str, row.dead[:8])) + (", ..." if len(row.dead) > 8 else "")
    return f"{len(row.dead)} of {row.channels} channels say nothing ({listed}); a narrower layer would do"


def _unknown(row: NormReadiness) -> str:
    return "" if row.outcome else row.detail or "the fold could not be foreseen"


_RULES: tuple[tuple[Word, Callable[[NormReadiness], str]], ...] = (
    ("broken", _broken), ("kept", _kept), ("overflows", _overflows), ("drifts", _drifts), ("imprecise", _imprecise),
    ("dead channels", _dead), ("cannot tell", _unknown),
)  # fmt: skip
