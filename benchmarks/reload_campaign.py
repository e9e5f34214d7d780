"""Ten thousand requests during 50 reloads, 10 loads that fail and a SIGTERM at the end: is one lost or wrong?

    python benchmarks/reload_campaign.py

Serves models/digits-cnn/1 and a sibling of it with another last layer, published in turn as version 1, 2, 3, ... by
`bnfold serve` in a process of its own, with one worker and with two. Clients ask without a pause, in JSON and in
binary, and compare every answer with that of the version in its header (benchmarks/serving/checked_clients.py). Loads
that must fail are of bundles damaged in five ways. At the end the server gets SIGTERM under full load, while it loads.
Exits with 1 when a request was lost or answered wrongly, or anything else was not as it should be. Writes
benchmarks/results/reload_campaign.json; other options than the defaults only print.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from serving.checked_clients import Array, Clients, write_request
from serving.machine import commit, describe

import bnfold
from bnfold.runtime import open_session, run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "reload_campaign.json"
ORIGINAL = ROOT / "models" / "digits-cnn" / "1"
MODEL, INPUT, OUTPUT = "digits", "input", "logits"
KEY = "the-admin-key-of-the-campaign"
SAMPLES, CLIENTS = 32, 8
FAULTS = ("changed tensor, mended hash", "wrong hash", "missing file", "link", "damaged manifest")
PATIENCE = 120.0


@dataclass
class Shelf:
    """The repository and what to put into it. kinds: two built bundles. rows: what each answers to the samples."""

    models: Path
    kinds: tuple[Path, Path]
    rows: tuple[Array, Array]
    expected: dict[str, Array] = field(default_factory=dict)

    def publish(self, version: int) -> None:
        """The next version, whole at once; the two kinds take turns. The one before the last goes."""
        self.expected[str(version)] = self.rows[version % 2]
        self._put(self.kinds[version % 2], version)
        shutil.rmtree(self.models / MODEL / str(version - 2), ignore_errors=True)

    def publish_broken(self, version: int, fault: str) -> None:
        """A version that must be refused."""
        folder = self._put(self.kinds[version % 2], version)
        break_bundle(folder, fault)

    def remove(self, version: int) -> None:
        """Take a version away."""
        shutil.rmtree(self.models / MODEL / str(version))

    def _put(self, source: Path, version: int) -> Path:
        target = self.models / MODEL / str(version)
        writing = target.with_name(f".writing-{version}")
        shutil.copytree(source, writing)
        return writing.rename(target)


def break_bundle(folder: Path, fault: str) -> None:
    """Damage a bundle in one of the ways of FAULTS."""
    model = folder / "model.onnx"
    if fault == "link":
        model.unlink()
        model.symlink_to(ORIGINAL / "model.onnx")
    elif fault == "missing file":
        (folder / "fold.json").unlink()
    elif fault == "damaged manifest":
        (folder / "manifest.json").write_text("{")
    else:
        graph = onnx.load(model)
        tensor = next(each for each in graph.graph.initializer if len(each.dims) > 1)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
        onnx.save(graph, model)
        if fault != "wrong hash":
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest["files"]["model.onnx"] = hashlib.sha256(model.read_bytes()).hexdigest()
            (folder / "manifest.json").write_text(json.dumps(manifest))


def make_shelf(folder: Path, samples: Array) -> Shelf:
    """Both kinds, built and run once; version 1 is published."""
    graph = onnx.load(ORIGINAL / "reference.onnx")
    tensor = [each for each in graph.graph.initializer if len(each.dims) == 2][-1]
    weight = numpy_helper.to_array(tensor)
    noise = np.random.default_rng(1).normal(size=weight.shape).astype(weight.dtype) * weight.std()
    tensor.CopyFrom(numpy_helper.from_array(weight + noise, tensor.name))
    onnx.save(graph, folder / "sibling.onnx")
    bnfold.build_bundle(folder / "sibling.onnx", folder / "sibling" / "1", output_kind="logits")
    kinds = ORIGINAL, folder / "sibling" / "1"
    rows = tuple(run(open_session(kind / "model.onnx", optimise=True), {INPUT: samples})[OUTPUT] for kind in kinds)
    if np.abs(rows[0] - rows[1]).max(axis=1).min() < 1e-2:
        raise SystemExit("the two kinds of the model answer too much alike to be told apart")
    (folder / "models" / MODEL).mkdir(parents=True)
    shelf = Shelf(folder / "models", kinds, (rows[0], rows[1]))
    shelf.publish(1)
    return shelf


@contextlib.contextmanager
def server(shelf: Shelf, folder: Path, workers: int) -> Iterator[tuple[subprocess.Popen[bytes], Path, int]]:
    """`bnfold serve` on a free port of the loopback: the process, its log, the port. It is dead at the end."""
    key, log = folder / "admin.key", folder / "server.log"
    key.touch(0o600)
    key.write_text(f"{KEY}\n")
    command = [sys.executable, "-m", "bnfold", "serve", str(shelf.models), "--port", "0", "--device", "cpu"]
    command += ["--workers", str(workers), "--admin-key-file", str(key), "--state-dir", str(folder / "state")]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream, env=dict(os.environ))
    try:
        wait(lambda: "serving on http" in log.read_text() or process.poll() is not None)
        found = re.search(r"serving on http://127\.0\.0\.1:(\d+)", log.read_text())
        if found is None:
            raise SystemExit(f"the server did not start:\n{log.read_text()}")
        yield process, log, int(found[1])
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE)


def wait(holds: Any) -> None:
    """Until it holds."""
    until = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > until:
            raise SystemExit("the campaign waited in vain")
        time.sleep(0.005)


def ask(port: int, path: str) -> tuple[int, str]:
    """POST with the admin key: status and body; status 0 where the connection ended."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data=b"", headers={"Authorization": f"Bearer {KEY}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as problem:
        with problem:
            return problem.code, problem.read().decode()
    except (OSError, EOFError):
        return 0, ""


