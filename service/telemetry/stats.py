"""Triton's statistics, as its extension of the protocol has them: counts and nanoseconds, summed over the workers.

A request that shares a batch is given the whole time of that batch, as Triton does, so `compute_infer.ns` may be more
than the time that went by. Nothing is cached here: `cache_hit` and `cache_miss` are zero.
Source: the statistics extension of the Triton inference server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.telemetry.meter import STAGES, Meter, Totals


def describe(meter: Meter, name: str, version: str) -> dict[str, Any]:
    """The statistics of one version, JSON-ready: one entry of `model_stats`."""
    totals = meter.totals()
    return {
        "name": name,
        "version": version,
        "last_inference": int(totals.last),
        "inference_count": int(totals.rows),
        "execution_count": int(totals.executions),
        "inference_stats": {
            "success": _duration(totals.success, totals.success_seconds),
            "fail": _duration(sum(totals.failures.values()), totals.failure_seconds),
            "queue": _duration(totals.success, totals.queue_seconds),
            **_stages(totals.computed, totals.compute_seconds),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "batch_stats": _batches(totals),
    }


def _batches(totals: Totals) -> list[dict[str, Any]]:
    return [{"batch_size": size.rows, **_stages(size.executions, size.seconds)} for size in totals.sizes]


def _stages(count: float, seconds: Sequence[float]) -> dict[str, Any]:
    return {f"compute_{stage}": _duration(count, spent) for stage, spent in zip(STAGES, seconds, strict=True)}


def _duration(count: float, seconds: float) -> dict[str, int]:
    return {"count": int(count), "ns": round(seconds * 1e9)}
