"""Pages for a person to read in a browser: one self-contained file each, no network, no framework.

inspection.py   what folds, with the graph before and after
drawing.py      a graph as SVG            layout.py   where its parts stand
parity.py       a parity report: verdict, tiers, findings
parity_sections.py, parity_decisions.py   the rows and plots of a tier        parity_plots.py   bars and points as SVG
parity_proof.py norms, files, environment        parity_values.py   cells and tables of any value
text.py         names that are safe to show
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold.pages.parity import parity_page

__all__ = ["parity_page"]


def __getattr__(name: str) -> Any:
    """The page of a parity report brings the runtime along, which the page of `inspect` does without."""
    if name == "parity_page":
        from bnfold.pages.parity import parity_page

        return parity_page
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
