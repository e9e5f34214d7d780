"""Write docs/recipes.md from the declared keys of a recipe, or say with --check whether it is up to date."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from bnfold.training.fields import Key, describe
from bnfold.training.networks import KINDS
from bnfold.training.recipe import Augmentation, Data, Optimizer, Train

DOCS = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"

HEAD = """\
# What a recipe may say

<!-- Written by scripts/write_recipe_docs.py from the declared keys; `make docs` writes it again, a test compares. -->

A recipe is a TOML file. `name` (1 to 128 of A-Z a-z 0-9 _ . -, no dot first) names it, and `seed` (an integer from 0,
the default) settles the initial weights, the order of the data and the augmentation. The rest stands in the tables
below. A key without a default has to be there; one that is not known, of another type or out of its range is refused by
name. `--set train.epochs=5` overrides one value, written as in TOML; a single word needs no quotes.
"""
OWN = """\
Or it is `module:factory`, and your own code gives the network: then the other keys are its arguments, each true or
false, a text, a finite number, or a list of these ([training.md](training.md#networks-of-your-own))."""
_TITLES = "| key | takes | default | meaning |\n|---|---|---|---|"


def render() -> str:
    """The whole page."""
    lines = [HEAD]
    for title, table in (("data", Data), ("optimizer", Optimizer), ("train", Train), ("augmentation", Augmentation)):
        lines += [f"## `[{title}]`", "", _TITLES, *_rows(table), ""]
    lines += ["## `[network]`", "", f"`kind` is one of {', '.join(f'`{kind}`' for kind in KINDS)}.", OWN, ""]
    for kind in KINDS.values():
        lines += [f"### `{kind.name}`", "", _TITLES, *_rows(kind.args), ""]
    return "\n".join(lines)


def _rows(table: type) -> Iterator[str]:
    for each in describe(table):
        cells = (f"`{each.name}`", each.expected, "" if each.required else f"`{_write(each)}`", each.meaning)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _write(described: Key) -> str:
    """A default as TOML has it."""
    value = described.default
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"


def main() -> int:
    """Write the page; with --check only compare."""
    page = render()
    if sys.argv[1:] == ["--check"]:
        return 0 if DOCS.read_text(encoding="utf-8") == page else 1
    DOCS.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
