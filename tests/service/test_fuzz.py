"""The fuzzer of tests/fuzz: a bounded run of it, and what it sees when the server is broken."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from service_runs import PATIENCE, ROOT

sys.path.append(str(ROOT / "tests" / "fuzz"))

from fuzz_seeds import GRPC, all_seeds, form, hostile_requests, json_body, request, valid_requests
from fuzz_target import Target, Violation, open_target


def take(repository: Path, inputs: list[bytes]) -> Target:
    async def run() -> Target:
        async with open_target(repository) as target:
            for data in inputs:
                await target.take(data)
            return target

    return asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [[], ["--plain"]])
def test_a_bounded_run_finds_nothing(repository: Path, tmp_path: Path, guidance: list[str]):
    results = tmp_path / "results.json"
    command = [sys.executable, "tests/fuzz/fuzz_requests.py", "--runs", "20000", "--seconds", "10", *guidance]
    places = ["--repository", str(repository), "--results", str(results), "--found", str(tmp_path / "found")]
    ran = subprocess.run([*command, *places], cwd=ROOT, capture_output=True, text=True, timeout=2 * PATIENCE)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(results.read_text())
    assert found["runs"] > 100
    assert {"200", "400", "404"} <= found["statuses"].keys()
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["slowest"]


def test_valid_seeds_are_answered_and_hostile_ones_refused(repository: Path):
    valid = [*valid_requests(), form()]
    assert set(take(repository, valid).statuses) == {"100", "200"}
    refused = take(repository, list(hostile_requests())).statuses
    assert refused["200"] == 0
    assert refused["413"] >= 1
    messages = [seed for seed in all_seeds() if seed.startswith(GRPC)]
    assert set(take(repository, messages).statuses) == {"gRPC OK", "gRPC UNIMPLEMENTED"}


@pytest.mark.parametrize("door", ["short", "long", "gRPC"])
def test_it_sees_an_unforeseen_exception_behind_every_door(
    repository: Path, monkeypatch: pytest.MonkeyPatch, door: str
):
    def broken(*_: Any) -> None:
        raise KeyError("binary_data_size")

    monkeypatch.setattr("service.protocol.requests.read_inputs", broken)
    for module in ("service.http.rest", "service.rpc.messages"):
        monkeypatch.setattr(f"{module}.read_inputs", broken)
    data = {
        "short": request("/v2/models/digits/infer", json_body("digits")),
        "long": request("/v2/models/digits/infer", json_body("digits"), [(b"Content-Encoding", b"identity")]),
        "gRPC": next(seed for seed in all_seeds() if seed.startswith(GRPC)),
    }[door]
    with pytest.raises(Violation, match=r"500|INTERNAL"):
        take(repository, [data])


def test_it_sees_an_input_that_has_no_end(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fuzz_target.PATIENCE", 0.2)
    monkeypatch.setattr("service.queueing.batcher.Batcher.submit", lambda *_: None)
    with pytest.raises(Violation, match="no end"):
        take(repository, [request("/v2/models/digits/infer", json_body("digits"))])


def test_it_sees_memory_that_is_not_given_back(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("service.http.body.Budget.give_back", lambda *_: None)
    with pytest.raises(Violation, match="not given back"):
        take(repository, [request("/v2/models/digits/infer", json_body("digits"))])
