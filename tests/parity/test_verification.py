from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from parity_mutants import replace
from parity_networks import Builder, Layer, add_layer, small_cnn

from bnfold.build import build_bundle
from bnfold.bundle import inspect_bundle, load_bundle, sidecar
from bnfold.bundle.goldens import dump_tensors, load_tensors
from bnfold.errors import BundleError, DataError, ParityError
from bnfold.folding.report import NormOutcome
from bnfold.parity import ParityReport, prove, verify
from bnfold.parity.gate import check_gate
from bnfold.parity.report import PROOF
from bnfold.parity.verification import DEFAULT

Mend = Callable[[Path], None]


def edit(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def edit_tensors(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = {name: np.array(array) for name, array in load_tensors(path.read_bytes(), "test").items()}
    change(tensors)
    path.write_bytes(dump_tensors(tensors, "test"))


def statuses(folder: Path, **options: Any) -> dict[str, str]:
    return {tier.tier: tier.status for tier in verify(folder, **options).tiers}


def judged(bundle: Any, **options: Any) -> ParityReport:
    """The tiers that make a proof, and decisions: what the others add is tested with each of them."""
    return verify(bundle, tiers=(*PROOF, "T4"), **options)


def break_channel(model: onnx.ModelProto) -> None:
    def broken(w: Any) -> Any:
        w = w.copy()
        w[3] *= np.float32(1.0001)
        return w

    replace(model, "block0.linear.weight.folded", broken)


def test_a_right_bundle_holds_in_every_tier(pristine: Path) -> None:
    found = verify(pristine)
    assert [tier.tier for tier in found.tiers] == list(DEFAULT)
    assert found.holds is True, found.to_table()
    assert found.exit_code == 0
    assert found.findings == ()
    assert (found.name, found.version) == ("net", 1)
    assert found.tier("T1").summary["tensors"] == 8
    assert 0.4 < found.tier("T1").summary["worst_ulp"] <= 0.5
    assert 0 < found.tier("T2").summary["worst_ratio"] < 1
    assert 0 < found.tier("T3").summary["ratio"] < 2
    assert found.tier("T4").summary["rows"] == 120
    assert found.tier("T4").summary["agreement"] == 1


def test_takes_a_bundle_a_path_or_a_string(pristine: Path) -> None:
    for bundle in (load_bundle(pristine), pristine, str(pristine)):
        assert verify(bundle, tiers=("T1",)).holds is True


def test_the_proof_in_the_bundle_is_the_report_without_a_version(pristine: Path) -> None:
    document = load_bundle(pristine).parity()
    assert "version" not in document
    assert document["holds"] is True
    assert [tier["tier"] for tier in document["tiers"]] == [*PROOF, "T4"]


def test_a_broken_channel_fails_and_names_the_tensor_even_with_the_hash_mended(folder: Path, mend: Mend) -> None:
    edit(folder / "model.onnx", break_channel)
    found = judged(folder)
    assert found.exit_code == 1
    assert found.tier("T0").status == "fails"
    assert "model.onnx" in found.tier("T0").findings[0]
    mend(folder)
    found = judged(folder)
    assert found.exit_code == 1
    assert found.tier("T0").status == "holds"
    assert found.tier("T1").status == "fails"
    assert "'block0.linear.weight.folded'" in found.tier("T1").findings[0]
    assert "channel 3" in found.tier("T1").findings[0]
    assert "block0.linear.weight.folded" in found.to_table()


def test_a_changed_file_is_a_finding_and_the_rest_goes_on(folder: Path) -> None:
    edit_json(folder / "parity.json", lambda document: document.update(name="other"))
    found = judged(folder)
    assert {tier.tier for tier in found.tiers if tier.status != "holds"} == {"T0"}
    assert found.exit_code == 1


def test_a_bundle_that_cannot_be_read_is_an_error(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BundleError):
        verify(tmp_path / "nothing")
    (folder / "model.onnx").write_text("no model")
    with pytest.raises(BundleError):
        verify(folder)


def test_another_reference_fails_the_reference_tier(folder: Path, mend: Mend) -> None:
    """Both models changed alike, so that the certificate and the graphs agree: only the source's hashes tell."""
    for file in ("model.onnx", "reference.onnx"):
        edit(folder / file, lambda m: replace(m, "head.linear.weight", lambda w: w * np.float32(1 + 2**-20)))
    mend(folder)
    found = judged(folder)
    assert found.tier("T1").status == "holds"
    assert found.tier("T3b").status == "fails"
    assert "'head.linear.weight'" in found.tier("T3b").findings[0]


def test_a_wrong_truth_fails_or_proves_nothing(folder: Path, mend: Mend) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors["test_data_set_0/output"][7, 2] += 0.01

    edit_tensors(folder / "golden" / "truth.safetensors", spoil)
    mend(folder)
    found = judged(folder)
    assert found.tier("T3b").status == "fails"
    assert "stored truth of output 'output' differs by 0.01" in found.tier("T3b").findings[0]
    assert found.tier("T3").status == "cannot tell"
    assert found.exit_code == 1


def test_wrong_stored_outputs_fail_the_triangle(folder: Path, mend: Mend) -> None:
    path = folder / "golden" / "test_data_set_0" / "output_0.pb"
    tensor = onnx.TensorProto.FromString(path.read_bytes())
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[5, 1] += np.float32(0.01)
    path.write_bytes(onnx.numpy_helper.from_array(values, tensor.name).SerializeToString())
    mend(folder)
    found = judged(folder)
    assert {tier.tier for tier in found.tiers if tier.status != "holds"} == {"T3"}
    assert found.tier("T3").findings[0].startswith("the stored outputs")


def test_wrong_statistics_fail_the_reference_tier(folder: Path, mend: Mend) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors["block2.bn0.variance"][1] *= 2

    edit_tensors(folder / "statistics.safetensors", spoil)
    mend(folder)
    found = judged(folder)
    assert {tier.tier for tier in found.tiers if tier.status != "holds"} == {"T3b"}
    assert "'block2.bn0.variance'" in found.findings[0]


def test_statistics_of_norms_that_are_not_there_or_missing_are_findings(folder: Path, mend: Mend) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith("block2.bn0.")]:
            tensors[name.replace("block2", "nowhere")] = tensors.pop(name)

    edit_tensors(folder / "statistics.safetensors", spoil)
    mend(folder)
    found = verify(folder, tiers=("T3b",)).findings
    assert "a norm 'nowhere.bn0', which reference.onnx does not" in found[0]
    assert "no statistics of the folded norm 'block2.bn0'" in found[1]


def _without_gamma(tensors: dict[str, Any]) -> None:
    del tensors["block2.bn0.gamma"]


def _in_another_dtype(tensors: dict[str, Any]) -> None:
    tensors["block2.bn0.gamma"] = tensors["block2.bn0.gamma"].astype(np.float64)


@pytest.mark.parametrize("change", [_without_gamma, _in_another_dtype])
def test_statistics_are_those_of_the_reference_in_number_and_dtype(folder: Path, mend: Mend, change: Any) -> None:
    edit_tensors(folder / "statistics.safetensors", change)
    mend(folder)
    found = judged(folder)
    assert {tier.tier for tier in found.tiers if tier.status != "holds"} == {"T3b"}
    assert "'block2.bn0.gamma'" in found.findings[0]


def test_golden_vectors_without_a_row_prove_nothing(folder: Path, mend: Mend) -> None:
    for path in (folder / "golden").glob("*/*.pb"):
        tensor = onnx.TensorProto.FromString(path.read_bytes())
        none = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)[:0], tensor.name)
        path.write_bytes(none.SerializeToString())
    edit_tensors(folder / "golden" / "truth.safetensors", lambda t: t.update({key: t[key][:0] for key in t}))
    mend(folder)
    found = judged(folder)
    assert found.tier("T1").status == "holds"
    assert {found.tier(tier).status for tier in ("T2", "T3")} == {"cannot tell"}
    assert found.tier("T4").status == "fails"
    assert found.exit_code == 1


