"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from bnfold.commands.console import Console

    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
    Run: TypeAlias = Callable[[argparse.Namespace, Console], int]
else:
    Commands = Run = object


def add_command(commands: Commands, name: str, run: Run, description: str) -> argparse.ArgumentParser:
    """A parser for one command, with --json; its summary is the first sentence of the description."""
    parser = commands.add_parser(
        name, help=description.partition(". ")[0].rstrip("."), description=description, allow_abbrev=False
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document on stdout, and everything else on stderr"
    )
    parser.set_defaults(run=run)
    return parser


def add_source(parser: argparse.ArgumentParser) -> None:
    """SOURCE, and what else it takes to open and fold one."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a checkpoint folder, a model.onnx, or module:factory (a callable that gives a torch.nn.Module)",
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
    parser.add_argument(
        "--keep",
        metavar="NAME",
        action="append",
        default=[],
        help="a norm to leave alone, by name or pattern (*, ?, quoted), as inspect shows it; repeatable",
    )
    parser.add_argument(
        "--moves",
        metavar="MOVES",
        type=moves,
        default="default",
        help="default (no move that costs more at run time than the norm it removes), all, or names with commas",
    )


def add_network(parser: argparse.ArgumentParser) -> None:
    """The code that a checkpoint needs to be opened."""
    parser.add_argument(
        "--network",
        metavar="MODULE:FACTORY",
        help="for a checkpoint whose network is your own code, its name as the checkpoint has it; it is looked for "
        "in the current folder and on Python's path, and run",
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """RECIPE.toml, the values that override it, and where it is trained."""
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


def shape(text: str) -> tuple[int, ...]:
    """Read a shape such as 3,224,224."""
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected positive numbers with commas, as in 3,224,224")
    return sizes


def moves(text: str) -> str | tuple[str, ...]:
    """Read `default`, `all`, or names of moves with commas."""
    return text if text in ("default", "all") else names(text)


def names(text: str) -> tuple[str, ...]:
    """Read names with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def seconds(text: str) -> float:
    """Read a time, a finite number of seconds above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a number of seconds, as in 30 or 2.5")
    return value


def bound(text: str) -> float:
    """Read a bound on the size of inputs, a finite number from 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a number from 0, as in 1 or 2.5")
    return value


def port(text: str) -> int:
    """Read a TCP port; 0 asks for a free one."""
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a port from 0 to 65535")
    return int(text)
