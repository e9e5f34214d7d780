"""Which versions of a model are served: `latest`, `latest:N`, `all`, `specific:1,3`, with the words of Triton.

`latest` counts proven versions: one that is refused makes room for the next below it. `specific` has no such way out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bnfold.bundle.manifest import parse_version
from bnfold.errors import BnfoldError

_LATEST = re.compile(r"latest(?::([1-9][0-9]{0,5}))?")
_SPECIFIC = "specific:"


@dataclass(frozen=True)
class Policy:
    """text: as it was written. most: how many versions, None for no bound. named: these alone, newest first."""

    text: str
    most: int | None
    named: tuple[int, ...] | None = None

    def order(self, versions: Sequence[int]) -> tuple[int, ...]:
        """The versions to try, newest first; those of `specific` also when they are not in the repository."""
        return tuple(sorted(versions, reverse=True)) if self.named is None else self.named

    def has_enough(self, count: int) -> bool:
        """Whether so many proven versions are all that is asked for."""
        return self.most is not None and count >= self.most


def parse_policy(text: str) -> Policy:
    """Read a policy. Raises BnfoldError."""
    found = _LATEST.fullmatch(text)
    if found is not None:
        return Policy(text, int(found[1] or 1))
    if text == "all":
        return Policy(text, None)
    if text.startswith(_SPECIFIC):
        parts = text.removeprefix(_SPECIFIC).split(",")
        versions = {version for part in parts if (version := parse_version(part)) is not None}
        if len(versions) == len(parts):
            return Policy(text, None, tuple(sorted(versions, reverse=True)))
    raise BnfoldError(
        f"the version policy is {text!r:.80}; expected latest, latest:N, all or specific:1,3, each version once; "
        "correct it"
    )
