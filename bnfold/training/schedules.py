"""The learning rate over the steps of a training, as a factor of the largest."""

from __future__ import annotations

import math


def one_cycle(step: int, steps: int) -> float:
    """Linearly up over the first fifth of the steps, then linearly down to zero."""
    peak = max(1, steps // 5)
    return (step + 1) / peak if step < peak else max(0.0, (steps - step) / max(1, steps - peak))


def cosine(step: int, steps: int) -> float:
    """Half a cosine from 1 down to zero."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def constant(step: int, steps: int) -> float:  # noqa: ARG001 (one signature for all)
    """Always 1."""
    return 1.0


SCHEDULES = {"one_cycle": one_cycle, "cosine": cosine, "constant": constant}
