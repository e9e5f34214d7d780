"""A serving host installs no torch: nothing on the way from import to answer may load it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from service_runs import PATIENCE, ROOT

PROGRAM = """
import asyncio, json, sys
from pathlib import Path
import httpx
import service.app, service.processes.server
from service.settings import Settings

app = service.app.create_app(Settings(repository=Path(sys.argv[1]), device="auto", threads=1))

async def ask():
    async with app.router.lifespan_context(app), httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://x"
    ) as client:
        answer = await client.post("/predict", json={"instances": [[0.5] * 64]})
        assert answer.status_code == 200, answer.text
        assert (await client.get("/v2/models/digits/parity")).json()["served"]["gate"]["passed"]
        return answer.json()["predictions"][0]["label"]

label = asyncio.run(ask())
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "onnxscript", "sklearn", "matplotlib"})
print(json.dumps([label, heavy]))
"""


def test_answers_in_a_fresh_interpreter_without_loading_torch(digits_only: Path):
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(digits_only)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip().startswith('["digit ')
    assert ran.stdout.strip().endswith(", []]")


def test_answers_though_torch_cannot_be_imported(digits_only: Path):
    barred = 'import sys\nfor name in ("torch", "onnxscript", "sklearn", "matplotlib"):\n    sys.modules[name] = None\n'
    program = barred + PROGRAM.replace("heavy =", "heavy = []; _ =")
    ran = subprocess.run(
        [sys.executable, "-c", program, str(digits_only)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ran.returncode == 0, ran.stderr
