"""`bnfold unfold`: the unfolded original back out of a bundle."""

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
        "unfold",
        run,
        "Give the unfolded original of a bundle back as an ONNX file. Every tensor is checked against the hashes and "
        "statistics that the bundle recorded; nothing is written when one differs.",
    )
    parser.add_argument(
        "bundle", metavar="BUNDLE", type=Path, help="a version folder, or a model folder for its newest version"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="MODEL.onnx",
        type=Path,
        required=True,
        help="the file to write; above 2 GB its data go to MODEL.onnx.data beside it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file of that name, and say so")


def run(options: argparse.Namespace, console: Console) -> int:
    """Write the file; prints what was checked and where it is."""
    from bnfold.commands.console import shown
    from bnfold.commands.versions import find_version
    from bnfold.unfold import unfold

    folder = find_version(options.bundle)
    console.progress(f"checking {folder}")
    made = unfold(folder, options.output, overwrite=options.overwrite)
    if made.replaced:
        console.note(f"replaced {shown(made.path)}, which was there before")
    document = {
        "model": str(made.path),
        "sha256": made.sha256,
        "tensors": made.tensors,
        "norms": made.norms,
        "replaced": made.replaced,
    }
    checked = f"{made.tensors} tensors and the statistics of {made.norms} norms are those that were folded"
    console.result(document, f"{checked}\n{shown(made.path)}")
    return 0
