"""Write deploy/grafana-dashboard.json from the table of panels below, or say with --check whether it is up to date."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).resolve().parent.parent / "deploy" / "grafana-dashboard.json"

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH, _HEIGHT = 8, 8
_FULL = 24
_CHOSEN = 'job=~"$job",model=~"$model"'
_BY = "sum by (model, version)"
_RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """One picture. queries: expression and legend of each line; kind: of Grafana's panels."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    about: str = ""


def _rate(metric: str, by: str = _BY, legend: str = "{{model}}/{{version}}") -> tuple[str, str]:
    return f"{by} (rate(bnfold_inference_{metric}{{{_CHOSEN}}}{_RATE}))", legend


def _quantiles(metric: str, *quantiles: float) -> tuple[tuple[str, str], ...]:
    buckets = f"sum by (le, model) (rate(bnfold_inference_{metric}_bucket{{{_CHOSEN}}}{_RATE}))"
    return tuple((f"histogram_quantile({each}, {buckets})", f"{{{{model}}}} p{each * 100:g}") for each in quantiles)


def _now(metric: str, legend: str, labels: str = _CHOSEN) -> tuple[tuple[str, str]]:
    return ((f"bnfold_{metric}{{{labels}}}", legend),)


_FAILED = "request_failure_total"
_JOB = 'job=~"$job"'
_ANSWERED = f"sum by (model) (rate(bnfold_inference_request_success_total{{{_CHOSEN}}}{_RATE}))"
_BROKEN = f"sum by (model) (rate(bnfold_inference_{_FAILED}{{{_CHOSEN}}}{_RATE}))"

ROWS: dict[str, tuple[Panel, ...]] = {
    "Requests": (
        Panel("Answered", "reqps", (_rate("request_success_total"),)),
        Panel(
            "Failed, by reason",
            "reqps",
            ((f'sum by (reason) (rate(bnfold_inference_{_FAILED}{{job=~"$job"}}{_RATE}))', "{{reason}}"),),
            about="All models, and requests that named none that is here.",
        ),
        Panel("Share that failed", "percentunit", ((f"{_BROKEN} / ({_BROKEN} + {_ANSWERED})", "{{model}}"),)),
    ),
    "Latency by stage": (
        Panel("Request", "s", _quantiles("request_duration_seconds", 0.5, 0.95, 0.99)),
        Panel("Wait in the queue", "s", _quantiles("queue_duration_seconds", 0.5, 0.95, 0.99)),
        Panel("Call of the runtime", "s", _quantiles("compute_infer_duration_seconds", 0.5, 0.95, 0.99)),
        Panel("Putting inputs together", "s", _quantiles("compute_input_duration_seconds", 0.5, 0.99)),
        Panel("Taking outputs apart", "s", _quantiles("compute_output_duration_seconds", 0.5, 0.99)),
        Panel("Connections", "short", _now("connections", "worker {{worker}}", _JOB)),
    ),
    "Batches and queue": (
        Panel("Rows", "rowsps", (_rate("count_total"),)),
        Panel("Calls of the runtime", "ops", (_rate("exec_count_total"),)),
        Panel(
            "Rows in a batch",
            "short",
            (
                *_quantiles("batch_rows", 0.5, 0.99),
                (f"{_rate('batch_rows_sum', 'sum by (model)')[0]} / {_rate('batch_rows_count', 'sum by (model)')[0]}",
                 "{{model}} mean"),
            ),
        ),
        Panel("Rows that wait", "short", _now("inference_pending_rows", "{{model}}/{{version}}")),
        Panel("Requests that wait", "short", _now("inference_pending_requests", "{{model}}/{{version}}")),
    ),
    "Models": (
        Panel("Ready", "short", _now("model_ready", "{{model}}"), "stat", "1: every worker serves a proven version."),
        Panel("Older version served", "short", _now("model_fallback", "{{model}}"), "stat"),
        Panel(
            "Loads",
            "short",
            ((f"sum by (model, outcome) (increase(bnfold_model_loads_total{{{_CHOSEN}}}{_RATE}))",
              "{{model}} {{outcome}}"),),
            about="Each worker counts its own loads.",
        ),
        Panel(
            "Served, on which provider",
            "short",
            _now("model_info", "{{model}}/{{version}} {{provider}} {{digest}}"),
            "table",
        ),
        Panel("Refused by the load gate", "short", _now("model_refused", "{{model}}/{{version}} {{reason}}"), "table"),
    ),
    "Workers": (
        Panel("Answering", "short", _now("worker_up", "worker {{worker}}", _JOB), "stat"),
        Panel(
            "Restarts",
            "short",
            (
                (f"increase(bnfold_worker_restarts_total{{{_JOB}}}{_RATE})", "worker {{worker}}"),
                (f"increase(bnfold_worker_hangs_total{{{_JOB}}}{_RATE})", "worker {{worker}} hung"),
            ),
        ),
        Panel(
            "Processor",
            "short",
            ((f"rate(bnfold_worker_cpu_seconds_total{{{_JOB}}}{_RATE})", "worker {{worker}}"),),
            about="Cores in use.",
        ),
        Panel("Memory", "bytes", _now("worker_memory_bytes", "worker {{worker}}", _JOB)),
        Panel("Version", "short", _now("build_info", "bnfold {{version}}, onnxruntime {{onnxruntime}}", _JOB), "table"),
    ),
}  # fmt: skip


def render() -> str:
    """The whole file."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        where = {"h": 1, "w": _FULL, "x": 0, "y": top}
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": where})
        for at, panel in enumerate(row):
            x, y = at * _WIDTH % _FULL, top + 1 + at * _WIDTH // _FULL * _HEIGHT
            place = {"h": _HEIGHT, "w": _WIDTH, "x": x, "y": y}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_describe(panel)})
        top += 1 + -(-len(row) * _WIDTH // _FULL) * _HEIGHT
    return json.dumps(_document(panels), indent=1) + "\n"


def _describe(panel: Panel) -> dict[str, Any]:
    is_table = panel.kind == "table"
    found: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "datasource": _SOURCE,
                "expr": expression,
                "legendFormat": legend,
                "instant": is_table,
                "range": not is_table,
                "format": "table" if is_table else "time_series",
            }
            for at, (expression, legend) in enumerate(panel.queries)
        ],
    }
    if is_table:
        hidden = dict.fromkeys(("Time", "Value", "__name__", "instance", "job"), True)
        found["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return found


def _document(panels: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "uid": "bnfold-serving",
        "title": "bnfold: the prediction service",
        "tags": ["bnfold", "inference"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                _variable("job", "label_values(bnfold_build_info, job)"),
                _variable("model", 'label_values(bnfold_model_ready{job=~"$job"}, model)'),
            ]
        },
        "panels": panels,
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def main() -> int:
    """Write the file, or compare it."""
    if "--check" in sys.argv[1:]:
        current = DASHBOARD.read_text(encoding="utf-8") == render()
        print("up to date" if current else f"{DASHBOARD} is not what scripts/write_dashboard.py writes; run it")
        return 0 if current else 1
    DASHBOARD.write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
