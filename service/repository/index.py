"""The repository index: every version that is known of, with Triton's words for its state.

Source: the model repository extension of the Triton inference server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from service.repository.catalogue import Repository
from service.repository.entries import Entry

READY, UNAVAILABLE, LOADING, UNLOADING = "READY", "UNAVAILABLE", "LOADING", "UNLOADING"


@dataclass(frozen=True, eq=False)
class Listing:
    """What the index is made of. on_disk: versions by model. leaving: (name, version) that drain."""

    repository: Repository
    on_disk: Mapping[str, Iterable[int]]
    loading: frozenset[str]
    leaving: Iterable[tuple[str, str]]

    def states(self, name: str) -> dict[str, tuple[str, str]]:
        """By version: its state, and the reason for it."""
        entry = self.repository.entries.get(name) or self.repository.asides.get(name)
        loading = name in self.loading
        away = (LOADING, "is being loaded") if loading else (UNAVAILABLE, _absence(entry))
        found = {str(version): away for version in self.on_disk.get(name, ())}
        if entry is not None:
            unasked = (UNAVAILABLE, "the version policy does not ask for it")
            found.update(dict.fromkeys(entry.older, away if loading or entry.unloaded else unasked))
            for refusal in entry.refused:
                found[refusal.version] = (LOADING if loading else UNAVAILABLE, " ".join(refusal.reasons))
        for model, version in self.leaving:
            if model == name:
                found[version] = (UNLOADING, "its last requests are being answered")
        for version in () if entry is None else entry.engines:
            refused = entry.find_refusal(version) if entry else None
            newer = "" if refused is None else f"as it was before its files changed: {' '.join(refused.reasons)}"
            found[version] = (READY, newer)
        return found


def list_index(listing: Listing, *, ready: bool) -> list[dict[str, Any]]:
    """Entries with name, version, state and reason, by name and version. ready: those alone that are in service."""
    names = {*listing.on_disk, *listing.repository.entries, *listing.repository.asides, *listing.loading}
    return [
        {"name": name, "version": version, "state": state, "reason": reason}
        for name in sorted(names)
        for version, (state, reason) in sorted(listing.states(name).items(), key=lambda item: int(item[0]))
        if state == READY or not ready
    ]


def _absence(entry: Entry | None) -> str:
    return "unloaded" if entry is not None and entry.unloaded else "not loaded"
