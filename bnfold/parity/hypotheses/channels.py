"""Which channels of a tensor are wrong, in a few words."""

from __future__ import annotations

from collections.abc import Sequence

_NAMED = 4


def shown(channels: Sequence[int]) -> str:
    """A few channels by number, the rest counted: "3, 7 and 12 more"; runs as "0 to 63"."""
    found = list(channels)
    if len(found) == 1:
        return str(found[0])
    if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
        return f"{found[0]} to {found[-1]}"
    if len(found) <= _NAMED:
        return ", ".join(map(str, found[:-1])) + f" and {found[-1]}"
    return f"{', '.join(map(str, found[: _NAMED - 1]))} and {len(found) - _NAMED + 1} more"
