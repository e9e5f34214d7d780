"""From a TOML file to a recipe, with one sentence for what is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from bnfold.errors import DataError
from bnfold.factories import is_spec
from bnfold.training.fields import read
from bnfold.training.networks import read_args
from bnfold.training.networks.factory import read_arguments
from bnfold.training.recipe.overrides import override, parse_toml
from bnfold.training.recipe.parts import Augmentation, Data, Network, Optimizer, Recipe, Train

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
_TOP = ("name", "seed", "data", "network", "optimizer", "train", "augmentation")
_KEYS = {
    part.__name__.lower(): {each.name for each in fields(part)}
    for part in (Data, Network, Optimizer, Train, Augmentation)
}
LARGEST_SEED = 2**31 - 1


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe. overrides: `key=value`, with dots between tables and values as in TOML (a bare word is a text).

    Raises DataError for a file that is no TOML, and for an unknown key, a missing key, a wrong type or a value out of
    range.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"the recipe {path} cannot be read ({problem}); expected a TOML file") from None
    document = parse_toml(text, f"the recipe {path}")
    for each in overrides:
        override(document, each, path)
    return replace(_Reader(document, str(path)).recipe(), folder=path.parent)


class _Reader:
    """One document, table by table."""

    def __init__(self, document: Mapping[str, Any], file: str) -> None:
        self._document = document
        self._file = file
        self._top = _Where(file, "")

    def recipe(self) -> Recipe:
        for found in self._document:
            if found not in _TOP:
                self._top.unknown(found, _TOP)
        if "name" not in self._document:
            self._top.missing("name")
        name = self._document["name"]
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self._top.refused("name", name, "1 to 128 of A-Z a-z 0-9 _ . - and no dot first")
        seed = self._document.get("seed", 0)
        if type(seed) is not int or not 0 <= seed <= LARGEST_SEED:
            self._top.refused("seed", seed, f"an integer from 0 to {LARGEST_SEED}")
        return Recipe(
            name=name,
            seed=seed,
            data=self._part("data", Data),
            network=self._network(),
            optimizer=self._part("optimizer", Optimizer),
            train=self._part("train", Train),
            augmentation=self._part("augmentation", Augmentation),
        )

    def _network(self) -> Network:
        values, where = dict(self._table("network")), _Where(self._file, "network.")
        if "kind" not in values:
            where.missing("kind")
        kind = values.pop("kind")
        if isinstance(kind, str) and ":" in kind:
            if not is_spec(kind):
                where.refused("kind", kind, "a kind of network, or module:factory, say mynetworks:make")
            return Network(kind, read_arguments(values, where))
        return Network(kind, asdict(read_args(kind, values, where)))

    def _part(self, name: str, table: type[T]) -> T:
        return read(table, self._table(name), _Where(self._file, f"{name}."))

    def _table(self, name: str) -> Mapping[str, Any]:
        values = self._document.get(name, {})
        if not isinstance(values, dict):
            self._top.refused(name, values, "a table")
        return values


@dataclass(frozen=True)
class _Where:
    """A table of a file; what is wrong with its keys is one sentence each."""

    file: str
    prefix: str

    def unknown(self, name: str, known: tuple[str, ...]) -> NoReturn:
        raise DataError(
            f"the recipe {self.file} has the unknown key '{self.prefix}{name}'; known here are {', '.join(known)}"
            + self._guess(name, known)
        )

    def _guess(self, name: str, known: tuple[str, ...]) -> str:
        """What may have been meant: a key that is written nearly so, or outside of tables the same in one of these."""
        meant = [f"{self.prefix}{each}" for each in get_close_matches(name, known, 1)]
        if not self.prefix:
            meant += [f"{table}.{name}" for table, names in _KEYS.items() if name in names]
        return f"; {' or '.join(meant)} may be meant" if meant else ""

    def missing(self, name: str) -> NoReturn:
        raise DataError(f"the recipe {self.file} has no '{self.prefix}{name}'; it must say it")

    def refused(self, name: str, value: object, expected: str) -> NoReturn:
        # Python refuses to write out an integer of thousands of digits; TOML can give one in hexadecimal.
        found = f"an integer of {value.bit_length()} bits" if type(value) is int and abs(value) > 2**64 else repr(value)
        raise DataError(f"the recipe {self.file} has {found:.80} as '{self.prefix}{name}'; expected {expected}")
