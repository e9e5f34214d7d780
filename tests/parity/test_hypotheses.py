"""The likely cause of a wrong tensor: each known way to get a fold wrong is told from the numbers that it makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import ml_dtypes  # noqa: F401  (numpy learns bfloat16)
import numpy as np
import onnx_ir as ir
import pytest

from bnfold.folding import algebra, onnx_graph
from bnfold.folding.evaluation import Run, Source
from bnfold.folding.expressions import Leaf, Op, Tensor, add
from bnfold.folding.facts import Norm
from bnfold.folding.onnx_edits import NewTensor
from bnfold.parity.hypotheses import ENOUGH, likely_cause, rewrites, shown
from bnfold.parity.hypotheses.rewriting import Tree
from bnfold.parity.hypotheses.terms import Slack, evaluate
from bnfold.parity.mutants import SPECIMENS, Specimen
from bnfold.parity.mutants.drafting import Draft
from bnfold.parity.mutants.faults import ARRAYS
from bnfold.parity.weights.certificate import Expectation, certify, expect

NAMES = [specimen.name for specimen in SPECIMENS]
VAGUE = {"ONE_ULP", "CHANNEL_SCALED", "STALE"}  # one number of each channel does not tell a factor


def expected(specimen: Specimen, seed: int = 0, dtype: str = "float32") -> Expectation:
    reference = ir.from_proto(specimen.model(dtype, seed))
    _, report, _ = onnx_graph.fold(reference, moves="all")
    return expect(reference, report)


class InDtype:
    """Evaluation as a tool would do it that folds in one dtype from end to end."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def stored(self, values: Any) -> Any:
        return values.astype(self.dtype)

    def known(self, value: Any) -> Any:
        return value.hi.astype(self.dtype)

    def moved(self, x: Any, change: Any) -> Any:
        return np.asarray(change(x), self.dtype)

    def joined(self, parts: Any, axis: int) -> Any:
        return np.concatenate(parts, axis)

    def total(self, x: Any, axes: Any) -> Any:
        return np.asarray(np.add.reduce(x, axis=axes, keepdims=True, dtype=self.dtype))

    def combined(self, kind: str, args: Any) -> Any:
        return {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "sqrt": np.sqrt}[kind](*args)


def computed(new: NewTensor, inner: str, dtype: str) -> Any:
    """The right tensor, computed in one dtype and stored in another."""
    found = Run(new.expr, None, InDtype(np.dtype(inner)), {}, Source()).whole()
    return np.ascontiguousarray(np.broadcast_to(found, new.expr.shape)).astype(dtype)


def wrong_ways(new: NewTensor, norms: tuple[Norm, ...]) -> Iterator[tuple[Any, set[str]]]:
    """Every different wrong tensor, with the codes of the ways that make it."""
    right = algebra.rounded(new.expr, "float32")
    found: dict[bytes, tuple[Any, set[str]]] = {}
    for rewrite in rewrites(new, norms):
        wrong = np.ascontiguousarray(np.broadcast_to(algebra.rounded(rewrite.expr, "float32"), right.shape))
        if np.isfinite(wrong).all():
            found.setdefault(wrong.tobytes(), (wrong, set()))[1].add(rewrite.code)
    for code, _, change in ARRAYS:
        wrong = np.ascontiguousarray(change(right))
        found.setdefault(wrong.tobytes(), (wrong, set()))[1].add(code)
    found.pop(right.tobytes(), None)
    yield from found.values()


@pytest.mark.parametrize("specimen", SPECIMENS, ids=NAMES)
def test_finds_each_way_to_be_wrong_again_from_its_numbers(specimen: Specimen) -> None:
    expectation = expected(specimen)
    count = 0
    tried = set()
    for new in expectation.tensors:
        for wrong, codes in wrong_ways(new, expectation.plan.norms):
            if (new.role, *sorted(codes)) in tried:
                continue
            tried.add((new.role, *sorted(codes)))
            cause = likely_cause(new, wrong, expectation.plan.norms)
            count += 1
            if codes <= VAGUE:
                continue
            assert cause is not None, (new.tensor, codes)
            same = {"CHANNELS_EXCHANGED", "CHANNELS_INTERLEAVED", "INTERLEAVED"}
            is_found = cause.code in codes or (cause.code in same and codes & same)
            if not is_found:  # another way to say the same: it must predict these very numbers
                other = next(r for r in rewrites(new, expectation.plan.norms) if r.words == cause.words)
                terms = evaluate(other.expr, Source())
                slack = Slack.of(Tree(new.expr), wrong.dtype).around(terms)
                assert np.mean(np.abs(terms.value - wrong) <= slack) >= ENOUGH, (new.tensor, codes, cause)
            assert cause.explained >= ENOUGH
    assert count > 10


