"""What a recipe may say: TOML tables read strictly, with one sentence for what is wrong."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from bnfold.errors import DataError

NETWORKS = ("mlp", "plain_cnn", "resnet")
DATASETS = ("digits",)
OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("one_cycle", "cosine", "constant")
# Checkpoints are held to these too: what a stranger wrote must not make a network that does not fit the memory.
MAX_WIDTH = 65536
MAX_WIDTHS = 64
MAX_BLOCKS = 32

# A text without quotes, as a shell leaves it; what begins like a number or is a TOML word is none.
_WORD = re.compile(r"(?!(?:true|false|inf|nan)$)[A-Za-z_./][A-Za-z0-9_./-]*")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class Network:
    """kind: one of NETWORKS. widths: units or channels a layer (a stage, for `resnet`). blocks: residual blocks a
    stage, `resnet` only.
    """

    kind: str
    widths: tuple[int, ...]
    blocks: int


@dataclass(frozen=True)
class Optimizer:
    """kind: `sgd` (Nesterov) or `adamw`. weight_decay is not applied to norms and biases."""

    kind: str
    learning_rate: float
    momentum: float
    weight_decay: float


@dataclass(frozen=True)
class Schedule:
    """epochs: passes over the data. batch_size: samples a step. schedule: of the learning rate. label_smoothing: the
    share of the target that is spread over all classes. threads: of the CPU; fixed, so that the same recipe gives the
    same bits on machines with more cores, and 1 by default, the fastest for networks as small as these.
    """

    epochs: int
    batch_size: int
    schedule: str
    label_smoothing: float
    threads: int


@dataclass(frozen=True)
class Augmentation:
    """shift: training images are moved by up to so many pixels in each direction, zeros come in."""

    shift: int


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. seed: of the initial weights, the order of the data and the augmentation."""

    name: str
    seed: int
    data: str
    network: Network
    optimizer: Optimizer
    train: Schedule
    augmentation: Augmentation


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
    document = _parse(text, f"the recipe {path}")
    for override in overrides:
        _override(document, override, path)
    return _recipe(_Table(document, str(path), ""))


def _parse(text: str, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise DataError(f"{what} is nested too deeply to be read; expected tables of plain values") from None
    except ValueError as problem:  # TOMLDecodeError, and integers of more digits than Python converts
        raise DataError(f"{what} is no TOML: {problem}") from None


def _recipe(top: _Table) -> Recipe:
    top.check_keys(("name", "seed", "data", "network", "optimizer", "train", "augmentation"))
    name = top.text("name")
    if not _NAME.fullmatch(name):
        top.refuse("name", "1 to 128 of A-Z a-z 0-9 _ . - and no dot first")
    data = top.table("data", ("name",))
    network = top.table("network", ("kind", "widths", "blocks"))
    kind = network.choice("kind", NETWORKS)
    if kind != "resnet":
        network.check_keys(("kind", "widths"))
    optimizer = top.table("optimizer", ("kind", "learning_rate", "momentum", "weight_decay"))
    train = top.table("train", ("epochs", "batch_size", "schedule", "label_smoothing", "threads"))
    augmentation = top.table("augmentation", ("shift",))
    return Recipe(
        name=name,
        seed=top.integer("seed", 0, 2**31 - 1, default=0),
        data=data.choice("name", DATASETS),
        network=Network(
            kind=kind,
            widths=network.integers("widths", 1, MAX_WIDTH, most=MAX_WIDTHS),
            blocks=network.integer("blocks", 1, MAX_BLOCKS, default=1),
        ),
        optimizer=Optimizer(
            kind=optimizer.choice("kind", OPTIMIZERS),
            learning_rate=optimizer.number("learning_rate", 0.0, 1e6, open_low=True),
            momentum=optimizer.number("momentum", 0.0, 0.9999, default=0.9),
            weight_decay=optimizer.number("weight_decay", 0.0, 1e6, default=0.0),
        ),
        train=Schedule(
            epochs=train.integer("epochs", 1, 1_000_000),
            batch_size=train.integer("batch_size", 2, 1_000_000),
            schedule=train.choice("schedule", SCHEDULES, default="one_cycle"),
            label_smoothing=train.number("label_smoothing", 0.0, 0.99, default=0.0),
            threads=train.integer("threads", 1, 1024, default=1),
        ),
        augmentation=Augmentation(shift=augmentation.integer("shift", 0, 64, default=0)),
    )


def _override(document: dict[str, Any], override: str, path: Path) -> None:
    key, equals, text = override.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise DataError(f"--set {override}: expected key=value, with dots between tables, say train.epochs=5")
    if _WORD.fullmatch(text.strip()):
        value: Any = text.strip()
    else:
        parsed = _parse(f"value = {text}", f"--set {override:.80}")
        if len(parsed) != 1:
            raise DataError(f"--set {key}: found several values, expected one; give --set once for each key")
        value = parsed["value"]
    table = document
    for part in keys[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise DataError(f"--set {override}: '{part}' is a value in {path}, not a table; name a key of a table")
    table[keys[-1]] = value


class _Table:
    """One table of a recipe; every reading checks, and a DataError names file, key, what was found and expected."""

    def __init__(self, values: Mapping[str, Any], file: str, prefix: str) -> None:
        self._values = values
        self._file = file
        self._prefix = prefix

    def check_keys(self, known: Iterable[str]) -> None:
        for key in self._values:
            if key not in known:
                raise DataError(
                    f"the recipe {self._file} has the unknown key '{self._prefix}{key}'; "
                    f"known here are {', '.join(known)}"
                )

    def table(self, key: str, known: Iterable[str]) -> _Table:
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            self.refuse(key, "a table")
        table = _Table(value, self._file, f"{self._prefix}{key}.")
        table.check_keys(known)
        return table

    def text(self, key: str) -> str:
        value = self._get(key, None)
        if not isinstance(value, str):
            self.refuse(key, "a text")
        return value

    def choice(self, key: str, allowed: Sequence[str], default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str) or value not in allowed:
            self.refuse(key, f"one of {', '.join(allowed)}")
        return value

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self._get(key, default)
        if type(value) is not int or not low <= value <= high:
            self.refuse(key, f"an integer from {low} to {high}")
        return value

    def integers(self, key: str, low: int, high: int, *, most: int) -> tuple[int, ...]:
        value = self._get(key, None)
        is_list = isinstance(value, list) and 1 <= len(value) <= most
        if not is_list or any(type(item) is not int or not low <= item <= high for item in value):
            self.refuse(key, f"a list of 1 to {most} integers from {low} to {high}")
        return tuple(value)

    def number(
        self, key: str, low: float, high: float, default: float | None = None, *, open_low: bool = False
    ) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float) or not low <= value <= high or (open_low and value == low):
            self.refuse(key, f"a number {'above' if open_low else 'from'} {low:g} up to {high:g}")
        return float(value)

    def refuse(self, key: str, expected: str) -> NoReturn:
        value = self._values.get(key)
        # Python refuses to write out an integer of thousands of digits; TOML can give one in hexadecimal.
        found = f"an integer of {value.bit_length()} bits" if type(value) is int and abs(value) > 2**64 else repr(value)
        raise DataError(f"the recipe {self._file} has {found:.80} as '{self._prefix}{key}'; expected {expected}")

    def _get(self, key: str, default: Any) -> Any:
        if key in self._values:
            return self._values[key]
        if default is None:
            raise DataError(f"the recipe {self._file} has no '{self._prefix}{key}'; it must say it")
        return default
