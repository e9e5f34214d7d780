"""Fold many random ONNX graphs and look: python tests/folding/onnx_random_campaign.py --count 10000 --seed 0"""

from __future__ import annotations

import argparse
import math
import sys
import time
import traceback
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
from facts_graphs import Seeded
from onnx_networks import close, fold_of, outcomes
from onnx_random_graphs import Sample, grow

from bnfold.api import FoldResult
from bnfold.errors import BnfoldError, ParityError
from bnfold.parity.oracle import run_float64, widen
from bnfold.parity.triangle import compare
from bnfold.parity.weights.certificate import certify, expect
from bnfold.runtime import open_session, run

TOLERANCE = 1e-9  # relative to the largest output: what float64 makes of ten layers, and a hundred thousand times less
FEW = (
    64  # elements of an output; below it, one network or the other is nearer to the truth by luck (seed 4836: 8 times)
)
MOVES = ("default", "all")


def seeded(seed: int) -> Sample:
    return grow(Seeded(seed), seed)


def problem(sample: Sample, moves: str, found: Counter[str] | None = None) -> str:
    """What is wrong with the fold of a graph; nothing, if all is well. found: counts what was seen."""
    seen: Counter[str] = Counter() if found is None else found
    result = fold_of(sample.model, moves=moves)
    certificate = certify(expect(ir.from_proto(sample.model), result.report), ir.from_proto(result.model))
    if not certificate.holds:
        return f"T1: {'; '.join(certificate.findings())}"
    wide = _wide(sample.model)
    exact = fold_of(wide, moves=moves)
    seen.update(f"{moves}/{outcome} {reason}".strip() for outcome, reason in outcomes(result))
    seen["tensors certified"] += len(certificate.tensors)
    if outcomes(exact) != outcomes(result):
        return f"in float64 the outcomes are {outcomes(exact)}, else {outcomes(result)}"
    return _numbers(sample, wide, exact, seen) or _triangle(sample, result, seen)


def _wide(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float64, but for the scales of Resize, which are float32 by the operator's specification."""
    wide = widen(model)
    scales = {node.input[-1] for node in wide.graph.node if node.op_type in ("Resize", "Upsample")}
    for old, new in zip(model.graph.initializer, wide.graph.initializer, strict=True):
        if new.name in scales:
            new.CopyFrom(old)
    for before, after in zip(model.graph.node, wide.graph.node, strict=True):
        if after.op_type == "Constant" and after.output[0] in scales:
            after.CopyFrom(before)
        if after.op_type == "Clip" and len(after.input) == 1 and not any(a.name == "max" for a in after.attribute):
            after.attribute.append(onnx.helper.make_attribute("max", math.inf))  # the default is float32's largest
    return wide


def _numbers(sample: Sample, wide: onnx.ModelProto, exact: FoldResult, seen: Counter[str]) -> str:
    for at, inputs in enumerate(sample.inputs):
        try:
            truth = list(run_float64(wide, inputs).values())
        except ParityError:
            if at == 0:
                raise
            seen["sizes that do not fit"] += 1
            continue
        if not close(list(run_float64(exact.model, inputs).values()), truth, TOLERANCE):
            return f"the folded float64 graph computes something else on inputs {at}"
    return ""


def _triangle(sample: Sample, result: FoldResult, seen: Counter[str]) -> str:
    """T3's rule on the first inputs, where ONNX Runtime has the kernels.

    Both sides without its optimisations: it would fuse what is left of norms in half precision, and less exactly.
    """
    inputs = sample.inputs[0]
    try:
        unfolded = run(open_session(sample.model.SerializeToString(), optimise=False), inputs)
    except BnfoldError:
        seen["not run by ONNX Runtime"] += 1
        return ""
    folded = run(open_session(result.model.SerializeToString(), optimise=False), inputs)
    wrong = []
    for corner in compare([run_float64(sample.model, inputs)], [unfolded], [folded]):
        if corner.elements < FEW:
            seen["T3 outputs of few elements"] += 1
            continue
        seen["T3 outputs"] += 1
        seen["T3 cannot tell"] += bool(corner.doubt)
        if not corner.holds and not corner.doubt:
            wrong.append(corner.sentence())
    return f"T3: {'; '.join(wrong)}" if wrong else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found: Counter[str] = Counter()
    failures = 0
    started = time.monotonic()
    for seed in range(options.seed, options.seed + options.count):
        for moves in MOVES:
            try:
                with np.errstate(all="ignore"):
                    wrong = problem(seeded(seed), moves, found)
            except Exception:
                wrong = traceback.format_exc(limit=-3)
            if wrong:
                failures += 1
                print(f"seed {seed}, moves {moves}: {wrong}", flush=True)
    print(f"{options.count} graphs in {time.monotonic() - started:.0f} s; {failures} failures")
    print(", ".join(f"{key} {count}" for key, count in sorted(found.items())))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
