"""`bnfold recalibrate`: a checkpoint's norms get the statistics of other data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.commands.options import Commands, add_command, add_network

if TYPE_CHECKING:
    from bnfold.commands.console import Console


def add(commands: Commands) -> None:
    """Declare the parser."""
    parser = add_command(
        commands,
        "recalibrate",
        run,
        "Give the norms of a checkpoint the running statistics of other data. No labels are needed and no weight "
        "changes; what it does to the held-out accuracy is shown. Writes a new checkpoint folder.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a folder that bnfold train wrote")
    parser.add_argument(
        "--data",
        metavar="PATH",
        type=Path,
        required=True,
        help="the samples: a folder of images, or an .npz whose array 'input' is preprocessed as the network takes it; "
        "labels are not looked at",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        type=Path,
        required=True,
        help="the new checkpoint folder, which must not exist",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="layer by layer, each norm over all samples with those before it done: a pass for each norm, whatever the "
        "batches (default: one pass, each norm by the batch, as in training)",
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=int,
        default=256,
        help="samples at once, at most, from 2 (default: 256)",
    )
    add_network(parser)


def run(options: argparse.Namespace, console: Console) -> int:
    """Recalibrate; prints where the new checkpoint is and what it reaches on the held-out samples."""
    from bnfold.commands.console import shown
    from bnfold.training.recalibration import recalibrate_checkpoint

    done = recalibrate_checkpoint(
        options.checkpoint,
        options.data,
        options.output,
        exact=options.exact,
        batch_size=options.batch_size,
        network=options.network,
        progress=console.progress,
    )
    document = {
        "checkpoint": str(done.checkpoint.path),
        "norms": done.norms,
        "samples": done.samples,
        "before": {"held_out_accuracy": done.before.accuracy, "held_out_loss": done.before.loss},
        "after": {"held_out_accuracy": done.after.accuracy, "held_out_loss": done.after.loss},
    }
    console.result(
        document,
        f"{shown(done.checkpoint.path)}\n"
        f"  {done.norms} norms over {done.samples} samples\n"
        f"  held-out accuracy: {done.before.accuracy:.2%} before, {done.after.accuracy:.2%} after\n"
        f"  held-out loss: {done.before.loss:.4f} before, {done.after.loss:.4f} after",
    )
    return 0
