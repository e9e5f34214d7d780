"""What is counted, and what becomes of it: several processes, a worker that is killed, versions that come and go."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from service_runs import PATIENCE, ROOT

import service
from service.errors import Fault
from service.telemetry.cells import RESTARTS, Shelf
from service.telemetry.meter import OTHER, REASONS, ROWS, SECONDS, Meter
from service.telemetry.metrics import Metrics
from service.telemetry.stats import describe


def samples(metrics: Metrics, name: str, **labels: str) -> list[float]:
    families = text_string_to_metric_families(metrics.page().decode())
    return [
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]


def kinds(kind: type[Fault]) -> set[type[Fault]]:
    return {kind}.union(*(kinds(each) for each in kind.__subclasses__()))


def test_every_fault_has_a_reason_of_its_own_in_the_metrics():
    for module in pkgutil.walk_packages(service.__path__, "service."):
        importlib.import_module(module.name)
    assert {kind.reason for kind in kinds(Fault)} <= set(REASONS)
    assert len(set(REASONS)) == len(REASONS) <= 32


def test_a_reason_that_nobody_foresaw_is_counted_as_another():
    metrics = Metrics()
    metrics.meter("m", "1").count_failure("never heard of")
    assert samples(metrics, "bnfold_inference_request_failure_total") == [1]
    assert samples(metrics, "bnfold_inference_request_failure_total", reason=OTHER, model="m") == [1]


def test_the_histograms_are_cumulated_and_end_with_everything():
    metrics = Metrics()
    meter = metrics.meter("m", "1")
    for seconds in (0.0, 0.0001, 0.00011, 0.3, 10.0, 10.1, 1e6):
        meter.count_answer(seconds, 0.0)
    name = "bnfold_inference_request_duration_seconds"
    assert [samples(metrics, f"{name}_bucket", le=le)[0] for le in ("0.0001", "0.00025", "0.25", "0.5", "10.0")] == [
        2, 3, 3, 4, 5,
    ]  # fmt: skip
    assert samples(metrics, f"{name}_bucket", le="+Inf") == samples(metrics, f"{name}_count") == [7]
    assert samples(metrics, f"{name}_sum")[0] == pytest.approx(1000020.40021)
    buckets = samples(metrics, f"{name}_bucket")
    assert buckets == sorted(buckets)
    assert len(buckets) == len(SECONDS) + 1


def test_statistics_are_those_of_triton():
    metrics = Metrics(largest_batch=8)
    meter = metrics.meter("m", "3")
    meter.count_batch(3, 0.001, 0.010, 0.002, 2)  # two requests with three rows between them
    meter.count_batch(3, 0.001, 0.020, 0.002, 1)
    meter.count_batch(1, 0.0, 0.005, 0.0)
    meter.count_batch(9, 0.5, 0.5, 0.5)  # more rows than are told apart
    for seconds, queued in ((0.02, 0.001), (0.03, 0.002), (0.04, 0.003)):
        meter.count_answer(seconds, queued)
    meter.count_failure("expired", 0.25)
    found = describe(meter, "m", "3")
    assert (found["name"], found["version"]) == ("m", "3")
    assert found["last_inference"] > 1.7e12  # milliseconds since 1970
    assert (found["inference_count"], found["execution_count"]) == (16, 4)
    assert found["inference_stats"] == {
        "success": {"count": 3, "ns": 90_000_000},
        "fail": {"count": 1, "ns": 250_000_000},
        "queue": {"count": 3, "ns": 6_000_000},
        "compute_input": {"count": 5, "ns": 503_000_000},
        "compute_infer": {"count": 5, "ns": 545_000_000},
        "compute_output": {"count": 5, "ns": 506_000_000},
        "cache_hit": {"count": 0, "ns": 0},
        "cache_miss": {"count": 0, "ns": 0},
    }
    assert found["batch_stats"] == [
        {
            "batch_size": 1,
            "compute_input": {"count": 1, "ns": 0},
            "compute_infer": {"count": 1, "ns": 5_000_000},
            "compute_output": {"count": 1, "ns": 0},
        },
        {
            "batch_size": 3,
            "compute_input": {"count": 2, "ns": 2_000_000},
            "compute_infer": {"count": 2, "ns": 30_000_000},
            "compute_output": {"count": 2, "ns": 4_000_000},
        },
    ]
    assert samples(metrics, "bnfold_inference_batch_rows_bucket", le="2.0") == [1]
    assert samples(metrics, "bnfold_inference_batch_rows_bucket", le="4.0") == [3]
    assert samples(metrics, "bnfold_inference_batch_rows_bucket", le="+Inf") == [4]
    assert samples(metrics, "bnfold_inference_batch_rows_sum") == [16]
    assert samples(metrics, "bnfold_inference_compute_infer_duration_seconds_sum")[0] == pytest.approx(0.535)
    assert samples(metrics, "bnfold_inference_compute_infer_duration_seconds_count") == [4]
    assert list(ROWS) == sorted(ROWS)


def test_what_a_dropped_version_held_is_freed_and_the_others_stay():
    metrics = Metrics()
    for version in ("1", "2"):
        metrics.meter("m", version).count_answer(0.1, 0)
        metrics.show_pending("m", version, lambda: 1)
        metrics.show_served("m", version, "P", "d")
        metrics.show_refused("m", version, "why")
    metrics.forget("m", "1")
    page = metrics.page().decode()
    assert 'version="1"' not in page
    assert 'version="2"' in page
    for at in range(2000):  # versions that come and go leave nothing
        metrics.meter("m", str(at + 10)).count_answer(0.1, 0)
        metrics.forget("m", str(at + 10))
    assert metrics.page().decode().count('version="') == page.count('version="')
    metrics.forget("m", "2")
    metrics.forget("m", "2")  # once too often does no harm
    assert 'model="m"' not in metrics.page().decode()


def test_a_version_that_is_loaded_again_keeps_its_counts_while_the_old_one_drains():
    metrics = Metrics()
    old = metrics.meter("m", "1")
    old.count_answer(0.1, 0)
    new = metrics.meter("m", "1")
    metrics.forget("m", "1")  # the old one has drained
    new.count_answer(0.1, 0)
    assert samples(metrics, "bnfold_inference_request_success_total") == [2]


def crew(folder: Path, count: int) -> list[Metrics]:
    return [Metrics(folder, worker=number, workers=count) for number in range(count)]


def test_counts_of_several_workers_are_added_up_whichever_is_asked(tmp_path: Path):
    workers = crew(tmp_path, 3)
    for number, metrics in enumerate(workers):
        meter = metrics.meter("m", "1")
        for _ in range(number + 1):
            meter.count_answer(0.01, 0.001)
            meter.count_batch(2, 0, 0.01, 0)
        metrics.count_stray("unknown_model")
        metrics.count_load("m", "success")
    Shelf(tmp_path, -1).open(RESTARTS, 4)[2] += 5
    for metrics in workers:
        assert samples(metrics, "bnfold_inference_request_success_total") == [6]
        assert samples(metrics, "bnfold_inference_count_total") == [12]
        assert samples(metrics, "bnfold_inference_request_failure_total") == [3]
        assert samples(metrics, "bnfold_model_loads_total", outcome="success") == [3]
        assert samples(metrics, "bnfold_worker_restarts_total") == [0, 5, 0]
        assert describe(metrics.meter("m", "1"), "m", "1")["inference_stats"]["success"]["count"] == 6


def test_gauges_of_workers_are_added_up_and_ready_means_all(tmp_path: Path):
    first, second, away = crew(tmp_path, 3)
    for metrics, rows, ready in ((first, 3, True), (second, 4, False), (away, 100, True)):
        metrics.show_pending("m", "1", lambda rows=rows: rows, lambda: 1)
        metrics.show_model("m", ready=ready, fallback=not ready)
        metrics.show_connections(lambda rows=rows: rows)
    page = first.page([second.gauges()]).decode()
    assert 'bnfold_inference_pending_rows{model="m",version="1"} 7.0' in page
    assert 'bnfold_inference_pending_requests{model="m",version="1"} 2.0' in page
    assert 'bnfold_model_ready{model="m"} 0.0' in page
    assert 'bnfold_model_fallback{model="m"} 1.0' in page
    assert 'bnfold_connections{worker="1"} 4.0' in page
    assert 'bnfold_worker_up{worker="1"} 1.0' in page
    assert 'bnfold_worker_up{worker="2"} 0.0' in page


_COUNTING = """
import os, sys
from pathlib import Path
from service.telemetry.metrics import Metrics
meter = Metrics(Path(sys.argv[1]), worker=1, workers=2).meter("m", "1")
for _ in range(1000):
    meter.count_answer(0.01, 0.0)
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_worker_counted_stays_and_its_successor_goes_on(tmp_path: Path):
    here = Metrics(tmp_path, worker=0, workers=2)
    here.meter("m", "1").count_answer(0.01, 0.0)
    for lives in (1, 2):
        done = subprocess.run(
            [sys.executable, "-c", _COUNTING, str(tmp_path)], cwd=ROOT, timeout=PATIENCE, capture_output=True, text=True
        )
        assert done.returncode == -9, done.stderr
        assert samples(here, "bnfold_inference_request_success_total") == [1 + 1000 * lives]


