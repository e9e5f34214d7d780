"""A span of time as a person reads it."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """As in 1 h 5 min, 3 min 20 s or 8 s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
