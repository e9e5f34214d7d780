"""The command line: parses, calls one command, and turns every failure into one sentence and an exit code.

Exit codes: 0 done (verify: parity holds), 1 parity does not hold, 2 the input, the options or bnfold itself are at
fault (verify: cannot tell), 130 interrupted, 141 whoever read the output has gone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn, TextIO

import bnfold
from bnfold.commands import audit, fold_and_export, inspect, predict, recalibrate, serve, study, train, unfold, verify
from bnfold.commands.console import Console
from bnfold.errors import BnfoldError

COMMANDS = (train, recalibrate, fold_and_export, unfold, inspect, verify, audit, serve, predict, study)

CANNOT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count
READER_GONE = 141  # 128 + SIGPIPE

# Packages that only an extra brings, and that extra.
_OPTIONAL = {"torch": "torch", "scipy": "torch", "sklearn": "torch", "onnxscript": "torch", "matplotlib": "torch"}


class UsageError(Exception):
    """Arguments that no command takes."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{self.prog}: {message} (see `{self.prog} --help`)")


def build_parser() -> Parser:
    """The parser of every command; importing and building it loads no numpy and no framework."""
    parser = Parser(
        prog="bnfold",
        description="Put networks with batch norm into production: folded exactly, proven, and served.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"bnfold {bnfold.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for command in COMMANDS:
        command.add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and give its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _open_streams()
    console = Console(json="--json" in words, out=sys.stdout, err=sys.stderr)
    try:
        options = build_parser().parse_args(words)
    except UsageError as problem:
        _fail(console, str(problem), name="")
        sys.exit(CANNOT)
    try:
        # A library that prints must not break into the result.
        with contextlib.redirect_stdout(sys.stderr):
            code: int = options.run(options, console)
        return code
    except BrokenPipeError:
        _silence(sys.stdout)
        return READER_GONE
    except KeyboardInterrupt as stopped:  # a command that can be gone on with says how
        _fail(console, str(stopped) or "interrupted")
        return INTERRUPTED
    except Exception as problem:
        _fail(console, _sentence(problem))
        if os.environ.get("BNFOLD_DEBUG") == "1":
            traceback.print_exception(problem, file=sys.stderr)
        return CANNOT


def _open_streams() -> None:
    """Streams that take any text; one that was closed at the start leads nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for the life of the process)
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _fail(console: Console, sentence: str, name: str = "bnfold: ") -> None:
    try:
        console.failure(sentence, name)
    except OSError:  # nobody reads stderr or stdout: the exit code is what is left to say it with
        _silence(sys.stdout)
        _silence(sys.stderr)


def _silence(stream: TextIO) -> None:
    """Python flushes its streams once more at exit; give this one somewhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _sentence(problem: Exception) -> str:
    if isinstance(problem, BnfoldError):
        return str(problem)
    package = problem.name.partition(".")[0] if isinstance(problem, ModuleNotFoundError) and problem.name else ""
    if package in _OPTIONAL:
        return (
            f"this needs the package {package}, which is not installed; install bnfold with the extra "
            f"`{_OPTIONAL[package]}` (in a checkout: pip install '.[{_OPTIONAL[package]}]')"
        )
    if isinstance(problem, OSError) and problem.strerror:
        where = f"{problem.filename}: " if problem.filename is not None else ""
        return f"{where}{problem.strerror}"
    return (
        f"an unexpected error, {type(problem).__name__} ({problem}), which is a defect of bnfold: please report it "
        "with the command and what it prints with BNFOLD_DEBUG=1 set"
    )
