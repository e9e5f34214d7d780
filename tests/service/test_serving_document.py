"""The documents say what the server does: their examples are run, their tables compared."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from service_runs import PATIENCE, ROOT, Running, running

from service.settings import Settings

ADDRESS = "127.0.0.1:8000"
KEY = "an-admin-key-of-the-examples"


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    text = page("serving") + page("protocol")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The server on the models of the checkout, as the documents start it."""
    keys = tmp_path_factory.mktemp("keys") / "admin"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o600)
    settings = Settings(repository=ROOT / "models", device="cpu", port=0, threads=1, admin_key_file=keys)
    with running(settings) as started:
        yield started


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.splitlines()])
def test_examples_for_curl_work(checkout: Running, line: str):
    ran = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line.replace(ADDRESS, checkout.address)}"],
        cwd=ROOT,
        env={**os.environ, "KEY": KEY},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "200" or "error" not in json.loads(ran.stdout)


def test_the_picture_of_a_five_is_one(checkout: Running):
    picture = (ROOT / "docs" / "digit-5.png").read_bytes()
    assert httpx.post(f"{checkout.url}/predict", content=picture).json()["predictions"][0]["label"] == "5"


@pytest.mark.parametrize("program", blocks("python"))
def test_examples_in_python_work(
    checkout: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, program: str
):
    monkeypatch.chdir(ROOT)
    space: dict[str, Any] = {}
    exec(program.replace(ADDRESS, checkout.address), space)  # noqa: S102
    assert capsys.readouterr().out
    space["client"].close()


def test_every_metric_is_documented(checkout: Running):
    shown = httpx.get(f"{checkout.url}/metrics").text
    names = set(re.findall(r"^# TYPE (bnfold_\w+) ", shown, re.M)) - set(
        re.findall(r"^# TYPE (bnfold_\w+_created) ", shown, re.M)
    )
    described = page("monitoring")
    for name in names:
        stages = [re.sub(r"compute_(input|infer|output)", "compute_{input,infer,output}", name)]
        short = [each.removeprefix(prefix) for each in (name, *stages) for prefix in ("bnfold_inference", "bnfold")]
        assert any(f"`{each}" in described for each in (name, *stages, *short)), name
