"""What training made of every norm, as a part of the readiness page: warnings with their epochs, and small curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from bnfold.pages.parity_plots import Axis, log_axis
from bnfold.pages.parity_values import facts, figure, table
from bnfold.pages.text import escaped
from bnfold.training.data import Array
from bnfold.training.readiness.outlook import NEAR, TROUBLES, Forewarning, Trouble
from bnfold.training.readiness.verdicts import FACTOR, HALF, ROOM, SHIFT
from bnfold.training.trends import EPS, Trends

_MOST_POINTS = 100  # of a curve, which is some 100 pixels wide
_MOST_WARNINGS = 40
_HIGH = 34  # pixels
# A column's numbers, of which the largest is drawn; the line, where the curves come near; whose warnings are marked.
_COLUMNS: Mapping[str, tuple[tuple[str, ...], float, tuple[Trouble, ...]]] = {
    "max|a|": (("max_scale",), HALF / ROOM, ()),
    "largest number": (("max_scale", "max_shift", "input_reach", "output_reach"), HALF / ROOM, ("overflows",)),
    "smallest variance": (("smallest_variance",), EPS, ("vanishes",)),
    "smallest output": (("smallest_spread",), 0.0, ("dead channels",)),
    "means move by": (("mean_drift",), SHIFT, ("drifts",)),
    "variances move by": (("variance_drift",), FACTOR, ("drifts",)),
}


def trend_sections(trends: Trends, warned: Sequence[Forewarning]) -> Iterator[str]:
    """The sections of the page. warned: all that was said while it trained."""
    epochs = len(trends.values)
    if not trends.names or not epochs:
        return
    yield '<section id="trends"><h2>While it trained</h2>'
    yield from _warnings(warned)
    yield table(("norm", *_COLUMNS), _rows(trends, warned), "trends")
    yield (
        f'<p class="note">Epochs 1 to {epochs:,}, by parameters and buffers alone, logarithmic, '
        "all norms of a column on one scale; below it the first value and the last. A dot is a warning, a line across "
        "the limit. All numbers are in <code>norms.csv</code>.</p></section>"
    )


def trend_legend() -> str:
    """What the words of the warnings mean."""
    return "<h3>Warnings while it trained</h3>" + facts(
        ((word, escaped(meaning)) for word, meaning in TROUBLES.items()), "wide"
    )


def _warnings(warned: Sequence[Forewarning]) -> Iterator[str]:
    if not warned:
        yield "<p>Nothing was to be warned of.</p>"
        return
    yield "<ul>"
    for one in warned[:_MOST_WARNINGS]:
        state = "fails" if one.word == "broken" else "cannot-tell"
        yield (
            f'<li><span class="chip {state}">! {escaped(one.word)}</span> epoch {one.epoch}: '
            f"<code>{escaped(one.norm)}</code>: {escaped(one.sentence)}</li>"
        )
    if len(warned) > _MOST_WARNINGS:
        yield f"<li>and {len(warned) - _MOST_WARNINGS} more, in readiness.json</li>"
    yield "</ul>"


def _rows(trends: Trends, warned: Sequence[Forewarning]) -> Iterator[tuple[str, list[str]]]:
    drawn = {
        name: np.max([[trends.of(norm, number) for number in numbers] for norm in range(len(trends.names))], axis=1)
        for name, (numbers, _, _) in _COLUMNS.items()
    }
    axes = {name: _axis(values, _COLUMNS[name][1]) for name, values in drawn.items()}
    for at, norm in enumerate(trends.names):
        mine = [one for one in warned if one.norm == norm]
        cells = [escaped(norm)]
        for name, (_, _, words) in _COLUMNS.items():
            epochs = [one.epoch for one in mine if one.word in words]
            cells.append(_curve(drawn[name][at], axes[name], epochs, f"{name} of {norm}"))
        yield "cannot-tell" if mine else "", cells


def _axis(values: Array, limit: float) -> Axis:
    """With the limit on it where a curve comes near."""
    found = values[np.isfinite(values) & (values > 0)]
    is_near = bool(found.size and limit and found.min() < limit * NEAR and found.max() * NEAR > limit)
    return log_axis(map(float, values.ravel()), limit if is_near else None, 1e-12)


def _curve(values: Array, axis: Axis, warned: Sequence[int], says: str) -> str:
    """(epochs,) as a line, with a dot at the epochs of warnings."""
    last = max(len(values) - 1, 1)
    shown = np.unique(np.linspace(0, len(values) - 1, min(len(values), _MOST_POINTS)).astype(np.int64))
    places = [(100 * at / last, 100 - axis.at(float(values[at]))) for at in shown]
    points = " ".join(f"{x:.3g},{y:.3g}" for x, y in places)
    parts = [
        f'<svg width="100%" height="{_HIGH}" viewBox="0 0 100 100" preserveAspectRatio="none"><polyline class="w" '
        f'fill="none" vector-effect="non-scaling-stroke" points="{points}"/></svg>'
    ]
    if axis.bound is not None:
        y = 100 - axis.at(axis.bound)
        parts.append(f'<line class="b" x1="0" y1="{y:.4g}%" x2="100%" y2="{y:.4g}%"/>')
    dots = [(epoch - 1, "cannot-tell") for epoch in warned] or ([(0, "")] if len(values) == 1 else [])
    for at, kind in dots:
        x, y = 100 * at / last, 100 - axis.at(float(values[at]))
        parts.append(f'<circle class="f {kind}" cx="{x:.4g}%" cy="{y:.4g}%" r="3.5"/>')
    svg = f'<svg width="100%" height="{_HIGH}" role="img" aria-label="{escaped(says)}">{"".join(parts)}</svg>'
    first, final = (f'<span class="num">{figure(float(values[at]))}</span>' for at in (0, -1))  # breaks at no minus
    return f'{svg}<span class="quiet">{first} → {final}</span>'
