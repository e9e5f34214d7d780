"""Fuzz the server's reading of requests: `python tests/fuzz/fuzz_requests.py --runs 1000000`.

Coverage-guided with atheris where there is a wheel of it; elsewhere, or with --plain, the same changes unguided. An
input that breaks a rule is written to --found and ends the run with another exit code than 0; `--again FILE` takes one
input again.
Rules (fuzz_target.py): no 500, no other exception, no answer that is no HTTP, errors in the one shape, memory given
back, an end within seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_mutation import mutate
from fuzz_seeds import all_seeds

LONGEST = 2**14  # bytes of one input
_EVERY = 5000  # runs between two looks at the memory


class Campaign:
    """The runs of one process: counts them, looks at the memory, ends them."""

    def __init__(self, options: argparse.Namespace, runner: asyncio.Runner, target: Any) -> None:
        self.options = options
        self.runs = 0
        self.memory: list[int] = [resident()]
        self._runner = runner
        self._target = target
        self._began = time.monotonic()

    def take(self, data: bytes) -> None:
        """One run; the process ends after the last."""
        try:
            self._runner.run(self._target.take(data))
        except BaseException:
            name = self.options.found / f"input-{hashlib.sha256(data).hexdigest()[:16]}"
            name.write_bytes(data)
            print(f"broken by {name}", file=sys.stderr)
            raise
        self.runs += 1
        if self.runs % _EVERY == 0:
            self.memory.append(resident())
            if self.runs % (20 * _EVERY) == 0:
                self.say()

    @property
    def is_over(self) -> bool:
        late = self.options.seconds and time.monotonic() - self._began > self.options.seconds
        return bool(late) or self.runs >= self.options.runs

    def say(self) -> None:
        print(f"{self.runs} runs, {self.memory[-1]} bytes, {dict(self._target.statuses)}", file=sys.stderr, flush=True)

    def result(self, guided: bool) -> dict[str, Any]:
        """What was done and seen, JSON-ready. The warm-up is the first tenth."""
        self.memory.append(resident())
        return {
            "runs": self.runs,
            "violations": 0,
            "seconds": round(time.monotonic() - self._began, 1),
            "guided_by_coverage": guided,
            "seed": self.options.seed,
            "seeds": len(all_seeds()),
            "statuses": dict(sorted(self._target.statuses.items())),
            "slowest_seconds": round(self._target.slowest, 4),
            "seconds_below": _quantiles(self._target.durations),
            "rss_bytes": {
                "start": self.memory[0],
                "after_warm_up": self.memory[len(self.memory) // 10],
                "highest_after_warm_up": max(self.memory[len(self.memory) // 10 :]),
                "end": self.memory[-1],
                "every_100000": self.memory[::20],
            },
            "versions": _versions(),
        }


def _quantiles(durations: dict[int, int]) -> dict[str, float]:
    """Bounds, powers of two of a microsecond, that so large a share of the inputs stayed below."""
    found, seen, total = {}, 0, sum(durations.values())
    for bits in sorted(durations):
        seen += durations[bits]
        for share in ("0.5", "0.99", "0.999", "0.9999"):
            if share not in found and seen >= float(share) * total:
                found[share] = 2**bits / 1e6
    return found


def _versions() -> dict[str, str]:
    names = ("atheris", "httptools", "uvicorn", "orjson", "onnxruntime-gpu", "onnxruntime", "numpy", "pillow", "grpcio")
    found = {"python": platform.python_version(), "cpu": f"{platform.machine()}, {os.cpu_count()} cores"}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def build_repository(root: Path) -> Path:
    """Models with one and two inputs, free sizes, and rows that depend on one another."""
    import numpy as np

    sys.path.append(str(Path(__file__).resolve().parents[1] / "service"))
    from service_networks import build_digits, free_size_network, save, two_input_network

    from bnfold import build_bundle

    build_digits(root / "models", root / "sources")
    build_bundle(save(two_input_network(), root / "sources" / "pair.onnx"), root / "models" / "pair")
    samples = np.random.default_rng(0).normal(size=(8, 1, 5, 6)).astype(np.float32)
    for name, mixing in (("free", False), ("mixing", True)):
        source = save(free_size_network(mixing=mixing), root / "sources" / f"{name}.onnx")
        build_bundle(source, root / "models" / name, data=(samples, None))
    return root / "models"


def fuzz_plainly(take: Callable[[bytes], None], campaign: Campaign, chance: random.Random) -> None:
    """Changes of seeds, and of what they became."""
    seeds = all_seeds()
    pool = list(seeds)
    while not campaign.is_over:
        data = mutate(chance.choice(pool), chance, LONGEST, lambda: chance.choice(seeds))
        take(data)
        if chance.random() < 0.02:
            pool[chance.randrange(len(pool))] = data
        elif chance.random() < 0.002:
            pool = list(seeds)


def fuzz_guided(campaign: Campaign, corpus: Path, finish: Callable[[], None]) -> None:
    """libFuzzer keeps what reaches new code. It never comes back: `finish` ends the process."""
    import atheris

    seeds = all_seeds()
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number:03}").write_bytes(seed)

    def take(data: bytes) -> None:
        campaign.take(data)
        if campaign.is_over:
            finish()

    def change(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.1:
            return bytes(atheris.Mutate(data, most))
        return mutate(data, chance, most, lambda: chance.choice(seeds))

    options = [f"-max_len={LONGEST}", f"-seed={campaign.options.seed}", "-timeout=60", "-rss_limit_mb=4096"]
    options += ["-len_control=0", "-print_final_stats=0", "-verbosity=0", f"-artifact_prefix={campaign.options.found}/"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], take, custom_mutator=change)
    atheris.Fuzz()


def main() -> None:
    options = _parse()
    options.found.mkdir(parents=True, exist_ok=True)
    guided = not options.plain and options.again is None and importlib.util.find_spec("atheris") is not None
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        repository = options.repository or build_repository(root)
        (root / "corpus").mkdir()
        if guided:
            import atheris

            watching: Any = atheris.instrument_imports(include=["service"])
        else:
            watching = contextlib.nullcontext()
        with watching:
            from fuzz_target import open_target

            importlib.import_module("service.processes.server")
        logging.disable(logging.CRITICAL)
        with asyncio.Runner() as runner:
            opening = open_target(repository)
            target = runner.run(opening.__aenter__())
            campaign = Campaign(options, runner, target)

            def finish() -> None:
                campaign.say()
                if options.results is not None:
                    (options.found / "slowest").write_bytes(target.slowest_input)
                    text = json.dumps({"command": " ".join(["python", *sys.argv]), **campaign.result(guided)}, indent=2)
                    options.results.write_text(text + "\n")
                sys.stderr.flush()
                if guided:
                    for path in (root / "corpus").iterdir():
                        path.unlink()
                    os._exit(0)

            if options.again is not None:
                campaign.take(options.again.read_bytes())
                campaign.say()
            elif guided:
                fuzz_guided(campaign, root / "corpus", finish)
            else:
                fuzz_plainly(campaign.take, campaign, random.Random(options.seed))
                finish()
            runner.run(opening.__aexit__(None, None, None))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=0, help="end after these, whatever the runs (default: never)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="without atheris")
    parser.add_argument("--repository", type=Path, help="models digits, pair, free, mixing (default: builds them)")
    parser.add_argument("--results", type=Path, help="a JSON file of what was seen")
    parser.add_argument(
        "--found", type=Path, default=Path("build/fuzz-found"), help="folder for inputs that break a rule"
    )
    parser.add_argument("--again", type=Path, help="take this one input")
    return parser.parse_args()


if __name__ == "__main__":
    main()
