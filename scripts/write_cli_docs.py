"""Write docs/cli.md from the parsers of the command line, or say with --check whether it is up to date."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bnfold.cli import build_parser

DOCS = Path(__file__).resolve().parent.parent / "docs" / "cli.md"

HEAD = """\
# Command line

<!-- Written by scripts/write_cli_docs.py from the parsers; `make docs` writes it again, a test compares. -->

`bnfold COMMAND ...`, or `python -m bnfold COMMAND ...`. {description}

Results go to stdout, everything else to stderr. With `--json` a command prints exactly one JSON document on stdout:
its result, or `{{"error": "..."}}`. JSON has no NaN and no infinity: they are written as the strings `"nan"`, `"inf"`,
`"-inf"`. Progress is shown on stderr: on a terminal in one line that is written over, elsewhere, as in a log,
in a line every half minute.

| exit code | meaning |
|---|---|
| 0 | done; for `verify`: parity holds; for `audit`: it is a right fold |
| 1 | `verify`: parity does not hold; `audit`: it is not a right fold |
| 2 | the input or the options cannot be used, and one sentence on stderr says why; `verify`, `audit`: cannot tell |
| 130 | interrupted |
| 141 | whoever read the output has gone |

An unexpected error also ends with one sentence and 2; `BNFOLD_DEBUG=1` shows its traceback, for a report.
"""


def render() -> str:
    """The whole page."""
    parser = build_parser()
    pages = [HEAD.format(description=parser.description)]
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        pages.append(_section(name, command))
    return "\n".join(pages)


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    actions = [action for action in parser._actions if action.dest != "help"]
    actions.sort(key=lambda action: (bool(action.option_strings), not action.required, action.dest == "json"))
    usage = " ".join(["bnfold", name, *map(_usage, actions)])
    rows = "\n".join(f"| {_spelling(action)} | {_escaped(action.help or '')} |" for action in actions)
    return f"## {name}\n\n```\n{usage}\n```\n\n{parser.description}\n\n| argument | meaning |\n|---|---|\n{rows}\n"


def _usage(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"[{action.metavar}]" if action.nargs == "?" else str(action.metavar)
    text = " ".join([action.option_strings[0], *_value(action)])
    return text if action.required else f"[{text}]"


def _spelling(action: argparse.Action) -> str:
    value = _value(action)
    if not action.option_strings:
        return f"`{action.metavar}`"
    return ", ".join("`" + _escaped(" ".join([option, *value])) + "`" for option in action.option_strings)


def _value(action: argparse.Action) -> list[str]:
    if action.nargs == 0:
        return []
    return ["|".join(action.choices) if action.choices else str(action.metavar or action.dest.upper())]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write the page; with --check only compare."""
    page = render()
    if sys.argv[1:] == ["--check"]:
        return 0 if DOCS.read_text(encoding="utf-8") == page else 1
    DOCS.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
