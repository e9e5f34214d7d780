"""T4 on the parity page: margins beside the difference that was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bnfold.pages.parity_plots import Point, strip
from bnfold.pages.parity_values import facts, figure, shown
from bnfold.parity.rows import number_in

_ENDS = {0.0: "least", 0.5: "median", 1.0: "largest"}
TOLD = frozenset({"margin_quantiles", "margin_above_difference"})  # shown here, not as plain numbers


def margins(summary: Mapping[str, Any]) -> Iterator[str]:
    """The distribution of the unfolded model's top-1 margins and the largest difference, on one axis."""
    points = _quantiles(summary)
    difference = number_in(summary, "largest_difference")
    if points and difference is not None:
        lanes = [
            ("margin of the first class", points),
            ("difference of an output", [Point(difference, "largest", "error")]),
        ]
        yield strip(lanes, "Margins and differences", _caption(points, difference))
    shares = summary.get("margin_above_difference")
    if isinstance(shares, Mapping) and shares:
        yield '<p class="lead">Share of samples whose margin is above the largest difference:</p>'
        yield facts((f"{key} as large", _percent(value)) for key, value in shares.items())


def _quantiles(summary: Mapping[str, Any]) -> list[Point]:
    """Quantiles by share where the document has them, else the least and the median."""
    found = []
    given = summary.get("margin_quantiles")
    stored: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    for key in stored:
        try:
            share = float(key)
        except (TypeError, ValueError):
            continue
        value = number_in(stored, key)
        if value is not None and 0 <= share <= 1:
            found.append(Point(float(value), _ENDS.get(share) or f"{100 * share:g}%"))
    if not found:
        values = (
            (number_in(summary, f"{name}_margin"), shown)
            for name, shown in (("smallest", "least"), ("median", "median"))
        )
        found = [Point(value, name) for value, name in values if value is not None]
    return found


def _caption(points: list[Point], difference: float) -> str:
    least = min(point.value for point in points if point.value is not None)
    if difference == 0:
        return "No output of any sample differs at all."
    times = f"{figure(float(f'{least / difference:.2g}'))} times" if least else "zero: a tie, not above"
    return (
        "Margin: how far the largest output of the unfolded network is above the second largest, sample by sample. The "
        f"least margin is {times} the largest difference between the two networks. Measured on these samples, not "
        "bounded."
    )


def _percent(value: object) -> str:
    if isinstance(value, float) and 0 <= value <= 1:
        return f"{100 * value:.4g}%"
    return shown(value)
