"""`bnfold serve`: the HTTP server on a model repository."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.commands.options import Commands, add_command, port

if TYPE_CHECKING:
    from bnfold.commands.console import Console


def add(commands: Commands) -> None:
    """Declare the parser."""
    parser = add_command(
        commands,
        "serve",
        run,
        "Serve the models of a repository over HTTP: /v2 (Open Inference Protocol), /predict, /metrics, /docs. "
        "A version that fails its proof on this host is not served. Stops on SIGTERM or Ctrl-C after it has "
        "answered what it accepted.",
    )
    parser.add_argument(
        "repository",
        metavar="REPOSITORY",
        type=Path,
        nargs="?",
        help="a folder of <name>/<version>/ bundles (default: models)",
    )
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=port, help="port to listen on; 0 takes a free one (default: 8000)")
    parser.add_argument(
        "--device",
        choices=("auto", "cuda", "cpu"),
        help="cuda means CUDA or an error; auto takes it where it starts (default: auto)",
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Serve until told to stop. The log goes to stderr; with --json the URL goes to stdout once it answers."""
    from service.server import serve
    from service.settings import Settings

    # What is not given here may come from BNFOLD_* variables, and has its default in Settings.
    settings = Settings.load(repository=options.repository, host=options.host, port=options.port, device=options.device)

    def announce(url: str) -> None:
        if console.json:
            console.result({"url": url}, url)

    serve(settings, announce=announce)
    return 0
