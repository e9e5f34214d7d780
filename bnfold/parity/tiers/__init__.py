"""The tiers that `bnfold verify` runs on a bundle, a file each: evidence and request in, verdict out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from bnfold.parity.evidence import Evidence
from bnfold.parity.report import TierResult
from bnfold.parity.request import Request
from bnfold.parity.tiers import decisions, hard, mutants, preflight, runtimes, sites, source, triangle, weights

Check: TypeAlias = Callable[[Evidence, Request], TierResult]

CHECKS: Mapping[str, tuple[str, Check]] = MappingProxyType(
    {
        "T0": ("files and preflight", preflight.check),
        "T1": ("weight certificate", weights.check),
        "T2": ("local bound", sites.check),
        "T3": ("oracle triangle", triangle.check),
        "T3h": ("hard inputs", hard.check),
        "T3b": ("reference", source.check),
        "T4": ("decisions", decisions.check),
        "T5": ("runtime matrix", runtimes.check),
        "T6": ("mutants", mutants.check),
    }
)
"""Short name of a tier, in the order of the suite: its title, and what runs it."""
