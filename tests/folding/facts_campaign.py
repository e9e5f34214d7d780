"""Fold many random graphs of facts and compare: python tests/folding/facts_campaign.py --count 100000 --seed 0"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter

import numpy as np
from facts_graphs import Sample, Seeded, grow
from facts_interpreter import run

from bnfold.folding.plan import Plan, make_plan

TOLERANCE = 1e-10  # relative to the largest output: ten thousand times what float64 needs


def difference(sample: Sample, plan: Plan) -> float:
    """How far the folded graph is from the unfolded one, relative to its largest output."""
    worst = 0.0
    for inputs in sample.inputs:
        with np.errstate(all="ignore"):
            before = run(sample.graph, inputs, sample.beside)
            after = run(sample.graph, inputs, sample.beside, plan.edits)
        for one, two in zip(before, after, strict=True):
            if one.shape != two.shape:
                return float("inf")
            size = float(np.max(np.abs(one), initial=0.0)) or 1.0
            worst = max(worst, float(np.max(np.abs(one - two), initial=0.0)) / size)
            if not np.isfinite(two).all() and np.isfinite(one).all():
                return float("inf")
    return worst


def seeded(seed: int) -> Sample:
    return grow(Seeded(seed), seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found: Counter[str] = Counter()
    failed: list[tuple[int, str, str]] = []
    started = time.monotonic()
    for seed in range(options.seed, options.seed + options.count):
        for moves in ("default", "all"):
            problem = _problem(seed, moves, found)
            if problem:
                failed.append((seed, moves, problem))
                print(f"seed {seed}, moves {moves}: {problem}", flush=True)
    print(f"{options.count} graphs in {time.monotonic() - started:.0f} s; {len(failed)} failures")
    print(", ".join(f"{key} {count}" for key, count in sorted(found.items())))
    return 1 if failed else 0


def _problem(seed: int, moves: str, found: Counter[str]) -> str:
    try:
        sample = seeded(seed)
        plan = make_plan(sample.graph, moves=moves)
        gap = difference(sample, plan)
    except Exception:
        return traceback.format_exc(limit=-3)
    found.update(
        f"{moves}/{row.outcome}/{row.reason}" if row.reason else f"{moves}/{row.outcome}" for row in plan.report.norms
    )
    return f"differs by {gap:.3g}" if not gap <= TOLERANCE else ""


if __name__ == "__main__":
    sys.exit(main())
