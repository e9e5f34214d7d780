"""The onnx package's own backend data through fold and parity."""

from __future__ import annotations

import dataclasses

import onnx
import pytest
from backend_checks import Found, examine_all
from backend_models import (
    LIGHT,
    OPERATORS,
    Case,
    chained,
    converted,
    light,
    operator_cases,
    shipped,
    with_inputs,
)

import bnfold
from bnfold.errors import FoldError

CORE = (
    "batch_normalization", "conv", "convtranspose", "gemm", "matmul", "averagepool", "maxpool", "globalaveragepool",
    "globalmaxpool",
)  # fmt: skip
NO_NUMBERS_IN = ("vgg19", "bvlc_alexnet", "zfnet512")  # a hundred million weights: not in a run of every day


def assert_sound(found: Found) -> None:
    assert not found.problems, "\n".join(found.problems)
    assert found.caught == found.controls > 0
    assert 0 < found.worst_ulp <= 0.5


def operators(*names: str) -> list[Case]:
    """The cases of some operators, a norm behind and before each; large ones left out."""
    small = [case for case in operator_cases(names) if all(array.size < 4096 for array in case.batches[0].values())]
    return [made for case in small for made in chained(case)]


@pytest.mark.parametrize("name", CORE)
def test_operator_cases_with_norms(name: str) -> None:
    cases = operators(name)
    assert len(cases) >= 2
    found = examine_all(cases, moves=["all"])
    assert_sound(found)
    assert found.run > 0
    assert found.outcomes["folded"] + found.outcomes["reduced"] >= 1


@pytest.mark.long
@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_case_with_norms_by_default_and_by_all_moves(name: str) -> None:
    found = examine_all(made for case in operator_cases((name,)) for made in chained(case))
    assert found.models
    assert not found.problems, "\n".join(found.problems)
    assert found.caught == found.controls


@pytest.mark.parametrize("kind", ["pytorch-converted", "pytorch-operator", "simple"])
def test_old_models_are_refused_in_a_sentence_and_others_fold(kind: str) -> None:
    for case in converted(kind):
        if case.model.opset_import[0].version < 7:
            with pytest.raises(FoldError, match=r"uses opset 6, expected 7 or later.*version_converter"):
                bnfold.fold(case.model)
        else:
            onnx.checker.check_model(bnfold.fold(case.model).model)


@pytest.mark.parametrize("kind", ["pytorch-converted", "pytorch-operator"])
def test_converted_networks_with_norms(kind: str) -> None:
    cases = list(with_inputs(kind))
    plain = examine_all(cases, moves=["all"])
    assert plain.models == len(cases) > 30
    assert not plain.problems, "\n".join(plain.problems)
    found = examine_all((made for case in cases for made in chained(case)), moves=["all"])
    assert_sound(found)
    assert found.outcomes["folded"] > (20 if kind == "pytorch-converted" else 8)


@pytest.mark.parametrize("name", [name for name in LIGHT if name not in NO_NUMBERS_IN])
def test_light_architectures_fold(name: str) -> None:
    case = dataclasses.replace(light(name), batches=())
    found = examine_all([case], moves=["default"])
    assert_sound(found)
    assert found.outcomes["folded"] > 20


@pytest.mark.long
@pytest.mark.parametrize("name", LIGHT)
def test_light_architectures_compute_what_they_computed(name: str) -> None:
    found = examine_all([light(name)], moves=["default"], is_large=True)
    assert_sound(found)
    assert found.run == 1


@pytest.mark.parametrize("name", LIGHT)
def test_light_architectures_as_shipped_keep_what_is_computed_at_run_time(name: str) -> None:
    """ConstantOfShape makes most of their weights and statistics."""
    found = examine_all([shipped(name)], moves=["all"])
    assert not found.problems, "\n".join(found.problems)
    assert set(found.reasons) <= {"COMPUTED_STATISTICS", "COMPUTED_WEIGHT", "OTHER_READER"}
    assert found.controls == found.caught
