"""The figures of docs/hard-inputs.md. Run: python tests/parity/hard_figures.py [kinds] [mutants] [search] [speed]"""

from __future__ import annotations

import platform
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch

sys.path.insert(0, str(Path(__file__).parent))

from parity_move_mutants import MUTANTS, mutant
from parity_moves import MAKES, network
from parity_mutants import FAULTS, FORMULAS, refold, spoil
from parity_networks import Builder, Layer, fold, inputs_for, single, small_cnn

from bnfold.bundle.manifest import TensorSpec
from bnfold.folding import onnx_graph
from bnfold.parity.hard_inputs import hard_inputs
from bnfold.parity.hard_rule import HardCorner, check_hard
from bnfold.parity.oracle import run_float64
from bnfold.parity.rerounding import copies_of, rerounded
from bnfold.parity.search.seeking import seek
from bnfold.parity.search.worst import Pair, WorstInput
from bnfold.parity.torch_float64 import TorchGraph
from bnfold.parity.triangle import compare
from bnfold.parity.weights.certificate import expect
from bnfold.runtime import open_session, run
from bnfold.samples import Samples

Model = onnx.ModelProto
COUNTS = {
    "float32 networks": 260, "float16 networks": 100, "float32 single layers": 260, "float16 single layers": 60,
    "other moves": 240,
}  # fmt: skip
FIRST_SEED = 5000  # the rules were chosen on networks with smaller seeds
ROWS = 12


