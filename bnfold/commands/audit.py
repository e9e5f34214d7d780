"""`bnfold audit`: a network that was folded elsewhere, against the network that it was made of."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.commands.options import Commands, add_command, add_network, shape

if TYPE_CHECKING:
    from bnfold.commands.console import Console


def add(commands: Commands) -> None:
    """Declare the parser."""
    parser = add_command(
        commands,
        "audit",
        run,
        "Certify a network that another tool folded, or name the tensor that is wrong. "
        "Exit code 0: it is a right fold; 1: it is not; 2: it cannot be told.",
    )
    parser.add_argument("folded", metavar="FOLDED", type=Path, help="the folded network, an .onnx file")
    parser.add_argument(
        "--against",
        metavar="ORIGINAL",
        required=True,
        help="the unfolded network: an .onnx file, a checkpoint folder, or module:factory",
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        type=Path,
        help="samples to run both on, an .npz or a folder of images; random inputs without it",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        type=Path,
        help="for module:factory, its weights: .safetensors, or .pth read with weights_only=True",
    )
    parser.add_argument(
        "--input-shape",
        metavar="C,H,W",
        type=shape,
        help="for module:factory, the shape of one input without the batch, as in 3,224,224",
    )
    add_network(parser)


def run(options: argparse.Namespace, console: Console) -> int:
    """Print the verdict of every tier; the exit code is the report's."""
    from bnfold.parity.audit import audit

    report = audit(
        options.folded,
        options.against,
        data=options.data,
        weights=options.weights,
        input_shape=options.input_shape,
        network=options.network,
        progress=console.progress,
    )
    console.result(report.to_dict(), report.to_table())
    return report.exit_code
