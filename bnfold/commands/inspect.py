"""`bnfold inspect`: what would fold, what would not, and why."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.commands.options import Commands, add_command, add_source, bound

if TYPE_CHECKING:
    from bnfold.commands.console import Console


def add(commands: Commands) -> None:
    """Declare the parser."""
    parser = add_command(
        commands,
        "inspect",
        run,
        "Show what would fold, what would not, why, and what it would take. Writes nothing but the page of --html.",
    )
    add_source(parser)
    parser.add_argument(
        "--numbers",
        metavar="X",
        type=bound,
        help="also show what the fold does to the numbers: max|a|, the share of eps and the amplification of each "
        "norm, and how far rounding moves the outputs of each linear for inputs up to X (docs/folding.md)",
    )
    parser.add_argument(
        "--html",
        metavar="PAGE.html",
        type=Path,
        help="write a page with the graph before and after, norms coloured by outcome; it replaces one of that name",
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Print one row for every norm of the source."""
    from bnfold.pages.page import check_place, write_page
    from bnfold.reference import inspect

    if options.html is not None:
        check_place(options.html)
    console.progress(f"reading {options.source}")
    found = inspect(
        options.source,
        weights=options.weights,
        input_shape=options.input_shape,
        network=options.network,
        keep=options.keep,
        moves=options.moves,
        bound=options.numbers,
        fold=options.html is not None,
    )
    document: dict[str, Any] = {"source": options.source, **found.report.to_dict()}
    parts = [found.report.to_table(width=console.width, paint=console.paint)]
    if options.numbers is not None:
        parts.append(found.report.to_numbers(width=console.width))
    if options.html is not None and found.after is not None:
        from bnfold.commands.console import shown
        from bnfold.pages.inspection import render

        console.progress(f"drawing {options.html}")
        page = render(_name(options.source), found.report, found.plan, found.before, found.after)
        document["html"] = str(write_page(page, options.html))
        parts.append(shown(options.html))
    console.result(document, "\n\n".join(parts), is_clean=True)
    return 0


def _name(source: str) -> str:
    """What the page is about, without the folders of this machine."""
    return source if ":" in source else Path(source).name
