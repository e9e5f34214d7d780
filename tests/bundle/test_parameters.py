"""Where every parameter of a source went."""

from __future__ import annotations

from bnfold.bundle import Parameter, SourceParameter, trace_parameters

A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


def traced(*source: SourceParameter, folded: dict[str, str] | None = None) -> dict[str, Parameter]:
    reference = {"conv.weight": A, "bn.weight": B, "head.weight": C, "lost": D}
    fold_map = [
        {"tensor": "conv.weight.folded", "from": ["conv.weight", "bn.weight"]},
        {"tensor": "conv.bias.folded", "from": ["bn.weight"]},
    ]
    left = {"conv.weight.folded": D, "conv.bias.folded": D, "head.weight": C} if folded is None else folded
    return {item.name: item for item in trace_parameters(source, reference, left, fold_map)}


def test_a_parameter_is_followed_into_every_tensor_that_is_made_of_it() -> None:
    found = traced(SourceParameter("conv.weight", A), SourceParameter("bn.weight", B))
    assert found["conv.weight"] == Parameter("conv.weight", A, "folded", ("conv.weight.folded",))
    assert found["bn.weight"].into == ("conv.weight.folded", "conv.bias.folded")


def test_a_parameter_under_its_own_name_with_its_own_bytes_is_unchanged() -> None:
    assert traced(SourceParameter("head.weight", C))["head.weight"] == Parameter(
        "head.weight", C, "unchanged", ("head.weight",)
    )
    changed = traced(SourceParameter("head.weight", C), folded={"head.weight": A})["head.weight"]
    assert changed.fate == "gone"


def test_a_shared_weight_that_one_user_folds_is_unchanged_and_part_of_more() -> None:
    found = traced(SourceParameter("conv.weight", A), folded={"conv.weight": A, "conv.weight.folded": D})
    assert found["conv.weight"] == Parameter("conv.weight", A, "unchanged", ("conv.weight", "conv.weight.folded"))


def test_a_shared_parameter_goes_where_its_other_name_goes() -> None:
    found = traced(SourceParameter("tied.weight", C, twins=("head.weight",)))
    assert found["tied.weight"] == Parameter("tied.weight", C, "folded", ("head.weight",))


def test_what_is_gone_says_why() -> None:
    found = traced(
        SourceParameter("bn.num_batches_tracked", D), SourceParameter("unused", D), SourceParameter("lost", D)
    )
    assert {item.fate for item in found.values()} == {"gone"}
    assert "counts batches" in found["bn.num_batches_tracked"].reason
    assert "does not use it" in found["unused"].reason
    assert "nothing that is left" in found["lost"].reason


def test_a_tensor_of_the_same_name_with_other_bytes_is_not_the_parameter() -> None:
    assert traced(SourceParameter("head.weight", D))["head.weight"].fate == "gone"