@pytest.mark.parametrize("specimen", SPECIMENS, ids=NAMES)
def test_a_right_fold_has_no_cause_and_one_in_float32_is_only_rounded(specimen: Specimen) -> None:
    seen = set()
    for seed in range(4):
        for dtype in ("float32", "float16", "float64"):
            expectation = expected(specimen, seed, dtype)
            for new in expectation.tensors:
                assert likely_cause(new, algebra.rounded(new.expr, dtype), expectation.plan.norms) is None
                inner = "float64" if dtype == "float64" else "float32"
                cause = likely_cause(new, computed(new, inner, dtype), expectation.plan.norms)
                assert cause is None or cause.is_rounding, (new.tensor, dtype, seed, cause)
                seen.add(cause and cause.code)
    assert "ROUNDING" in seen  # or it would have found nothing to judge


def test_noise_has_no_cause() -> None:
    for specimen in SPECIMENS[:12]:
        expectation = expected(specimen)
        for new in expectation.tensors:
            right = algebra.rounded(new.expr, "float32")
            noise = np.random.default_rng(0).normal(size=right.shape) * 1e-3
            wrong = (right + np.abs(right) * noise + noise).astype(np.float32)
            assert likely_cause(new, wrong, expectation.plan.norms) is None, new.tensor


def _conv_and_norm(gamma_of_one_sign: bool = False, channels: int = 8) -> Expectation:
    d = Draft(np.random.default_rng(3))
    x = d.conv("input", "conv", 4, channels)
    parts = {"gamma": np.linspace(0.5, 2, channels)} if gamma_of_one_sign else {}
    return expect(ir.from_proto(d.model((4, 6, 6), d.batch_norm(x, "bn", channels, eps=1e-3, **parts), 4)))


@pytest.mark.parametrize("count", [2, 3, 32, 256, 1000, 12544])
def test_tells_how_many_values_a_biased_variance_was_taken_over(count: int) -> None:
    expectation = _conv_and_norm()
    new = expectation.tensors[0]
    (norm,) = new.norms
    assert norm.statistics is not None
    variance = norm.statistics.variance.tensor.load().astype(np.float64)  # type: ignore[union-attr]
    eps = float(algebra.evaluate(norm.statistics.eps).hi)
    factor = np.sqrt((variance + eps) / (variance * (count - 1) / count + eps))
    wrong = (algebra.evaluate(new.expr).hi * factor[:, None, None, None]).astype(np.float32)
    cause = likely_cause(new, wrong)
    assert cause is not None
    assert cause.code == "BIASED_VARIANCE"
    told = float(cause.words.rpartition("= ")[2])
    assert abs(told - count) <= 0.02 * count


def test_names_the_norm_whose_statistics_were_used() -> None:
    expectation = expected(next(s for s in SPECIMENS if s.name == "shared weight"))
    new = expectation.tensors[0]
    (wrong,) = [r for r in rewrites(new, expectation.plan.norms) if r.code == "OTHER_NORM"]
    shipped = algebra.rounded(wrong.expr, "float32")
    cause = likely_cause(new, shipped, expectation.plan.norms)
    assert cause is not None
    assert cause.words == "the statistics of 'bn2' were used instead of those of 'bn1'"
    alone = likely_cause(new, shipped)  # who does not know the other norm sees other factors, and says so
    assert alone is not None
    assert alone.code == "STALE"


def test_a_wide_channel_that_is_scaled_is_named_with_its_factor() -> None:
    new = _conv_and_norm().tensors[0]
    wrong = algebra.rounded(new.expr, "float32")
    wrong[5] *= np.float32(1.25)
    cause = likely_cause(new, wrong)
    assert cause is not None
    assert cause.words == "channel 5 is multiplied by 1.25"
    wrong[5] *= np.float32(-0.8)
    cause = likely_cause(new, wrong)
    assert cause is not None
    assert cause.words == "channel 5 is negated"


def test_a_cause_does_not_spoil_what_is_right() -> None:
    """One channel without epsilon: dropping it everywhere explains the wrong values, and would spoil the right ones."""
    new = _conv_and_norm().tensors[0]
    dropped = next(r for r in rewrites(new) if r.code == "EPS_DROPPED")
    wrong = algebra.rounded(new.expr, "float32")
    wrong[2] = algebra.rounded(dropped.expr, "float32")[2]
    cause = likely_cause(new, wrong)
    assert cause is None or cause.code == "CHANNEL_SCALED"


