"""`bnfold verify`: the parity suite on a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.commands.options import Commands, add_command

if TYPE_CHECKING:
    from bnfold.commands.console import Console


def add(commands: Commands) -> None:
    """Declare the parser."""
    parser = add_command(
        commands,
        "verify",
        run,
        "Prove a bundle, or say what is wrong with it. "
        "Exit code 0: parity holds; 1: it does not hold; 2: it cannot be told.",
    )
    parser.add_argument(
        "bundle", metavar="BUNDLE", type=Path, help="a version folder, or a model folder for its newest version"
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        type=Path,
        help="more samples to decide on: an .npz, or a folder of images",
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Print the verdict of every tier; the exit code is the report's."""
    from bnfold.commands.versions import find_version
    from bnfold.parity import verify

    folder = find_version(options.bundle)
    console.progress(f"proving {folder}")
    report = verify(folder, data=options.data)
    console.result(report.to_dict(), report.to_table())
    return report.exit_code
