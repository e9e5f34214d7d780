"""What a prediction costs in CPU time of the server, beside the runtime alone and beside other Python servers.

    python benchmarks/serve_peers.py --peers .venv-serve-peers --install     # once: an environment for each peer
    python benchmarks/serve_peers.py --peers .venv-serve-peers               # all of it, about half an hour
    python benchmarks/serve_peers.py --rounds 3 --networks resnet8           # bnfold and the runtime alone
    python benchmarks/serve_peers.py --table                                 # the tables of the document, anew

The servers take turns (A B C A B C ...), each started anew for its turn; what counts is user and system time of all
processes of a server for each answered request, as a ratio to the runtime alone, measured just before and just after,
at the batch size that the server really ran. Writes benchmarks/results/serve_peers.json and the tables in
docs/benchmarks-serving.md, which says what is measured and how. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from serving import table
from serving.machine import commit, describe
from serving.networks import WIDTHS, build, sample
from serving.rounds import Plan, Raw, measure
from serving.servers import SERVERS, Server

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/serve_peers.json"
DOCUMENT = ROOT / "docs/benchmarks-serving.md"
REPOSITORY = ROOT / "build/serve-peers"


def main() -> int:
    """Install, measure, or write the tables."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a server under measurement is stopped too
    if options.install:
        return _install(options.peers)
    if not options.table:
        _measure(options)
    if options.results == RESULTS:
        table.write(DOCUMENT, json.loads(options.results.read_text()))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=Path, help="folder of the peers' virtual environments")
    parser.add_argument("--install", action="store_true", help="make them")
    parser.add_argument("--table", action="store_true", help="write the tables from the results that are there")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each kind of load")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second of the load that all get")
    parser.add_argument("--networks", nargs="*", choices=sorted(WIDTHS), default=list(WIDTHS))
    parser.add_argument("--servers", nargs="*", help="names that begin so; all without it")
    parser.add_argument("--product", type=Path, default=ROOT, help="the checkout of bnfold that is served")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the numbers go")
    options = parser.parse_args()
    if options.install and options.peers is None:
        parser.error("--install needs --peers FOLDER, where the environments go")
    return options


def _install(folder: Path) -> int:
    """A virtual environment for each peer, so that none holds another at an old version."""
    for name, packages in {server.environment: server.packages for server in SERVERS if server.environment}.items():
        print(name, *packages, file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        command = [str(folder / name / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages]
        if subprocess.run(command, check=False).returncode:
            print(f"{name} could not be installed; it will be left out", file=sys.stderr)
    return 0


def _measure(options: argparse.Namespace) -> None:
    build(REPOSITORY)
    plan = Plan(options.seconds, options.rate, REPOSITORY, options.product.resolve(), _folder(options.peers))
    servers = [server for server in SERVERS if _is_asked_for(server, plan, options.servers)]
    for network in options.networks:
        rounds = _rounds(plan, servers, network, options.rounds)
        about = {"commit": commit(plan.product), "load_average": os.getloadavg()[2]}
        found: dict[str, Any] = json.loads(options.results.read_text()) if options.results.exists() else {}
        found.setdefault("networks", {})[network] = table.summarise(rounds) | about
        found["machine"] = describe(plan.environments, servers)
        found["load"] = {"seconds": plan.seconds, "rate": plan.rate}
        options.results.parent.mkdir(exist_ok=True)
        options.results.write_text(table.as_json(found))


def _folder(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


def _is_asked_for(server: Server, plan: Plan, names: list[str] | None) -> bool:
    if names and not any(server.name.lower().startswith(name.lower()) for name in names):
        return False
    if not server.environment:
        return True
    return plan.environments is not None and (plan.environments / server.environment / "bin" / "python").exists()


def _rounds(plan: Plan, servers: list[Server], network: str, count: int) -> list[dict[str, Any]]:
    from bnfold.runtime import open_session

    session = open_session(plan.repository / network / "1" / "model.onnx", optimise=True)
    expected = session.run(None, {session.get_inputs()[0].name: sample()})[0].reshape(-1)
    rounds = []
    for number in range(count):
        begun, turn = time.monotonic(), {}
        with contextlib.closing(Raw(plan, network)) as raw:
            for server in servers:
                try:
                    turn[server.name] = measure(plan.with_seed(number), server, network, expected, raw)
                except (RuntimeError, OSError) as problem:  # a peer that fails is reported, and the others go on
                    turn[server.name] = {}
                    print(f"{server.name}: {problem}", file=sys.stderr)
                table.show(server.name, turn[server.name])
        rounds.append(turn)
        print(f"{network}: round {number + 1} of {count}, {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return rounds


if __name__ == "__main__":
    sys.exit(main())