@dataclass
class Operator:
    """Publishes and loads, one step after another, spread evenly over the requests."""

    shelf: Shelf
    port: int
    version: int = 1
    seconds: list[float] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    failures: int = 0

    def reload(self) -> None:
        """A new version, which must be served."""
        self.version += 1
        self.shelf.publish(self.version)
        status, text = self._load()
        if status != 200:
            self.complaints.append(f"the load of version {self.version} gave {status}: {text}")

    def fail(self) -> None:
        """A broken version, which must be refused while the last good one is served."""
        fault = FAULTS[self.failures % len(FAULTS)]
        self.failures += 1
        self.shelf.publish_broken(self.version + 1, fault)
        status, text = self._load()
        self.shelf.remove(self.version + 1)
        if status != 400 or f"version {self.version} is served" not in text:
            self.complaints.append(f"the load of a version with {fault} gave {status}: {text}")

    def _load(self) -> tuple[int, str]:
        started = time.perf_counter()
        found = ask(self.port, f"/v2/repository/models/{MODEL}/load")
        self.seconds.append(time.perf_counter() - started)
        return found


def plan(reloads: int, failures: int) -> list[bool]:
    """Which steps are reloads (True) and which fail, evenly mixed."""
    steps = [(at / max(reloads, 1), True) for at in range(reloads)]
    steps += [((at + 0.5) / max(failures, 1), False) for at in range(failures)]
    return [kind for _, kind in sorted(steps)]


