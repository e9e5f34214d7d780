"""Objects that the user's own code makes, named as `module:factory`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnfold.errors import DataError


def make(spec: str, what: str, places: Sequence[Path]) -> Any:
    """What the factory returns. what: how a sentence names it. places: folders to look in, the last one first.

    Raises DataError for whatever the user's code raises.
    """
    module_name, _, attribute = spec.partition(":")
    for place in places:
        if str(place) not in sys.path:
            sys.path.insert(0, str(place))
    try:
        factory: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
        return factory()
    except Exception as problem:
        raise DataError(f"{what} cannot be made: {type(problem).__name__}: {problem}") from problem
