"""The plots of the parity page: SVG whose places are percentages, so that each is as wide as its cell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bnfold.pages.text import escaped, number

_TALL = 150  # pixels, of the plot of all rows in order
_CLOSE = 100  # bars without gaps between them, which would be as wide as a hair
_MOST = 1e300  # of a logarithmic axis, whose end is a power of ten
_MOST_BARS = 400  # of that plot; with more rows, each bar is the worst of several


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, both finite, and positive where log. bound: where the line stands, if any."""

    low: float
    high: float
    bound: float | None = None
    log: bool = True

    def at(self, value: float | None) -> float:
        """The place of a value in percent, clipped; what is not finite stands at the far end."""
        if value is None or not math.isfinite(value):
            return 100.0
        if self.log:
            if value <= 0:
                return 0.0
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(100 * share, 0.0), 100.0)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Places in percent and what stands there: powers of ten, at most six of them; or two."""
        if not self.log:
            middle = self.high / 2 if self.bound is None else self.bound / 2
            yield from ((self.at(value), f"{value:g}") for value in (self.low, middle))
            return
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        step = max(1, math.ceil((last - first) / 5))
        # The bound, mostly 1, is a tick wherever the others fall.
        start = first + (-first) % step
        yield from ((self.at(10.0**power), power_of_ten(power)) for power in range(start, last + 1, step))


def power_of_ten(power: int) -> str:
    """10 to a power, as it is written: 0.01, 1, 10³."""
    if -2 <= power <= 2:
        return f"{10.0**power:g}"
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def log_axis(values: Iterable[float | None], bound: float | None = None, least: float = 1e-300) -> Axis:
    """An axis of whole decades around all values that are finite and positive, and the bound."""
    found = [value for value in values if value is not None and math.isfinite(value) and least <= value <= _MOST]
    found += [] if bound is None else [bound, bound * 1.5]
    low, high = (min(found), max(found)) if found else (0.1, 1.0)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return Axis(10.0**first, 10.0 ** max(last, first + 1), bound)


def bar(axis: Axis, value: float | None, kind: str, says: str) -> str:
    """A bar from the low end to a value, and the line of the bound. kind: a class for its colour."""
    width = max(axis.at(value), 0.6)
    parts = [f'<rect class="f {escaped(kind)}" x="0" y="3" width="{_n(width)}%" height="10" rx="1.5"/>']
    return _small(says, [*parts, *_bound(axis)])


def pair(axis: Axis, unfolded: float | None, folded: float | None, limit: float | None, kind: str, says: str) -> str:
    """Two values on a line, a ring and a disc, and where the second must not be beyond."""
    first, second = axis.at(unfolded), axis.at(folded)
    low, high = min(first, second), max(first, second)
    parts = [
        '<line class="g" x1="0" y1="50%" x2="100%" y2="50%"/>',
        f'<line class="w" x1="{_n(low)}%" y1="50%" x2="{_n(high)}%" y2="50%"/>',
        f'<circle class="ring" cx="{_n(first)}%" cy="50%" r="4"/>',
        f'<circle class="f {escaped(kind)}" cx="{_n(second)}%" cy="50%" r="4"/>',
    ]
    if limit is not None:
        at = _n(axis.at(limit))
        parts.append(f'<line class="b" x1="{at}%" y1="0" x2="{at}%" y2="100%"/>')
    return _small(says, parts)


PAIR_KEY = (
    '<p class="note"><span class="key ring"></span> unfolded &ensp; <span class="key"></span> folded &ensp; '
    '<span class="key bound"></span> the most that the folded one may be</p>'
)


def scale(axis: Axis, name: str) -> str:
    """The ticks of a column of bars, for its head."""
    marks = [
        (place, text) for place, text in axis.ticks() if axis.bound is None or abs(place - axis.at(axis.bound)) > 9
    ]
    spans = [f'<span style="left:{_n(place)}%">{text}</span>' for place, text in marks]
    if axis.bound is not None:
        spans.append(f'<span class="b" style="left:{_n(axis.at(axis.bound))}%">{axis.bound:g}</span>')
    return f'<div class="what">{escaped(name)}</div><div class="ticks" aria-hidden="true">{"".join(spans)}</div>'


@dataclass(frozen=True)
class Bar:
    """One of the bars of an overview."""

    value: float | None
    kind: str
    says: str


def overview(bars: Sequence[Bar], axis: Axis, title: str) -> str:
    """Every row as an upright bar, in order, on one scale; several rows share a bar where there are very many."""
    each = math.ceil(len(bars) / _MOST_BARS)
    groups = [bars[at : at + each] for at in range(0, len(bars), each)]
    shown = [max(group, key=lambda one: (one.kind == "fails", axis.at(one.value))) for group in groups]
    step = 100 / max(len(shown), 1)
    width = step if len(shown) > _CLOSE else 0.8 * step
    parts = []
    for place, _ in axis.ticks():
        y = _n(_TALL * (1 - place / 100))
        parts.append(f'<line class="g" x1="0" y1="{y}" x2="100%" y2="{y}"/>')
    for at, one in enumerate(shown):
        height = max(_TALL * axis.at(one.value) / 100, 1.5)
        parts.append(
            f'<rect class="f {escaped(one.kind)}" x="{_n(at * step, 3)}%" y="{_n(_TALL - height)}" '
            f'width="{_n(width, 3)}%" height="{_n(height)}"><title>{escaped(one.says)}</title></rect>'
        )
    if axis.bound is not None:
        y = _n(_TALL * (1 - axis.at(axis.bound) / 100))
        parts.append(f'<line class="b" x1="0" y1="{y}" x2="100%" y2="{y}"/>')
    labels = "".join(f'<span style="bottom:{_n(place)}%">{text}</span>' for place, text in axis.ticks())
    size = f'width="100%" height="{_TALL}"'
    svg = f'<svg class="over" {size} role="img" aria-label="{escaped(title)}">{"".join(parts)}</svg>'
    many = f" Each bar is the worst of {each} in a row." if each > 1 else ""
    return (
        f'<figure><div class="plot"><div class="side" aria-hidden="true">{labels}</div>{svg}</div>'
        f"<figcaption>{escaped(title)}{many}</figcaption></figure>"
    )


@dataclass(frozen=True)
class Point:
    """A value on a line, what it is called, and a class."""

    value: float | None
    name: str
    kind: str = ""


def strip(lanes: Sequence[tuple[str, Sequence[Point]]], title: str, caption: str) -> str:
    """Points on one logarithmic axis, a lane for each kind of them; what is zero stands at the low end."""
    points = [point for _, lane in lanes for point in lane]
    axis = log_axis(point.value for point in points)
    rows = []
    for name, lane in lanes:
        places = [axis.at(point.value) for point in lane]
        inner = ['<line class="g" x1="0" y1="22" x2="100%" y2="22"/>']
        if len(places) > 1:
            inner.append(f'<line class="w" x1="{_n(min(places))}%" y1="22" x2="{_n(max(places))}%" y2="22"/>')
        inner += [_dot(point, place) for point, place in zip(lane, places, strict=True)]
        inner += _names(lane, places)
        svg = (
            f'<svg class="lane" width="100%" height="40" role="img" aria-label="{escaped(name)}">{"".join(inner)}</svg>'
        )
        rows.append(f'<div class="lanename">{escaped(name)}</div><div class="pad">{svg}</div>')
    ticks = "".join(f'<span style="left:{_n(place)}%">{text}</span>' for place, text in axis.ticks())
    return (
        f'<figure aria-label="{escaped(title)}"><div class="strip">{"".join(rows)}<div class="lanename"></div>'
        f'<div class="pad"><div class="ticks" aria-hidden="true">{ticks}</div></div></div>'
        f"<figcaption>{escaped(caption)}</figcaption></figure>"
    )


def _dot(point: Point, place: float) -> str:
    says = escaped(f"{point.name}: {number(point.value)}")
    return f'<circle class="f {escaped(point.kind)}" cx="{_n(place)}%" cy="22" r="4"><title>{says}</title></circle>'


def _names(lane: Sequence[Point], places: Sequence[float]) -> Iterator[str]:
    """The name above each point, the outer ones first, but for those that would stand on another's."""
    order = sorted(zip(lane, places, strict=True), key=lambda pair: pair[1])
    taken: list[float] = []
    for point, place in [*order[:1], *order[:0:-1]]:
        if any(abs(place - other) < 8 for other in taken):
            continue
        taken.append(place)
        anchor = "start" if place < 6 else "end" if place > 94 else "middle"
        yield f'<text x="{_n(place)}%" y="11" text-anchor="{anchor}">{escaped(point.name)}</text>'


def _bound(axis: Axis) -> Iterator[str]:
    if axis.bound is not None:
        at = _n(axis.at(axis.bound))
        yield f'<line class="b" x1="{at}%" y1="0" x2="{at}%" y2="100%"/>'


def _small(says: str, parts: Iterable[str]) -> str:
    return f'<svg class="bar" width="100%" height="16" role="img" aria-label="{escaped(says)}">{"".join(parts)}</svg>'


def _n(value: float, digits: int = 1) -> str:
    """A place, as short as it can be."""
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0"