def campaign(workers: int, requests: int, reloads: int, failures: int) -> dict[str, Any]:
    """One run; `faults` of what comes back is empty when all is well."""
    samples = np.random.default_rng(0).uniform(0, 1, (SAMPLES, 1, 8, 8)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shelf = make_shelf(folder, samples)
        with server(shelf, folder, workers) as (process, log, port):
            path = f"/v2/models/{MODEL}/infer"
            bodies = [write_request(path, sample, number, INPUT) for number, sample in enumerate(samples)]
            clients = Clients(("127.0.0.1", port), bodies, shelf.expected, OUTPUT)
            operator, started = Operator(shelf, port), time.perf_counter()
            with clients.pounding(CLIENTS):
                steps = plan(reloads, failures)
                memory = []
                for number, good in enumerate(steps, start=1):
                    wait_for(clients, requests * number // (len(steps) + 1))
                    operator.reload() if good else operator.fail()
                    memory.append(resident(process.pid))
                wait_for(clients, requests)
                last = stop(process, clients, port)
            seconds = time.perf_counter() - started
            text = log.read_text()
    end = {"exit code": process.returncode, "last load": last, "log": text, "memory": memory}
    return judge(workers, clients, operator, end, seconds)


def wait_for(clients: Clients, count: int) -> None:
    """Until so many requests are answered right, or something has gone wrong, and waiting on makes no sense."""
    tally = clients.tally
    wait(lambda: tally.right >= count or tally.lost or tally.wrong)


def resident(pid: int) -> float:
    """MiB in memory of a process and its children; 0 where the system does not tell."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile
            number, fields = int(path.parent.name), path.read_text().rpartition(")")[2].split()
            if number == pid or int(fields[1]) == pid:
                total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return round(total / 2**20, 1)


def stop(process: subprocess.Popen[bytes], clients: Clients, port: int) -> int:
    """SIGTERM under load, in the midst of a load, whose status comes back; every client finds the door closed."""
    found: list[int] = []
    load = threading.Thread(target=lambda: found.append(ask(port, f"/v2/repository/models/{MODEL}/load")[0]))
    load.start()
    wait(lambda: found or "LOADING" in ask(port, "/v2/repository/index")[1])
    clients.stopping.set()
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE)
    load.join(PATIENCE)
    clients.join()
    return found[0] if found else 0


def judge(workers: int, clients: Clients, operator: Operator, end: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The numbers of a run, and what is wrong with it."""
    tally = clients.tally
    faults = [*operator.complaints]
    faults += [f"{len(tally.lost)} requests lost"] if tally.lost else []
    faults += [f"{len(tally.wrong)} requests answered wrongly"] if tally.wrong else []
    faults += [f"the server ended with {end['exit code']}"] if end["exit code"] != 0 else []
    faults += [f"the load at the signal gave {end['last load']}"] if end["last load"] not in (0, 200, 503) else []
    faults += ["the server's log has a traceback"] if "Traceback" in end["log"] else []
    return {
        "workers": workers, "clients": CLIENTS, "seconds": round(seconds, 1), **tally.to_dict(),
        "reloads": operator.version - 1, "loads refused": operator.failures,
        "load ms": {"median": round(float(np.median(operator.seconds)) * 1e3, 1),
                    "max": round(max(operator.seconds) * 1e3, 1)},
        "server MiB": {"after a quarter of the loads": end["memory"][len(end["memory"]) // 4],
                       "after the last": end["memory"][-1]},
        "load at the signal": end["last load"], "exit code": end["exit code"], "faults": faults,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="Reloads under load; see the top of the file.")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--reloads", type=int, default=50)
    parser.add_argument("--failures", type=int, default=10)
    parser.add_argument("--workers", type=int, action="append", help="may be given several times (default: 1 and 2)")
    options = parser.parse_args()
    runs = [
        campaign(workers, options.requests, options.reloads, options.failures) for workers in options.workers or (1, 2)
    ]
    document: dict[str, Any] = {
        "command": "python benchmarks/reload_campaign.py",
        "machine": describe(None, ()),
        "commit": commit(ROOT),
    }
    document["requests, reloads, loads that fail of a run"] = [options.requests, options.reloads, options.failures]
    document["runs"] = runs
    print(json.dumps(document, indent=2))
    if len(sys.argv) == 1:
        RESULTS.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if any(found["faults"] for found in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