def test_deep_expressions_are_no_problem() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=6).astype(np.float32) for _ in range(3000)]

    def leaf(at: int) -> Leaf:
        return Leaf(Tensor(f"t{at}", "float32", (6,), at, lambda: arrays[at]))

    expr: Any = leaf(0)
    for at in range(1, len(arrays)):
        expr = add(expr, leaf(at))
    new = NewTensor("deep", "bias", "conv", expr, ())
    right = algebra.rounded(expr, "float32")
    assert likely_cause(new, right) is None
    cause = likely_cause(new, -right)
    assert cause is not None
    assert cause.code == "NEGATED"


def test_never_raises() -> None:
    new = _conv_and_norm().tensors[0]
    right = algebra.rounded(new.expr, "float32")
    assert likely_cause(new, right[:-1]) is None
    assert likely_cause(new, right.astype(str)) is None
    broken = dataclasses.replace(new, expr=Op("sqrt", (Op("sub", (new.expr, new.expr)),)))
    likely_cause(broken, right)
    nan = np.full_like(right, np.nan)
    cause = likely_cause(new, nan)
    assert cause is not None
    assert cause.code == "NOT_FINITE"


def test_the_certificate_names_channels_and_cause() -> None:
    d = Draft(np.random.default_rng(3))
    model = d.model((4, 6, 6), d.batch_norm(d.conv("input", "conv", 4, 8), "bn", 8, eps=1e-3), 4)
    reference = ir.from_proto(model)
    expectation = expect(reference)
    folded, _, _ = onnx_graph.fold(reference)
    weight = expectation.tensors[0]
    wrong = algebra.rounded(weight.expr, "float32")
    wrong[[2, 6]] = wrong[[6, 2]]
    folded.graph.initializers[weight.tensor].const_value = ir.tensor(wrong, name=weight.tensor)
    found = certify(expectation, folded)
    (bad,) = [tensor for tensor in found.tensors if not tensor.nearest]
    assert bad.channels == (2, 6)
    assert "72 of 288 values in channels 2 and 6" in bad.sentence()
    assert bad.sentence().endswith("likely cause: channels 2 and 6 are exchanged")
    (row,) = [row for row in found.to_dict()["tensors"] if row["not_nearest"]]
    assert (row["bad_channels"], row["bad_channel_count"]) == ([2, 6], 2)
    assert row["cause"] == {"code": "CHANNELS_EXCHANGED", "words": "channels 2 and 6 are exchanged", "explained": 1.0}
    assert certify(expectation, folded, explain=False).tensors[0].cause is None
    assert [tensor.tensor for tensor in certify(expectation, folded, only=[weight.tensor]).tensors] == [weight.tensor]


def test_a_bias_of_other_statistics_is_told_by_its_weight_and_tensors_come_in_graph_order() -> None:
    model = next(s for s in SPECIMENS if s.name == "classifier").model()
    reference = ir.from_proto(model)
    folded, report, _ = onnx_graph.fold(reference, moves="all")
    expectation = expect(reference, report)
    names = []
    for new in expectation.tensors:
        right = algebra.rounded(new.expr, "float32")
        factors = np.linspace(0.9, 1.1, len(right)).astype(np.float32).reshape(-1, *(1,) * (right.ndim - 1))
        folded.graph.initializers[new.tensor].const_value = ir.tensor(right * factors, name=new.tensor)
        names.append(new.tensor)
    found = certify(expectation, folded)
    assert [tensor.cause and tensor.cause.code for tensor in found.tensors] == ["STALE"] * 6
    assert [tensor.cause and tensor.cause.explained for tensor in found.tensors[:2]] == [1.0, 0.0]
    read = [value.name for node in folded.graph for value in node.inputs if value is not None]
    assert [tensor.tensor for tensor in found.tensors] == sorted(names, key=read.index)


@pytest.mark.parametrize(
    ("channels", "words"),
    [([3], "3"), ([3, 7], "3 and 7"), ([3, 7, 9, 12], "3, 7, 9 and 12"), (range(64), "0 to 63"),
     ([3, 7, 9, 12, 14], "3, 7, 9 and 2 more")],
)  # fmt: skip
def test_channels_are_named_in_few_words(channels: Any, words: str) -> None:
    assert shown(list(channels)) == words
