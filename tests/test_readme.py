"""The README's commands run as they stand, one after the other, in a folder like a checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from chosen_ports import choose_port

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

BLOCK = re.compile(
    r"(?:<!-- test: (?P<how>[a-z ]+) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60


def blocks() -> list[tuple[str | None, str, str]]:
    return [(match["how"], match["language"], match["code"]) for match in BLOCK.finditer(README)]


def test_every_block_of_commands_says_how_it_is_tested():
    marked = [how for how, language, _ in blocks() if language in ("sh", "python")]
    assert len(marked) >= 8
    assert set(marked) == {"run", "background"}


def test_first_screen_names_both_commands_with_their_output():
    consoles = [code for _, language, code in blocks() if language == "console"]
    assert [code.split("\n", 1)[0] for code in consoles] == ["$ make demo", "$ make test"]
    demo, test = consoles
    assert "top-1 agreement" in demo
    assert test.count("passed in") == 2
    assert "failed" not in test
    assert not re.search(r"\d+ (passed|files|source files)", test), "a count that is another one tomorrow"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_every_link_leads_somewhere(target):
    assert target.startswith("https://") or (ROOT / target).exists()


def test_map_of_the_code_names_what_is_there():
    (code,) = (code for _, language, code in blocks() if "the toolkit" in code)
    for name in ("folding", "export", "parity", "training", "build.py", "commands", "cli.py"):
        assert name in code
        assert (ROOT / "bnfold" / name).exists()
    for name in ("bnfold", "service", "models", "tests", "scripts", "benchmarks", "docs"):
        assert f"{name}/" in code
        assert (ROOT / name).is_dir()


@pytest.mark.slow
def test_commands_run_as_they_stand(tmp_path):
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("mine"))
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "digit-5.png", tmp_path / "docs")
    port = str(choose_port())
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    outputs, background = [], []
    try:
        for how, language, code in blocks():
            if how is None:
                continue
            code = code.replace("8000", port)
            if how == "background":
                background.append(subprocess.Popen(code.split(), cwd=tmp_path, env=environment))
                wait_until_ready(port, background[-1])
                continue
            command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
            ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert ran.returncode == 0, f"{code}\n{ran.stdout}\n{ran.stderr}"
            assert ran.stdout.strip()
            outputs.append(ran.stdout)
        for process in background:
            process.terminate()
            assert process.wait(STOP_TIMEOUT_S) == 0
    finally:
        for process in background:
            process.kill()
            process.wait()
    assert len(background) == 1
    assert sum('label "5"' in output for output in outputs) == 2
    assert any("parity holds" in output for output in outputs)
    assert any(output.rstrip().endswith("models/mine/1") for output in outputs)


def wait_until_ready(port: str, process: subprocess.Popen[bytes]) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with opener.open(f"http://127.0.0.1:{port}/v2", timeout=5) as answer:
                assert json.load(answer)["name"]
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    pytest.fail(f"the server is not ready (exit code {process.poll()})")
