"""What the parity page says of the tiers and of their fields. docs/parity.md has the same at length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """A tier: what it claims when it holds, and what it cannot see."""

    claim: str
    blind: str


ABOUT: Mapping[str, About] = {
    "T0": About(
        "Every file of the bundle is the one that was hashed, and no norm is unfit to be folded.",
        "Who wrote the files; whether the network is any good.",
    ),
    "T1": About(
        "The folded graph is the one that the fold leaves, and every value of every folded tensor is the float nearest "
        "to its exact value. Needs no data.",
        "Whether the reference itself is right: it is the yardstick.",
    ),
    "T2": About(
        "At each site, given the same input, folded and unfolded differ by no more than rounding explains.",
        "Small faults where the fan-in is large, since the bound takes the worst case. T1 proves the coefficients.",
    ),
    "T3": About(
        "The folded network is as near to the float64 truth as the unfolded one.",
        "Faults smaller than rounding; inputs that were not run.",
    ),
    "T3h": About(
        "It is so too on inputs that are made to be hard, and on the worst one that a search finds.",
        "Inputs that neither the list nor the search came upon.",
    ),
    "T3b": About(
        "reference.onnx is the source, by its hashes, and the stored truth is what it computes in float64.",
        "A source exchanged as a whole, every hash with it.",
    ),
    "T4": About(
        "Sample by sample the same class comes first, unless the truth has two too close to tell apart.",
        "Faults that carry no sample across a boundary; inputs unlike these samples.",
    ),
    "T5": About(
        "It holds where it runs: with other options, devices, batch sizes, and behind a server.",
        "Machines and providers that were not there.",
    ),
    "T6": About(
        "The suite itself works: each known way to break a fold is caught.",
        "Ways to be wrong that nobody has listed.",
    ),
}

UNKNOWN = About("", "")

SIGNS: Mapping[str, str] = {"holds": "✓", "fails": "✕", "cannot tell": "?", "measured": "○", "not run": "–"}

WORDS: Mapping[str, str] = {
    "tensor": "tensor", "role": "role", "linear": "linear", "norms": "norms", "elements": "values",
    "not_nearest": "not the nearest", "worst_ulp": "worst, in ulp", "worst_index": "worst at",
    "worst_channel": "in channel", "fan_in": "fan-in", "bad": "beyond the bound",
    "worst_ratio": "worst difference / bound",
    "worst_difference": "worst difference", "unfolded_error": "unfolded, worst error",
    "folded_error": "folded, worst error", "unfolded_rms": "unfolded, rms error", "folded_rms": "folded, rms error",
    "ratio": "folded / unfolded, rms", "factor": "at most, times", "goldens": "golden vectors", "rows": "samples",
    "agreement": "same top-1", "disagreements": "other top-1",
    "excused": "of these, too close in the truth to tell apart", "ties": "ties",
    "smallest_margin": "smallest margin", "median_margin": "median margin",
    "largest_difference": "largest difference of an output", "unfolded_accuracy": "right, unfolded",
    "folded_accuracy": "right, folded", "disagreement_rate_below": "rate of disagreement, 95% upper bound",
    "kl_mean": "KL divergence, mean (nats)", "kl_max": "KL divergence, largest (nats)",
    "signal_to_noise_db": "signal to noise (dB)", "top_five_agreement": "same five largest", "files": "files",
    "changed": "changed files", "refused": "refused norms", "tensors": "folded tensors",
    "wrong_tensors": "wrong tensors", "structure_differences": "differences of the graphs", "sites": "sites",
    "bad_sites": "sites beyond their bound", "unbounded_sites": "sites without a bound",
    "unbounded_edits": "edits measured, not bounded", "source_tensors": "source tensors",
    "truth_difference": "stored truth from a float64 run",
}  # fmt: skip

SHARES = frozenset(
    {"agreement", "unfolded_accuracy", "folded_accuracy", "disagreement_rate_below", "top_five_agreement"}
)
"""Fields that are shares of one, shown in percent."""


_IN_TIER: Mapping[tuple[str, str], str] = {
    ("T1", "worst_ulp"): "worst distance, in ulp",
    ("T5", "worst_ratio"): "worst folded / unfolded, rms",
    ("T3h", "kinds"): "kinds of hard inputs",
    ("T3h", "rows"): "rows of them",
    ("T3h", "left_out"): "rows left out, not finite unfolded",
    ("T3h", "worst_of_limit"): "largest error / limit, rms",
    ("T3h", "search_difference"): "largest difference that it found",
    ("T3h", "search_on_data"): "the same on the data",
    ("T3h", "search_top1_same"): "same top-1 there",
    ("T3h", "search_margin"): "margin there",
    ("T5", "absent"): "places not present",
    ("T5", "batch_difference"): "largest difference over batches",
    ("T5", "batch_difference_ulp"): "the same in ulp",
}

MEASURED = frozenset(
    {"worst_ulp", "worst_ratio", "unfolded_error", "folded_error", "unfolded_rms", "folded_rms", "ratio"}
    | {"truth_difference", "largest_difference", "batch_difference", "batch_difference_ulp"}
)
"""Fields that are always measured: null in a document is a number that is not finite."""


def words(field: str, tier: str = "") -> str:
    """What a field is called on the page. tier: whose summary it is in, if it is in one."""
    return _IN_TIER.get((tier, field)) or WORDS.get(field) or field.replace("_", " ")
