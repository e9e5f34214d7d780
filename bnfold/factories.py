"""Objects that the user's own code makes, named as `module:factory`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bnfold.errors import DataError, said

_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_SPEC = re.compile(rf"{_NAME}:{_NAME}", re.ASCII)
_LONGEST = 300


def is_spec(text: str) -> bool:
    """Whether a text has the form `module:factory`, in ASCII; whether there is such a thing is another matter."""
    return len(text) <= _LONGEST and _SPEC.fullmatch(text) is not None


def make(spec: str, what: str, places: Sequence[Path]) -> Any:
    """What the factory returns. Arguments and errors as those of `find` and `call`."""
    return call(find(spec, what, places), what)


def find(spec: str, what: str, places: Sequence[Path]) -> Any:
    """The factory itself; its module is imported. what: how a sentence names what it makes. places: folders to look in,
    the last one first.

    Raises DataError for whatever the user's code raises.
    """
    module_name, _, attribute = spec.partition(":")
    try:
        factory = _imported(module_name, places)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except (Exception, SystemExit) as problem:
        where = ""
        if isinstance(problem, ModuleNotFoundError) and problem.name == module_name:
            looked = " and ".join(dict.fromkeys(str(place) for place in reversed(places)))
            where = f"; looked for in {looked} and on Python's path; go where it lies, or set PYTHONPATH to that"
        raise DataError(f"{what} cannot be made: {said(problem)}{where}") from problem
    return factory


def call(factory: Any, what: str, values: Sequence[Any] = (), named: Mapping[str, Any] | None = None) -> Any:
    """What a factory returns for some arguments. Raises DataError for whatever the user's code raises."""
    named = named or {}
    unfit = _unfit(factory, values, named)
    if unfit:
        raise DataError(f"{what} cannot be made: {unfit}")
    try:
        return factory(*values, **named)
    except (Exception, SystemExit) as problem:
        raise DataError(f"{what} cannot be made: {said(problem)}") from problem


def _imported(name: str, places: Sequence[Path]) -> Any:
    """The module. One of that name that was loaded from elsewhere is not taken for it."""
    for place in places:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(place))
        sys.path.insert(0, str(place))
    importlib.invalidate_caches()
    top = name.partition(".")[0]
    origins = [_origin(top, place) for place in reversed(places)]
    wanted = next((origin for origin in origins if origin), None)
    loaded = sys.modules.get(top)
    if loaded is not None and wanted is not None:
        found = getattr(loaded, "__file__", None)
        if found is None or Path(found).resolve() != wanted.resolve():
            raise ImportError(
                f"the name '{top}' is that of another module, {found or 'one of Python itself'}, which is loaded "
                f"already; rename {wanted}"
            )
    return importlib.import_module(name)


def _origin(name: str, place: Path) -> Path | None:
    """The file of a module or package that lies in a folder."""
    spec = importlib.machinery.PathFinder.find_spec(name, [str(place)])
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _unfit(factory: Any, values: Sequence[Any], named: Mapping[str, Any]) -> str:
    """Why a callable does not take these arguments; empty where it does, or does not tell what it takes."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # no callable, which calling it will say, or one of C
        return ""
    try:
        signature.bind(*values, **named)
    except TypeError as problem:
        return f"{problem}; it takes {signature!s:.300}; give what it takes"
    return ""
