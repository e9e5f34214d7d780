"""The table of docs/backend-data.md: python tests/onnx_backend/backend_table.py [--write]"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from backend_checks import Found, examine_all
from backend_models import LIGHT, Case, chained, converted, light, operator_cases, shipped, with_inputs

PAGE = Path(__file__).parents[2] / "docs" / "backend-data.md"
START, END = "<!-- table: start -->\n", "<!-- table: end -->\n"
HEAD = (
    "family", "folds", "norms", "folded", "reduced", "kept", "refused", "new tensors", "T1 worst ulp",
    "float64 gap", "run", "T3 worst ratio", "broken: caught",
)  # fmt: skip


def with_norms(cases: Iterable[Case]) -> Iterable[Case]:
    return (made for case in cases for made in chained(case))


FAMILIES: dict[str, Callable[[], Found]] = {
    "pytorch-converted, as they are": lambda: examine_all(with_inputs("pytorch-converted")),
    "pytorch-converted, with norms": lambda: examine_all(with_norms(with_inputs("pytorch-converted"))),
    "pytorch-operator, as they are": lambda: examine_all(with_inputs("pytorch-operator")),
    "pytorch-operator, with norms": lambda: examine_all(with_norms(with_inputs("pytorch-operator"))),
    "simple": lambda: examine_all(converted("simple")),
    "operator cases, with norms": lambda: examine_all(with_norms(operator_cases())),
    "light, as they are": lambda: examine_all(map(shipped, LIGHT)),
    "light, with random weights": lambda: examine_all(map(light, LIGHT), moves=["default"], is_large=True),
}


def row(family: str, found: Found) -> str:
    count = found.outcomes
    cells = (
        family, found.models, found.norms, count["folded"], count["reduced"], count["kept"], count["refused"],
        f"{found.tensors:,}", f"{found.worst_ulp:.4f}" if found.tensors else "",
        f"{found.worst_gap:.1g}" if found.run else "",
        found.run or "", f"{found.worst_ratio:.2f}" if found.worst_ratio else "",
        f"{found.caught} of {found.controls}" if found.controls else "",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/backend-data.md")
    options = parser.parse_args()
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    problems: list[str] = []
    for family, look in FAMILIES.items():
        started = time.monotonic()
        found = look()
        lines.append(row(family, found))
        problems += found.problems
        print(f"{lines[-1]} {time.monotonic() - started:.0f} s, {dict(found.reasons)}", file=sys.stderr, flush=True)
    print("\n".join(lines))
    print("\n".join(problems), file=sys.stderr)
    if options.write:
        text = PAGE.read_text()
        before, after = text.split(START)[0], text.split(END)[1]
        PAGE.write_text(f"{before}{START}\n" + "\n".join(lines) + f"\n\n{END}{after}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
