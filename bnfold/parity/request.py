"""What somebody asks of the suite, and the time that it may take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bnfold.samples import Samples


def _silent(_: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Request:
    """What the tiers are asked besides the bundle.

    problems: what was wrong with its files when they were read. samples: to decide on instead of the golden vectors.
    url: of a server that runs the bundle. seconds: a budget; the tiers that sample stop early when it is spent, never
    before everything was looked at once. say: told what is being done.
    """

    problems: tuple[str, ...] = ()
    samples: Samples | None = None
    url: str | None = None
    seconds: float = math.inf
    say: Callable[[str], None] = _silent
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds of the budget that are left; not below zero."""
        return max(0.0, self.seconds - (time.monotonic() - self.begun))
