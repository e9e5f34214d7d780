"""docs/serving.md says what the server does: its examples are run, its tables compared."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator

import httpx
import pytest
from service_runs import PATIENCE, ROOT, Running, running

from service.settings import Settings

PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
ADDRESS = "127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture(scope="module")
def checkout() -> Iterator[Running]:
    """The server on the models of the checkout, as the document starts it."""
    with running(Settings(repository=ROOT / "models", device="cpu", port=0, threads=1)) as started:
        yield started


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.splitlines()])
def test_examples_for_curl_work(checkout: Running, line: str):
    ran = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line.replace(ADDRESS, checkout.address)}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "200" or "error" not in json.loads(ran.stdout)


def test_the_picture_of_a_five_is_one(checkout: Running):
    picture = (ROOT / "docs" / "digit-5.png").read_bytes()
    assert httpx.post(f"{checkout.url}/predict", content=picture).json()["predictions"][0]["label"] == "5"


def test_the_example_in_python_works(checkout: Running, capsys: pytest.CaptureFixture[str]):
    (program,) = blocks("python")
    space: dict[str, object] = {}
    exec(program.replace(ADDRESS, checkout.address), space)  # noqa: S102
    assert "[[" in capsys.readouterr().out
    space["client"].close()  # type: ignore[attr-defined]


def test_every_metric_is_documented(checkout: Running):
    page = httpx.get(f"{checkout.url}/metrics").text
    names = set(re.findall(r"^# TYPE (bnfold_\w+) ", page, re.M)) - set(
        re.findall(r"^# TYPE (bnfold_\w+_created) ", page, re.M)
    )
    described = PAGE.partition("## Metrics")[2]
    for name in names:
        assert f"`{name}" in described or f"`{name.removeprefix('bnfold_inference')}" in described, name
