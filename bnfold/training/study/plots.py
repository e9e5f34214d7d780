"""The curves of a study as SVG that stands in a page by itself."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from math import nan
from statistics import fmean
from typing import Any

# Told apart without colour too: by the dash. Colours: Okabe and Ito (2008), for every kind of colour vision.
_LINES = (
    ("#0072b2", "-"), ("#d55e00", "--"), ("#009e73", "-."), ("#cc79a7", ":"), ("#7a6a00", "-"), ("#56b4e9", "--"),
)  # fmt: skip
_FAILED = 0.0

Runs = Sequence[Mapping[str, Any]]


def curves(runs: Runs) -> str:
    """Held-out accuracy by epoch: the mean over the seeds, and the range of all of them."""

    def draw(axes: Any) -> None:
        for (label, arm), (colour, dash) in zip(_labels(runs).items(), _LINES, strict=False):
            length = max(len(run["accuracies"]) for run in arm)
            rows = [list(run["accuracies"]) + [_FAILED] * (length - len(run["accuracies"])) for run in arm]
            epochs, values = range(1, length + 1), list(zip(*rows, strict=True))
            axes.plot(epochs, [fmean(row) for row in values], dash, color=colour, label=label)
            axes.fill_between(epochs, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.15, lw=0)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize=9)

    return _figure(draw)


def sweep(runs: Runs, axis: str) -> str:
    """Final accuracy along an axis: the mean over the seeds, and the range of all of them.

    Where no training of an arm came to its end there is a cross on the axis, and the line is broken.
    """

    def draw(axes: Any) -> None:
        crosses = []
        for (label, arm), (colour, dash) in zip(_labels(runs).items(), _LINES, strict=False):
            places = sorted({run["place"] for run in arm})
            finals = [[final(run) for run in arm if run["place"] == place] for place in places]
            ended = [any(run["accuracies"] for run in arm if run["place"] == place) for place in places]
            crosses += [place for place, came in zip(places, ended, strict=True) if not came]
            means = [fmean(values) if came else nan for values, came in zip(finals, ended, strict=True)]
            reach = [[mean - min(values) for mean, values in zip(means, finals, strict=True)],
                     [max(values) - mean for mean, values in zip(means, finals, strict=True)]]  # fmt: skip
            axes.errorbar(places, means, yerr=reach, fmt=dash, marker="o", ms=4, capsize=3, color=colour, label=label)
        if crosses:
            axes.plot(crosses, [_FAILED] * len(crosses), "x", ms=8, color="#1d2026", label="cannot be trained")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xticks(sorted({run["place"] for run in runs}))
        axes.minorticks_off()
        axes.set_xlabel(f"{axis} (logarithmic)")
        axes.legend(frameon=False, fontsize=9)

    return _figure(draw)


def dots(runs: Runs) -> str:
    """Final accuracy of each arm that came to its end, a dot a seed and a bar for the mean."""
    arms = {label: arm for label, arm in _labels(runs).items() if any(run["accuracies"] for run in arm)}

    def draw(axes: Any) -> None:
        for at, arm in enumerate(arms.values()):
            finals = [final(run) for run in arm]
            axes.plot(finals, [at] * len(finals), "o", color=_LINES[0][0], alpha=0.6)
            axes.plot([fmean(finals)] * 2, [at - 0.25, at + 0.25], color=_LINES[1][0], lw=2)
        axes.set_yticks(range(len(arms)), arms)
        axes.invert_yaxis()

    return _figure(draw, across=True, height=0.9 + 0.45 * len(arms))


def _figure(draw: Callable[[Any], None], *, across: bool = False, height: float = 3.6) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bnfold", "font.size": 10}):
        figure = Figure(figsize=(8, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        draw(axes)
        accuracy = axes.xaxis if across else axes.yaxis
        accuracy.set_major_formatter(PercentFormatter(xmax=1))
        accuracy.set_label_text("held-out accuracy")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


def _labels(runs: Runs) -> dict[str, list[Mapping[str, Any]]]:
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        arms.setdefault(run["label"], []).append(run)
    return arms


def final(run: Mapping[str, Any]) -> float:
    """The accuracy after the last epoch; 0 for a training that failed."""
    return _FAILED if run["failure"] or not run["accuracies"] else float(run["accuracies"][-1])
