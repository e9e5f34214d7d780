"""`bnfold verify`: the parity suite on a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.commands.options import Commands, add_command, names, seconds

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
        "--tier",
        metavar="TIER",
        action="append",
        help="a tier to run, T0 to T5 or T3b, instead of all of them; repeatable, or with commas",
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        type=Path,
        help="more samples to decide on: an .npz, or a folder of images",
    )
    parser.add_argument(
        "--url",
        metavar="URL",
        help="also ask a running server that serves this bundle, as in http://127.0.0.1:8000",
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=seconds,
        default=float("inf"),
        help="a budget of time: tiers that sample stop early when it is spent, after everything was looked at once",
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Print the verdict of every tier; the exit code is the report's."""
    from bnfold.commands.versions import find_version
    from bnfold.parity import verify

    folder = find_version(options.bundle)
    tiers = None if options.tier is None else [name for text in options.tier for name in names(text)]
    report = verify(
        folder,
        tiers=tiers,
        data=options.data,
        url=options.url,
        seconds=options.seconds,
        progress=lambda text: console.progress(f"proving {folder.parent.name}/{folder.name}: {text}"),
    )
    console.result(report.to_dict(), report.to_table())
    return report.exit_code
