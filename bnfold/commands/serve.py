"""`bnfold serve`: the HTTP server on a model repository."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.commands.options import Commands, add_command
from bnfold.errors import BnfoldError
from service.settings import DESCRIBED

if TYPE_CHECKING:
    from bnfold.commands.console import Console
    from service.setting import Setting


def add(commands: Commands) -> None:
    """Declare the parser; its flags are the settings of the server."""
    parser = add_command(
        commands,
        "serve",
        run,
        "Serve the models of a repository over HTTP: /v2 (Open Inference Protocol), /predict, /metrics, /docs. "
        "A version that fails its proof on this host is not served. Stops on SIGTERM or Ctrl-C after it has "
        "answered what it accepted. Flags win over BNFOLD_* variables, those over the file of --config.",
    )
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="a TOML file of settings (default: what BNFOLD_CONFIG names)"
    )
    parser.add_argument(
        "--show-settings", action="store_true", help="print the settings and where each came from, and end"
    )
    groups: dict[str, Any] = {}
    for described in DESCRIBED.values():
        if described.group not in groups:
            groups[described.group] = parser.add_argument_group(described.group)
        _add_setting(groups[described.group], described)


def _add_setting(group: Any, described: Setting) -> None:
    """One flag. Its default is None, which means not given: the value may come from elsewhere."""
    default = described.write(described.default)
    meaning = described.help + (f" (default: {default})" if default else "")
    options: dict[str, Any] = {"default": None, "help": meaning.replace("%", "%%")}
    if described.kind is bool:
        group.add_argument(described.flag, action=argparse.BooleanOptionalAction, **options)
        return
    if described.flag.startswith("-"):
        metavar = {"bytes": "SIZE", "s": "TIME"}.get(described.unit, _METAVARS.get(described.kind, "TEXT"))
        options |= {"dest": described.name, "metavar": metavar}
    else:
        options |= {"metavar": described.flag, "nargs": "?"}
    if described.choices:
        options |= {"choices": described.choices, "metavar": None}
    name = described.flag if described.flag.startswith("-") else described.name
    group.add_argument(name, type=_reader(described), **options)


_METAVARS = {int: "N", float: "NUMBER", Path: "PATH"}


def _reader(described: Setting) -> Callable[[str], Any]:
    """Reads the text of a flag. argparse says itself which flag it was."""

    def read(text: str) -> Any:
        try:
            return described.accept(text)
        except BnfoldError:
            raise argparse.ArgumentTypeError(f"found {text!r:.80}; expected {described.expected}") from None

    return read


def run(options: argparse.Namespace, console: Console) -> int:
    """Serve until told to stop. The log goes to stderr; with --json the URL goes to stdout once it answers."""
    from service.configuration import configure

    flags = {name: getattr(options, name) for name in DESCRIBED}
    configuration = configure(flags, file=options.config)
    for warning in configuration.warnings:
        console.note(f"bnfold: {warning}")
    if options.show_settings:
        console.result(configuration.as_json(), configuration.as_toml().rstrip())
        return 0
    if configuration.settings.workers > 1:  # the workers load the models; this process stays small
        from service.processes.supervisor import supervise as serve
    else:
        from service.processes.server import serve

    def announce(url: str) -> None:
        if console.json:
            console.result({"url": url}, url)

    serve(configuration.settings, announce=announce)
    return 0
