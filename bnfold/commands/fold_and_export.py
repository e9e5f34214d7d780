"""`bnfold fold-and-export`: a network becomes a proven deployment bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.commands.options import Commands, add_command, add_source

if TYPE_CHECKING:
    from bnfold.commands.console import Console


def add(commands: Commands) -> None:
    """Declare the parser."""
    parser = add_command(
        commands,
        "fold-and-export",
        run,
        "Fold every batch norm that can be folded exactly, export to ONNX, prove it, and write a bundle. "
        "Nothing is written when a norm is refused or the proof fails.",
    )
    add_source(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="BUNDLE",
        type=Path,
        required=True,
        help="models/x writes the next version under models/x; models/x/7 writes that one and fails if it is there",
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        type=Path,
        help="held-out samples for goldens and decisions: an .npz, or a folder of images (a checkpoint brings its own)",
    )
    parser.add_argument("--labels", metavar="FILE", type=Path, help="names of the classes: a text file with one a line")
    parser.add_argument(
        "--preprocessing",
        metavar="FILE",
        type=Path,
        help="how an image becomes the input: a JSON object as in manifest.json (docs/bundle.md)",
    )
    parser.add_argument(
        "--output-kind",
        choices=("logits", "probabilities", "raw"),
        help="what the outputs mean (default: logits for a checkpoint, raw for anything else)",
    )
    parser.add_argument(
        "--allow-refused",
        action="store_true",
        help="write the bundle although a norm is not a fixed, finite affine map; that norm stays as it is",
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Build the bundle; prints the fold table and where the bundle is."""
    from bnfold.build import build_bundle
    from bnfold.commands.console import shown
    from bnfold.folding.report import FoldReport

    bundle = build_bundle(
        options.source,
        options.output,
        data=options.data,
        labels=options.labels,
        preprocessing=options.preprocessing,
        output_kind=options.output_kind,
        weights=options.weights,
        input_shape=options.input_shape,
        network=options.network,
        allow_refused=options.allow_refused,
        keep=options.keep,
        moves=options.moves,
        progress=console.progress,
    )
    fold, parity = bundle.fold_report(), bundle.parity()
    document = {
        "bundle": str(bundle.path),
        "name": bundle.manifest.name,
        "version": bundle.manifest.version,
        "fold": fold,
        "parity": parity,
    }
    console.result(document, f"{FoldReport.from_dict(fold).to_table()}\n\n{shown(bundle.path)}")
    return 0
