"""docs/recipes.md says what the declared keys say."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import pytest

from bnfold.training.fields import describe
from bnfold.training.networks import KINDS
from bnfold.training.recipe import Augmentation, Data, Optimizer, Train

ROOT = Path(__file__).parents[2]
TABLES = {**{table.__name__: table for table in (Data, Optimizer, Train, Augmentation)},
          **{name: kind.args for name, kind in KINDS.items()}}  # fmt: skip


def test_the_page_is_what_the_keys_say() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "write_recipe_docs.py"))
    assert (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8") == script["render"](), "say `make docs`"


@pytest.mark.parametrize("name", TABLES)
def test_every_field_is_declared_with_a_meaning(name: str) -> None:
    declared = list(describe(TABLES[name]))
    assert [each.name for each in declared] == [field.name for field in dataclasses.fields(TABLES[name])]
    assert all(each.meaning for each in declared)


@pytest.mark.parametrize("name", TABLES)
def test_every_default_is_taken_by_its_own_key(name: str) -> None:
    class Never:
        def unknown(self, name: str, known: tuple[str, ...]) -> None:
            raise AssertionError(name, known)

        def missing(self, name: str) -> None:
            raise AssertionError(name)

        def refused(self, name: str, value: object, expected: str) -> None:
            raise AssertionError(name, value, expected)

    for each in describe(TABLES[name]):
        if not each.required:
            assert each.check(each.default, Never()) == each.default  # type: ignore[arg-type]