def random_networks(what: str, count: int) -> Iterator[Model]:
    rng = np.random.default_rng(1)
    dtype = "float16" if what.startswith("float16") else "float32"
    for at in range(count):
        seed = FIRST_SEED + at
        if "networks" in what:
            yield small_cnn(seed, dtype)
        elif "layers" in what:
            variance = float(rng.choice([1, 1e-4, 1e-10, 1e4])) if dtype == "float32" else 1.0
            kind = ("conv", "conv_transpose", "gemm", "matmul")[at % 4]
            norm = ("bn", "hand", "bn+bn", "hand+bn")[at // 4 % 4]
            yield single(
                Layer(
                    kind=kind, dims=1 + at % 3, norm=norm, variance=variance, seed=seed, dtype=dtype,
                    bias=bool(at % 5), padding=at % 2,
                )
            )  # fmt: skip
        else:
            yield network(MAKES[at % len(MAKES)], seed=seed)


def folds(model: Model) -> Model:
    return ir.to_proto(onnx_graph.fold(ir.from_proto(model), moves="all")[0])


def spec_of(x: Any) -> TensorSpec:
    return TensorSpec("input", x.dtype.name, (-1, *x.shape[1:]))


def judge_kinds(model: Model, folded: Model, x: dict[str, Any]) -> list[HardCorner]:
    """The verdict on every kind."""
    unfolded, shipped = open_session(model.SerializeToString(), optimise=False), _served(folded)
    again = [_served(rerounded(folded, seed)) for seed in range(copies_of(folded))]
    answers, truth = run(unfolded, x)["output"], TorchGraph(model)
    lowest = answers if answers.ndim == 2 else None
    found: list[HardCorner] = []
    for hard in hard_inputs([spec_of(x["input"])], Samples(x, None), lowest=lowest):
        sides = [run(session, hard.inputs) for session in (unfolded, shipped)]
        others = [run(session, hard.inputs) for session in again]
        found += check_hard(hard.kind, truth.truth(hard.inputs), *sides, others)
    return found


def _served(model: Model) -> Any:
    return open_session(model.SerializeToString(), optimise=True)


def _shares(found: HardCorner) -> tuple[float, float]:
    """Error by limit, as root mean square and as maximum."""
    return found.corner.folded_rms / found.rms_limit, found.corner.folded_error / found.error_limit


def _spreads(shares: list[tuple[float, float]]) -> list[str]:
    return [", ".join(f"{np.percentile(side, q):.3f}" for q in (50, 99, 100)) for side in zip(*shares, strict=True)]


def kinds() -> None:
    """Right folds judged kind by kind."""
    print("right folds, by kind of hard input: error / limit\n")
    _head("what", "networks", "judged", "rms: median, 99%, largest", "maximum: median, 99%, largest", "called wrong",
          "not told", "left out", "called wrong by T3's plain rule")  # fmt: skip
    for what, count in COUNTS.items():
        begun = time.perf_counter()
        found: list[HardCorner] = []
        for at, model in enumerate(random_networks(what, count)):
            found += judge_kinds(model, folds(model), inputs_for(model, at, batch=ROWS))
        states = [one.status for one in found]
        shares = [_shares(one) for one in found if one.status in ("holds", "fails")]
        plain = sum(not one.corner.holds for one in found)
        counts = [states.count(state) for state in ("fails", "cannot tell", "left out")]
        _line(what, count, len(found), *_spreads(shares), *counts, plain)
        print(f"{time.perf_counter() - begun:.0f} s", file=sys.stderr)


def _head(*cells: str) -> None:
    _line(*cells)
    print("|" + "---|" * len(cells))


def _line(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def wrong_folds() -> Iterator[tuple[str, Model, Model]]:
    model = small_cnn()
    folded = ir.to_proto(fold(model)[1])
    site = expect(ir.from_proto(model)).sites[1]
    for name, formula in FORMULAS.items():
        yield name, model, refold(model, folded, formula)
    for fault in FAULTS:
        yield f"{fault} (one site)", model, spoil(folded, site, fault)
    for name, (make, _, _) in MUTANTS.items():
        small = network(make)
        yield name, small, mutant(name, small, folds(small))


def mutants() -> None:
    """Which kinds catch which wrong fold, and what the search makes of it."""
    print("wrong folds: T3 on 12 random inputs, kinds of hard inputs that catch it, the search for the worst input\n")
    print("| wrong fold | T3 on data | kinds that catch it | worst input, gradient | worst input, coordinates |")
    print("|---|---|---|---|---|")
    for name, model, wrong in wrong_folds():
        x = inputs_for(model, batch=ROWS)
        unfolded = run(open_session(model.SerializeToString(), optimise=False), x)
        (data,) = compare([run_float64(model, x)], [unfolded], [run(_served(wrong), x)])
        found = judge_kinds(model, wrong, x)
        caught = sum(one.status == "fails" for one in found)
        cells = [f"{caught} of {len(found)}"]
        cells += [_sought(seek(_pair(model, wrong, x), x, gradient=gradient)) for gradient in (True, False)]
        print(f"| {name} | {'holds' if data.holds else '**caught**'} | {' | '.join(cells)} |", flush=True)


def _sought(found: WorstInput) -> str:
    text = f"{found.ratio:.3g} x data"
    return f"**{text}**" if found.status == "fails" else text


def _pair(model: Model, folded: Model, x: dict[str, Any]) -> Pair:
    answers = run(_served(folded), x)["output"]
    return Pair(model, folded, [spec_of(x["input"])], "output" if answers.ndim == 2 else None)


def search() -> None:
    """Right folds at the input where they are worst."""
    print("right folds at the worst input found: error / limit, and how much further than on 12 random inputs\n")
    _head("what", "search", "networks", "rms: median, 99%, largest", "maximum: median, 99%, largest",
          "difference / find between copies: median, largest", "difference / on data: median, largest", "called wrong",
          "not told", "other class")  # fmt: skip
    for what, count in COUNTS.items():
        models = [(model, folds(model)) for model in random_networks(what, count // 4)]
        for gradient in (True, False):
            begun = time.perf_counter()
            found: list[WorstInput] = []
            for at, (model, folded) in enumerate(models):
                x = inputs_for(model, at, batch=ROWS)
                found.append(seek(_pair(model, folded, x), x, gradient=gradient))
            shares = [_shares(one.corners[0]) for one in found]
            finds = [one.difference / (one.corners[0].sought[1] / 2) for one in found if one.corners[0].sought[1]]
            grown = [one.ratio for one in found if np.isfinite(one.ratio)]
            states = [one.status for one in found]
            _line(what, found[0].kind, len(found), *_spreads(shares), f"{np.median(finds):.2f}, {max(finds):.2f}",
                  f"{np.median(grown):.1f}, {max(grown):.1f}", states.count("fails"), states.count("cannot tell"),
                  sum(one.top1_same is False for one in found))  # fmt: skip
            print(f"{time.perf_counter() - begun:.0f} s", file=sys.stderr)


def resnet50() -> Model:
    """The layers of ResNet-50 (He et al. 2016) with random numbers, for 224 pixels."""
    build = Builder(np.random.default_rng(0))

    def block(x: str, inputs: int, outputs: int, kernel: int, stride: int = 1, *, relu: bool = True) -> str:
        name = f"layer{build.count}"
        weight = build.constant(f"{name}.weight", build.weight(outputs, inputs, kernel, kernel))
        y = build.node("Conv", [x, weight], strides=[stride] * 2, pads=[kernel // 2] * 4)
        y = build.batch_norm(y, f"{name}.bn", outputs)
        return build.node("Relu", [y]) if relu else y

    x = block("input", 3, 64, 7, 2)
    x = build.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for at in range(blocks):
            stride = 2 if at == 0 and stage else 1
            y = block(block(block(x, channels, width, 1), width, width, 3, stride), width, 4 * width, 1, relu=False)
            short = block(x, channels, 4 * width, 1, stride, relu=False) if at == 0 else x
            x, channels = build.node("Relu", [build.node("Add", [y, short])]), 4 * width
    x = build.node("Flatten", [build.node("GlobalAveragePool", [x])])
    head = [build.constant("head.weight", build.weight(1000, 2048)), build.constant("head.bias", build.normal(1000))]
    return build.model((None, 3, 224, 224), build.node("Gemm", [x, *head], transB=1), 2)


def speed() -> None:
    """The float64 truth by torch and by the reference evaluator, and a search in a network of that size."""
    model = resnet50()
    x = {"input": np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)}
    begun = time.perf_counter()
    wanted = run_float64(model, x)["output"]
    middle = time.perf_counter()
    found = TorchGraph(model).truth(x)["output"]
    end = time.perf_counter()
    apart = np.max(np.abs(found - wanted)) / np.max(np.abs(wanted))
    print("float64 truth of ResNet-50 with random numbers, 2 rows of 224 pixels, one thread\n")
    print("| evaluator | seconds |\n|---|---|")
    print(f"| reference evaluator (`run_float64`) | {middle - begun:.2f} |")
    print(f"| torch (`TorchGraph`) | {end - middle:.2f} |\n\nlargest difference, relative: {apart:.2g}\n")
    folded = folds(model)
    for gradient in (True, False):
        begun = time.perf_counter()
        worst = seek(_pair(model, folded, x), x, seconds=30, gradient=gradient)
        print(f"worst input in 30 s, {worst.kind}: {worst.status}, {worst.steps} steps, {worst.ratio:.3g} x data, "
              f"{time.perf_counter() - begun:.1f} s with the judgement")  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, onnx {onnx.__version__}, "
        f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for part in sys.argv[1:] or ["kinds", "mutants", "search", "speed"]:
            {"kinds": kinds, "mutants": mutants, "search": search, "speed": speed}[part]()
            print()
