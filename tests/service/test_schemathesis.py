"""schemathesis on the OpenAPI document, against a real server: no 500, and answers as the document says."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as bounded
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from service_runs import Running, running

from service.settings import Settings

CHECKS = [
    content_type_conformance, response_headers_conformance, response_schema_conformance, status_code_conformance,
]  # fmt: skip
MOST_CASES = 12  # of one operation, with names of strangers and with those of models
NAMES = {"model": "digits", "version": "1"}
BOUNDS = bounded(
    max_examples=MOST_CASES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="module")
def alone(digits_only: Path) -> Iterator[Running]:
    with running(Settings(repository=digits_only, device="cpu", port=0, threads=1)) as started:
        yield started


def document_of(server: Running) -> dict[str, Any]:
    return dict(httpx.get(f"{server.url}/openapi.json").json())


def try_everything(server: Running, document: dict[str, Any]) -> collections.Counter[int]:
    """Send what the document allows and what it does not; gives how often each status came."""
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=server.url)
    statuses: collections.Counter[int] = collections.Counter()
    for found in schema.get_all_operations():
        operation = found.ok()

        @BOUNDS
        @given(case=operation.as_strategy())
        def send(case: Any) -> None:
            for names in ({}, {name: NAMES[name] for name in case.path_parameters or {}}):
                case.path_parameters = {**(case.path_parameters or {}), **names}
                answer = case.call()
                statuses[answer.status_code] += 1
                assert answer.status_code != 500, (case.method, case.path, answer.text)
                case.validate_response(answer, checks=CHECKS)

        send()
    return statuses


def test_the_document_holds_for_whatever_is_sent(alone: Running):
    statuses = try_everything(alone, document_of(alone))
    assert {200, 400, 404, 501} <= statuses.keys()


@pytest.mark.parametrize("part", ["status", "shape"])
def test_a_document_that_is_wrong_is_found_out(alone: Running, part: str):
    document = document_of(alone)
    if part == "status":
        del document["paths"]["/v2/models/{model}"]["get"]["responses"]["404"]
    else:
        document["components"]["schemas"]["Error"]["properties"]["error"]["type"] = "integer"
    document["paths"] = {"/v2/models/{model}": document["paths"]["/v2/models/{model}"]}
    with pytest.raises((FailureGroup, AssertionError)):
        try_everything(alone, document)
