"""Write docs/settings.md from the fields of service.settings.Settings, or say with --check whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from service.setting import Setting
from service.settings import DESCRIBED

DOCS = Path(__file__).resolve().parent.parent / "docs" / "settings.md"

HEAD = """\
# Settings of the server

<!-- Written by scripts/write_settings_docs.py from the fields; `make docs` writes it again, a test compares. -->

Each setting is a flag of `bnfold serve`, a variable, and a key of a TOML file (`bnfold serve --config FILE`, or the
file that `BNFOLD_CONFIG` names). Flags win over variables, variables over the file, and that over the defaults.
`bnfold serve --show-settings` prints what holds and where each value came from.

A size may have a unit (`B`, `KiB`, `MiB`, `GiB`), and a time too (`us`, `ms`, `s`, `min`, `h`; without one it is in
seconds); in TOML such a value is a text: `max_body_bytes = "64MiB"`. A truth is `true` or `false`; as a flag it is
`--name` or `--no-name`. An empty variable is not given. An unknown key of the file is refused; an unknown `BNFOLD_*`
variable is warned of. Keys and passwords are never settings: settings name the files that hold them.
"""


def render() -> str:
    """The whole page."""
    lines = [HEAD]
    group = ""
    for described in DESCRIBED.values():
        if described.group != group:
            group = described.group
            lines += ["", f"## {group}", "", _TITLES, "|---|---|---|---|---|---|"]
        lines.append(_row(described))
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


_TITLES = "| key | flag | variable | default | takes | meaning |"


def _row(described: Setting) -> str:
    default = described.write(described.default)
    cells = (
        f"`{described.name}`",
        f"`{described.flag}`",
        f"`{described.variable}`",
        f"`{default}`" if default else "not set",
        described.expected,
        described.help,
    )
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def main() -> int:
    """Write the page; with --check only compare."""
    page = render()
    if sys.argv[1:] == ["--check"]:
        return 0 if DOCS.read_text(encoding="utf-8") == page else 1
    DOCS.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
