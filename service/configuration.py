"""The settings of one start: flags win over the environment, that over a TOML file, and that over the defaults."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError
from service.setting import PREFIX
from service.settings import DESCRIBED, Settings

FILE_VARIABLE = PREFIX + "CONFIG"
_OTHERS = frozenset({FILE_VARIABLE, PREFIX + "DEBUG"})  # variables that are read elsewhere
_LARGEST_FILE = 2**20


@dataclass(frozen=True)
class Configuration:
    """Settings, where each came from, and what to warn of. origins: a flag, a variable, a file, or "default"."""

    settings: Settings
    origins: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    def as_toml(self) -> str:
        """The settings as a file that `--config` reads; those without a value are comments. It holds no secret."""
        lines: list[str] = []
        group = ""
        for name, described in DESCRIBED.items():
            if described.group != group:
                group = described.group
                lines += ["", f"# {group}"] if lines else [f"# {group}"]
            value = getattr(self.settings, name)
            shown = f"# {name} is not set" if value is None else f"{name} = {_toml(described.write(value), value)}"
            lines.append(f"{shown}  # {self.origins[name]}")
        return "\n".join(lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Each setting with its value and where that came from."""
        return {name: {"value": getattr(self.settings, name), "from": self.origins[name]} for name in DESCRIBED}


def configure(
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Configuration:
    """The settings of one start. flags: a value of None is not given; file: TOML, else the one BNFOLD_CONFIG names.

    An empty variable is not given. A variable with the prefix that names no setting is warned of.

    Raises BnfoldError for a value that its setting does not take, an unknown key or argument, an unreadable file.
    """
    environment = os.environ if environment is None else environment
    if file is None and environment.get(FILE_VARIABLE):
        file = Path(environment[FILE_VARIABLE])
    values: dict[str, Any] = {}
    origins = dict.fromkeys(DESCRIBED, "default")
    if file is not None:
        for name, value in _read_file(file).items():
            values[name], origins[name] = DESCRIBED[name].accept(value), str(file)
    for name, described in DESCRIBED.items():
        if environment.get(described.variable):
            values[name], origins[name] = described.read(environment[described.variable]), described.variable
    for name, value in (flags or {}).items():
        if name not in DESCRIBED:
            raise BnfoldError(f"the server has no setting {name!r:.80}{_nearest(name, DESCRIBED)}")
        if value is not None:
            values[name], origins[name] = DESCRIBED[name].accept(value), DESCRIBED[name].flag
    return Configuration(Settings(**values), origins, tuple(_warnings(environment)))


def to_environment(settings: Settings) -> dict[str, str]:
    """Variables that give these settings to another process."""
    return {item.variable: item.write(getattr(settings, name)) for name, item in DESCRIBED.items()}


def _warnings(environment: Mapping[str, str]) -> list[str]:
    known = {item.variable for item in DESCRIBED.values()} | _OTHERS
    strangers = sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
    return [f"the variable {name:.80} is no setting, and is passed over{_nearest(name, known)}" for name in strangers]


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else "; docs/settings.md lists what there is"


def _read_file(file: Path) -> dict[str, Any]:
    """The keys of a TOML file. Raises BnfoldError for what is no TOML, and for a key that is no setting."""
    try:
        with file.open("rb") as opened:
            content = opened.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise BnfoldError(f"the configuration {file} is larger than {_LARGEST_FILE} bytes; give a TOML file")
        found = tomllib.loads(content.decode("utf-8"))
    except OSError as problem:
        raise BnfoldError(
            f"the configuration {file} cannot be read ({problem.strerror}); give a TOML file with --config"
        ) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise BnfoldError(f"the configuration {file} is no TOML ({problem}); correct it") from None
    for name in found:
        if name not in DESCRIBED:
            raise BnfoldError(f"the configuration {file} has the unknown key {name!r:.80}{_nearest(name, DESCRIBED)}")
    return found


def _toml(text: str, value: Any) -> str:
    """A value as TOML: numbers and truths bare, sizes and times with a unit and all else in quotes."""
    if isinstance(value, bool) or (isinstance(value, int) and text.isdigit()):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
