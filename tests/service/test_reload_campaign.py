"""A small run of benchmarks/reload_campaign.py, and that its clients see what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from serving.checked_clients import Answer, is_right

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_a_small_campaign_loses_nothing_and_answers_everything_right():
    command = ["--requests", "600", "--reloads", "5", "--failures", "5", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "reload_campaign.py"), *command], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(done.stdout)["runs"]
    assert found["faults"] == []
    assert found["answered right"] >= 600
    assert (found["answered wrongly"], found["lost"], found["exit code"]) == (0, 0, 0)
    assert (found["reloads"], found["loads refused"], found["versions that answered"]) == (5, 5, 6)


def answer(row: np.ndarray, *, binary: bool, status: int = 200, version: str = "2", number: str = "3") -> Answer:
    output = {"name": "logits", "shape": [1, 4], "datatype": "FP32"}
    document = {"model_version": "2", "id": number, "outputs": [output if binary else {**output, "data": row.tolist()}]}
    head = orjson.dumps(document)
    headers = {"bnfold-model-version": version}
    if binary:
        return Answer(status, {**headers, "inference-header-content-length": str(len(head))}, head + row.tobytes())
    return Answer(status, headers, head)


def test_its_clients_know_a_right_answer_from_a_wrong_one():
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    for binary in (False, True):
        assert is_right(answer(rows[3], binary=binary), rows, 3, "logits")
        wrong = (
            (answer(rows[2], binary=binary), rows),
            (answer(rows[3] + np.float32(1e-3), binary=binary), rows),
            (answer(rows[3][:3], binary=binary), rows),
            (answer(rows[3] * np.float32(np.nan), binary=True), rows),
            (answer(rows[3], binary=binary, status=503), rows),
            (answer(rows[3], binary=binary, version="1"), rows),
            (answer(rows[3], binary=binary, number="2"), rows),
            (answer(rows[3], binary=binary), None),
        )
        assert not [each for each, expected in wrong if is_right(each, expected, 3, "logits")]
