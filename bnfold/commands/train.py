"""`bnfold train`: a recipe becomes a checkpoint."""

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
        "train",
        run,
        "Train the network of a recipe. Writes a checkpoint folder: weights.safetensors, checkpoint.json, "
        "history.csv and curves.png.",
    )
    parser.add_argument("recipe", metavar="RECIPE.toml", type=Path, help="what to train, on what, and how")
    parser.add_argument(
        "--device",
        choices=("auto", "cuda", "cpu"),
        default="auto",
        help="auto takes CUDA where there is a device (default: auto)",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override one value of the recipe, with dots between tables, as in --set train.epochs=5; repeatable",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        type=Path,
        help="the checkpoint folder, which must not exist (default: the next free runs/<recipe>/<n>)",
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Train; prints where the checkpoint is and what it reached."""
    from bnfold.commands.console import shown
    from bnfold.training import train

    checkpoint = train(
        options.recipe,
        device=options.device,
        overrides=options.overrides,
        output=options.output,
        progress=console.progress,
    )
    metrics = checkpoint.meta["metrics"]
    document = {
        "checkpoint": str(checkpoint.path),
        "name": checkpoint.name,
        "seed": checkpoint.meta["seed"],
        "metrics": metrics,
    }
    numbers = "\n".join(f"  {key}: {value}" for key, value in metrics.items())
    console.result(document, f"{shown(checkpoint.path)}\n{numbers}")
    return 0