def test_a_version_is_shown_until_the_last_worker_has_dropped_it_and_leaves_no_file(tmp_path: Path):
    first, second = crew(tmp_path, 2)
    for metrics in (first, second):
        metrics.meter("m", "1").count_answer(0.01, 0.0)
    first.forget("m", "1")
    for metrics in (first, second):
        assert samples(metrics, "bnfold_inference_request_success_total") == [2]
    second.forget("m", "1")
    for metrics in (first, second):
        assert samples(metrics, "bnfold_inference_request_success_total") == []
        metrics.meter("m", "2")
        metrics.forget("m", "2")  # each worker clears up after itself when something changes
    assert [path.name for path in tmp_path.rglob("meter=m=*")] == []


def test_a_worker_that_comes_back_without_a_version_does_not_show_it(tmp_path: Path):
    Metrics(tmp_path, worker=1, workers=2).meter("gone", "1").count_answer(0.01, 0.0)
    here = Metrics(tmp_path, worker=0, workers=2)
    assert samples(here, "bnfold_inference_request_success_total") == [1]
    Metrics(tmp_path, worker=1, workers=2)
    assert samples(here, "bnfold_inference_request_success_total") == []


def test_counts_stay_in_memory_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    here = Metrics(tmp_path, worker=0, workers=2)

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    meter = here.meter("m", "1")
    monkeypatch.undo()
    meter.count_answer(0.01, 0.0)
    assert "No space left on device" in caplog.text
    assert samples(here, "bnfold_inference_request_success_total") == [1]
    here.forget("m", "1")
    assert samples(here, "bnfold_inference_request_success_total") == []


def test_strange_files_among_the_counts_do_no_harm(tmp_path: Path):
    here = Metrics(tmp_path, worker=0, workers=2)
    here.meter("m", "1").count_answer(0.01, 0.0)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "meter=m=1").write_bytes(b"\x01" * 20)  # another size, cut short
    (tmp_path / "1" / "meter=x=1").write_bytes(b"")
    assert samples(here, "bnfold_inference_request_success_total") == [1]


def test_a_meter_without_a_name_of_a_model_shows_failures_only():
    metrics = Metrics()
    metrics.count_stray("unknown_model")
    assert samples(metrics, "bnfold_inference_request_failure_total", model="", reason="unknown_model") == [1]
    assert samples(metrics, "bnfold_inference_request_success_total") == []
    assert isinstance(metrics.meter("m", "1"), Meter)
