from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from bnfold.errors import BnfoldError
from service.settings import Settings


def test_arguments_win_over_the_environment_and_that_over_defaults():
    environment = {"BNFOLD_PORT": "9000", "BNFOLD_HOST": "::1", "BNFOLD_REPOSITORY": "/srv/models", "PORT": "1"}
    settings = Settings.load(environment, port=9001, device=None)
    assert settings == Settings(repository=Path("/srv/models"), host="::1", port=9001)


def test_every_field_can_come_from_the_environment():
    plain = Settings()
    environment = {f"BNFOLD_{field.name.upper()}": str(getattr(plain, field.name)) for field in fields(Settings)}
    assert Settings.load(environment) == plain


@pytest.mark.parametrize(
    ("environment", "arguments", "named"),
    [
        ({"BNFOLD_PORT": "http"}, {}, "whole number"),
        ({"BNFOLD_REQUEST_TIMEOUT": "soon"}, {}, "BNFOLD_REQUEST_TIMEOUT"),
        ({"BNFOLD_REQUEST_TIMEOUT": "nan"}, {}, "a number from 0.001"),
        ({"BNFOLD_DEVICE": "gpu"}, {}, "auto, cpu or cuda"),
        ({}, {"port": 65536}, "0 to 65535"),
        ({}, {"port": True}, "0 to 65535"),
        ({}, {"max_batch_rows": 0}, "from 1"),
        ({}, {"host": ""}, "a host name"),
        ({}, {"max_queue_rows": 10}, "max_request_rows"),
        ({}, {"max_memory_bytes": 2048}, "max_body_bytes"),
        ({}, {"prot": 1}, "no setting 'prot'"),
    ],
)
def test_refuses_a_value_in_one_sentence(environment: dict[str, str], arguments: dict[str, object], named: str):
    with pytest.raises(BnfoldError) as refusal:
        Settings.load(environment, **arguments)
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_knows_whether_other_machines_can_reach_it(host: str, loopback: bool):
    assert Settings(host=host).is_loopback is loopback


def test_workers_are_the_cores_unless_said_otherwise():
    assert Settings().workers >= 1
    assert Settings(threads=3).workers == 3