def test_source_tensors_that_are_missing_or_new_are_findings(folder: Path) -> None:
    def spoil(document: dict[str, Any]) -> None:
        tensors = document["source_tensors"]
        tensors["other"] = tensors.pop("head.linear.bias")

    edit_json(folder / "manifest.json", spoil)
    found = verify(folder, tiers=("T3b",)).findings
    assert found[0].startswith("tensor 'head.linear.bias' of reference.onnx is not among")
    assert found[1].startswith("source tensor 'other' is recorded")


def test_a_fold_report_of_another_fold_fails_the_certificate(folder: Path, mend: Mend) -> None:
    edit_json(folder / "fold.json", lambda document: document["norms"][0].update(outcome="kept"))
    mend(folder)
    assert statuses(folder, tiers=("T1",)) == {"T1": "fails"}


def _twice(document: dict[str, Any]) -> None:
    document["norms"].insert(0, {**document["norms"][0], "outcome": "kept", "target": ""})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_twice, "2 rows for the norm 'block0.bn0'"),
        (lambda document: document["norms"][0].update(target="elsewhere"), "target 'elsewhere'"),
        (lambda document: document["norms"][0].update(kind="LayerNorm"), "'LayerNorm'"),
        (lambda document: document["counts"].update(folded=99), "counts of fold.json"),
        (lambda document: document.pop("counts"), "counts of fold.json are None"),
    ],
)
def test_a_fold_report_that_says_something_else_of_its_fold_fails_the_certificate(
    folder: Path, mend: Mend, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    edit_json(folder / "fold.json", change)
    mend(folder)
    found = verify(folder, tiers=("T1",))
    assert found.exit_code == 1
    assert named in found.findings[0]


@pytest.mark.parametrize("outcome", ["refused", "reduced", "vanished"])
def test_a_norm_that_stays_is_called_kept_and_nothing_else(tmp_path: Path, mend: Mend, outcome: str) -> None:
    folder = build(tmp_path, small_cnn(), output_kind="logits", keep=("block0.*",)).path
    assert verify(folder, tiers=("T1",)).holds is True
    edit_json(folder / "fold.json", lambda document: document["norms"][0].update(outcome=outcome))
    mend(folder)
    found = verify(folder, tiers=("T1",))
    assert found.exit_code == 1
    assert f"'{outcome}'" in found.findings[0]


@pytest.mark.parametrize(
    ("moves", "tensors"), [("all", 8), (("linear_to_norm",), 8), (("compose_affine",), 0), ((), 0)]
)
def test_a_fold_by_fewer_moves_is_proven_too(tmp_path: Path, moves: Any, tensors: int) -> None:
    found = judged(build(tmp_path, small_cnn(), output_kind="logits", moves=moves))
    assert found.holds is True, found.to_table()
    assert found.tier("T1").summary["tensors"] == tensors


@pytest.mark.parametrize("rows", [5, [{"name": "a"}], [7], [dict.fromkeys(NormOutcome.__dataclass_fields__, 1)]])
def test_a_fold_report_outside_its_schema_is_a_finding(folder: Path, mend: Mend, rows: Any) -> None:
    edit_json(folder / "fold.json", lambda document: document.update(norms=rows))
    mend(folder)
    found = judged(folder)
    assert found.exit_code == 1
    assert found.tier("T1").status == "fails"


def test_a_fold_map_of_another_fold_fails_the_certificate(folder: Path) -> None:
    edit_json(folder / "manifest.json", lambda document: document["fold_map"][0].update(tensor="other"))
    found = verify(folder, tiers=("T1",))
    assert "fold map" in found.findings[0]


def test_nan_in_the_shipped_weights_fails_everywhere(folder: Path, mend: Mend) -> None:
    edit(folder / "model.onnx", lambda m: replace(m, "block1.linear.weight.folded", _with_nan))
    mend(folder)
    found = judged(folder)
    assert found.exit_code == 1
    for tier in ("T1", "T2", "T3", "T4"):
        assert found.tier(tier).status == "fails", tier
    json.dumps(found.to_dict(), allow_nan=False)


def _with_nan(w: Any) -> Any:
    w = w.copy()
    w[0, 0, 1, 1] = np.nan
    return w


def test_decides_on_samples_that_are_given(pristine: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    x, y = rng.random((300, 1, 8, 8)).astype(np.float32), rng.integers(0, 10, 300)
    found = verify(pristine, tiers=("T4",), data=(x, y)).tier("T4")
    assert found.summary["rows"] == 300
    assert found.summary["folded_accuracy"] == found.summary["unfolded_accuracy"]
    np.savez(tmp_path / "data.npz", x=x, labels=y)
    assert verify(pristine, tiers=("T4",), data=tmp_path / "data.npz").tier("T4").summary == found.summary
    with pytest.raises(DataError):
        verify(pristine, data=(x[:, :, :4], y))


def test_decides_on_samples_where_another_output_has_no_rows(tmp_path: Path) -> None:
    model = small_cnn()
    model.graph.node.append(onnx.helper.make_node("ReduceMean", ["output"], ["total"], keepdims=0))
    model.graph.output.append(onnx.helper.make_tensor_value_info("total", onnx.TensorProto.FLOAT, []))
    x = np.random.default_rng(9).random((300, 1, 8, 8)).astype(np.float32)
    found = judged(build(tmp_path, model, output_kind="logits"), data=(x, None))
    assert found.holds is True, found.to_table()
    assert found.tier("T4").summary["rows"] == 300


def test_swapped_classes_change_decisions(folder: Path, mend: Mend) -> None:
    for name in ("head.linear.weight", "head.linear.bias"):
        edit(folder / "model.onnx", lambda m, n=name: replace(m, n, lambda w: w[..., ::-1].copy()))
    mend(folder)
    found = judged(folder)
    assert found.tier("T4").status == "fails"
    assert found.tier("T1").status == "fails"
    assert found.tier("T2").status == "holds"  # no folded tensor is touched


def test_tiers_are_chosen_by_name_and_run_in_order(pristine: Path) -> None:
    assert list(statuses(pristine, tiers=("T3b", "T1"))) == ["T1", "T3b"]
    with pytest.raises(ParityError, match="T9"):
        verify(pristine, tiers=("T9",))


def build(tmp_path: Path, model: onnx.ModelProto, **options: Any) -> Any:
    onnx.save(model, tmp_path / "net.onnx")
    return build_bundle(tmp_path / "net.onnx", tmp_path / "models" / "net", **options)


def test_raw_outputs_are_no_decisions(tmp_path: Path) -> None:
    bundle = build(tmp_path, small_cnn(), output_kind="raw")
    found = verify(bundle)
    assert found.holds is True
    assert "T4" not in [tier.tier for tier in found.tiers]
    assert "T4 was not run" in found.to_table()
    assert statuses(bundle.path, tiers=("T4",)) == {"T4": "cannot tell"}


def test_a_network_of_a_fixed_batch_size_is_run_in_batches_of_it(tmp_path: Path) -> None:
    model = small_cnn()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    rng = np.random.default_rng(0)
    data = rng.random((7, 1, 8, 8)).astype(np.float32), rng.integers(0, 10, 7)
    bundle = build(tmp_path, model, output_kind="logits", data=data)
    found = verify(bundle, data=data)
    assert found.holds is True, found.to_table()
    assert found.tier("T4").summary["rows"] == 7


def test_a_model_with_a_sidecar_is_proven_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar, "INLINE_BYTES", 1000)
    monkeypatch.setattr(sidecar, "_SMALL", 100)
    bundle = build(tmp_path, small_cnn(), output_kind="logits")
    assert (bundle.path / "model.onnx.data").is_file()
    found = judged(bundle)
    assert found.holds is True, found.to_table()
    assert found.tier("T1").summary["elements"] == 7840
    assert check_gate(bundle).passed


def test_norms_that_stay_are_no_fault(tmp_path: Path) -> None:
    bundle = build(tmp_path, small_cnn(), output_kind="logits", keep=("block0.*",))
    found = judged(bundle)
    assert found.holds is True, found.to_table()
    assert found.tier("T1").summary["tensors"] == 6


def test_warns_of_dead_channels_and_untouched_statistics(tmp_path: Path) -> None:
    build_one = Builder(np.random.default_rng(0))
    y = add_layer(build_one, "input", Layer(kind="gemm", inputs=4, outputs=6), "fc")
    model = build_one.model((None, 4), y, 2)

    def kill(gamma: Any) -> Any:
        gamma = gamma.copy()
        gamma[[1, 4]] = 0
        return gamma

    replace(model, "fc.bn0.gamma", kill)
    replace(model, "fc.bn0.mean", np.zeros_like)
    replace(model, "fc.bn0.variance", np.ones_like)
    found = judged(build(tmp_path, model, output_kind="logits"))
    assert found.holds is True
    assert "2 dead channel(s)" in found.tier("T0").findings[0]
    assert "was it ever trained?" in found.tier("T0").findings[1]


def test_an_unsound_norm_that_the_report_does_not_own_up_to_fails(folder: Path, mend: Mend) -> None:
    def negative(variance: Any) -> Any:
        variance = variance.copy()
        variance[0] = -1
        return variance

    edit(folder / "reference.onnx", lambda m: replace(m, "block0.bn0.variance", negative))
    mend(folder)
    found = judged(folder)
    assert found.tier("T0").status == "fails"
    assert "variance is negative" in found.tier("T0").findings[0]


def test_prove_refuses_what_does_not_hold(folder: Path, mend: Mend) -> None:
    edit(folder / "model.onnx", break_channel)
    mend(folder)
    with pytest.raises(ParityError, match=r"block0\.linear\.weight\.folded"):
        prove(inspect_bundle(folder)[0])


def test_nothing_is_written_when_parity_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.folding import onnx_graph

    right = onnx_graph.carry_out

    def wrong(model: Any, edits: Any) -> Any:
        folded, fold_map = right(model, edits)
        value = folded.graph.initializers["block0.linear.weight.folded"]
        array = value.const_value.numpy().copy()
        array[0] *= 2
        import onnx_ir as ir

        value.const_value = ir.tensor(array, name=value.name)
        return folded, fold_map

    monkeypatch.setattr(onnx_graph, "carry_out", wrong)
    with pytest.raises(ParityError, match=r"cannot be proven.*block0\.linear\.weight\.folded"):
        build(tmp_path, small_cnn(), output_kind="logits")
    assert not (tmp_path / "models" / "net" / "1").exists()
