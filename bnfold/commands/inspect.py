"""`bnfold inspect`: what would fold, what would not, and why."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bnfold.commands.options import Commands, add_command, add_source

if TYPE_CHECKING:
    from bnfold.commands.console import Console


def add(commands: Commands) -> None:
    """Declare the parser."""
    parser = add_command(commands, "inspect", run, "Show what would fold, what would not, and why. Writes nothing.")
    add_source(parser)


def run(options: argparse.Namespace, console: Console) -> int:
    """Print one row for every norm of the source."""
    from bnfold.build import inspect

    console.progress(f"reading {options.source}")
    report = inspect(
        options.source,
        weights=options.weights,
        input_shape=options.input_shape,
        keep=options.keep,
        moves=options.moves,
    )
    console.result({"source": options.source, **report.to_dict()}, report.to_table())
    return 0
