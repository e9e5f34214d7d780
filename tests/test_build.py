"""From a source to a proven bundle, from every kind of source."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bnfold
from bnfold.build import build_bundle
from bnfold.bundle import hash_tensor, load_bundle
from bnfold.errors import BnfoldError, DataError, FoldError
from bnfold.folding import onnx_graph
from bnfold.folding.onnx_file import load_model, to_proto
from bnfold.reference import inspect
from bnfold.training import load_checkpoint, train

ROOT = Path(__file__).parents[1]
QUICK = ["train.epochs=2", "augmentation.shift=0"]


class HandWritten(nn.Module):
    """Batch norm written out by a person, in terms of gamma, beta, moving_mean and moving_variance."""

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(channels))
        self.beta = nn.Parameter(torch.randn(channels))
        self.register_buffer("moving_mean", torch.randn(channels))
        self.register_buffer("moving_variance", torch.rand(channels) * 2 + 0.05)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        mean, variance = self.moving_mean.reshape(shape), self.moving_variance.reshape(shape)
        y = (x - mean) / torch.sqrt(variance + self.eps)
        return y * self.gamma.reshape(shape) + self.beta.reshape(shape)


def hand_written_network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), HandWritten(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, groups=2), HandWritten(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 3 * 3, 5), HandWritten(5),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and a bundle of each network of the repository, trained briefly."""
    root = tmp_path_factory.mktemp("build")
    for kind in ("mlp", "cnn", "resnet"):
        name = f"digits-{kind}"
        made = train(ROOT / "models" / name / "recipe.toml", overrides=QUICK, output=root / "runs" / name, device="cpu")
        build_bundle(made.path, root / "models" / name)
    return root


@pytest.mark.parametrize(("name", "norms"), [("digits-mlp", 3), ("digits-cnn", 3), ("digits-resnet", 10)])
def test_every_network_folds_completely_and_is_proven(repository: Path, name: str, norms: int) -> None:
    bundle = load_bundle(repository / "models" / name / "1")
    assert bundle.fold_report()["counts"] == {"folded": norms, "reduced": 0, "kept": 0, "refused": 0}
    assert not any(node.op_type == "BatchNormalization" for node in onnx.load(bundle.model_path).graph.node)
    tiers = {tier["tier"]: tier for tier in bundle.parity()["tiers"]}
    assert bundle.parity()["holds"] is True
    assert {tier["status"] for tier in tiers.values()} == {"holds"}
    assert tiers["T1"]["summary"]["worst_ulp"] <= 0.5
    assert len(bundle.statistics()) == norms


def test_the_reference_holds_the_state_dict_bit_for_bit(repository: Path) -> None:
    state = load_checkpoint(repository / "runs/digits-resnet").module().state_dict()
    reference = load_bundle(repository / "models/digits-resnet/1").reference_path
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(reference).graph.initializer}
    wanted = {name: tensor.numpy() for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert wanted.keys() <= stored.keys()
    assert all(stored[name].tobytes() == array.tobytes() for name, array in wanted.items())


def test_the_reference_is_clean(repository: Path) -> None:
    """BN is visible; no debris of the exporter around it, no path of the machine in it, a free batch size."""
    for name in ("digits-mlp", "digits-cnn", "digits-resnet"):
        path = load_bundle(repository / "models" / name / "1").reference_path
        model = onnx.load(path)
        kinds = {node.op_type for node in model.graph.node}
        assert "BatchNormalization" in kinds
        assert not kinds & {"Shape", "Expand", "CastLike", "Cast", "Identity", "Constant"}
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        assert str(ROOT).encode() not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_folding_the_shipped_reference_again_gives_the_shipped_model(repository: Path) -> None:
    bundle = load_bundle(repository / "models/digits-cnn/1")
    folded, _, _ = onnx_graph.fold(load_model(bundle.reference_path))
    assert to_proto(folded) == onnx.load(bundle.model_path)


def test_versions_are_counted_up_and_never_overwritten(repository: Path, tmp_path: Path) -> None:
    source = repository / "runs/digits-mlp"
    assert [build_bundle(source, tmp_path / "m").manifest.version for _ in range(2)] == [1, 2]
    with pytest.raises(bnfold.BundleError, match="exists"):
        build_bundle(source, tmp_path / "m/2")


def test_a_hand_written_norm_leaves_nothing_through_both_doors(tmp_path: Path) -> None:
    network = hand_written_network()
    x = torch.randn(4, 1, 8, 8)
    result = bnfold.fold(network, (x,))
    assert result.report.counts["folded"] == len(result.report.norms) == 3
    with torch.no_grad():
        error = (result.model(x).double() - network(x).double()).abs().max() / network(x).abs().max()
    assert error < 1e-5
    leftovers = [name for name, _ in result.model.named_parameters() if "gamma" in name]
    assert leftovers == []

    bundle = build_bundle(network, tmp_path / "hand", example_inputs=(x,))
    assert bundle.fold_report()["counts"]["folded"] == 3
    kinds = {node.op_type for node in onnx.load(bundle.model_path).graph.node}
    assert kinds <= {"Conv", "Relu", "Flatten", "Reshape", "Gemm"}
    statistics = bundle.statistics()
    assert sorted(statistics["1"]) == ["beta", "eps", "gamma", "mean", "variance"]
    assert (statistics["1"]["variance"] == network[1].moving_variance.numpy()).all()


def test_an_onnx_file_becomes_a_bundle(repository: Path, tmp_path: Path) -> None:
    reference = load_bundle(repository / "models/digits-cnn/1").reference_path
    held_out = load_checkpoint(repository / "runs/digits-cnn").held_out()
    bundle = build_bundle(reference, tmp_path / "net", data=held_out, labels=tuple("0123456789"), output_kind="logits")
    assert bundle.manifest.source["file"] == "reference.onnx"
    assert bundle.parity()["holds"] is True
    assert bundle.manifest.output_kind == "logits"
    labels = bundle.goldens()[0].labels
    assert labels is not None
    assert (labels == held_out[1]).all()


def test_an_onnx_file_without_data_gets_made_up_inputs(repository: Path, tmp_path: Path) -> None:
    reference = load_bundle(repository / "models/digits-mlp/1").reference_path
    bundle = build_bundle(reference, tmp_path / "net")
    assert bundle.manifest.output_kind == "raw"
    assert bundle.goldens()[0].labels is None
    assert bundle.parity()["holds"] is True


def test_a_factory_with_weights_becomes_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_network.py").write_text(
        textwrap.dedent("""
        from torch import nn
        def make():
            return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_network  # type: ignore[import-not-found]

    network = own_network.make()
    network[1].running_mean.normal_()
    network[1].running_var.uniform_(0.1, 2)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    bundle = build_bundle(
        "own_network:make", tmp_path / "models/own", weights=tmp_path / "w.safetensors", input_shape=(3, 6, 6)
    )
    assert bundle.fold_report()["counts"]["folded"] == 1
    assert (bundle.statistics()["1"]["mean"] == network[1].running_mean.numpy()).all()
    save_file({"0.weight": torch.zeros(1)}, tmp_path / "bad.safetensors")
    with pytest.raises(DataError, match="do not fit"):
        build_bundle("own_network:make", tmp_path / "x", weights=tmp_path / "bad.safetensors", input_shape=(3, 6, 6))
    sys.modules.pop("own_network")


def test_weights_that_would_run_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "plain_network.py").write_text("from torch import nn\ndef make(): return nn.Linear(2, 2)\n")
    # Pickle's protocol 0 for os.system("touch ..."), written by hand.
    (tmp_path / "w.pth").write_bytes(f"cos\nsystem\n(S'touch {ran}'\ntR.".encode())
    with pytest.raises(DataError, match="cannot be read"):
        build_bundle("plain_network:make", tmp_path / "x", weights=tmp_path / "w.pth", input_shape=(2,))
    assert not ran.exists()
    sys.modules.pop("plain_network")


def test_an_empty_file_of_weights_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "plain_network.py").write_text("from torch import nn\ndef make(): return nn.Linear(2, 2)\n")
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(DataError, match=r"w\.pth cannot be read: \w+"):
        build_bundle("plain_network:make", tmp_path / "x", weights=tmp_path / "w.pth", input_shape=(2,))
    sys.modules.pop("plain_network")


def test_a_refused_norm_stops_the_build_unless_allowed(repository: Path, tmp_path: Path) -> None:
    model = onnx.load(load_bundle(repository / "models/digits-cnn/1").reference_path)
    tensor = next(item for item in model.graph.initializer if item.name == "features.1.running_var")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0] = -1.0
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "bad.onnx")
    row = inspect(tmp_path / "bad.onnx").report.refused[0]
    assert (row.name, row.reason) == ("features.1", "NEGATIVE_VARIANCE")
    with pytest.raises(FoldError, match=r"features\.1.*NEGATIVE_VARIANCE"):
        build_bundle(tmp_path / "bad.onnx", tmp_path / "models/bad")
    assert not (tmp_path / "models").exists()


def test_inspecting_a_checkpoint_and_its_export_gives_the_same_rows(repository: Path) -> None:
    for name in ("digits-mlp", "digits-cnn", "digits-resnet"):
        through_torch = inspect(repository / "runs" / name).report
        through_onnx = inspect(load_bundle(repository / "models" / name / "1").reference_path).report
        for one, other in zip(through_torch.norms, through_onnx.norms, strict=True):
            # Operators have names of their own, and ONNX stores eps in float32.
            assert replace(one, where="", numbers=None) == replace(other, where="", numbers=None)
            assert one.where
            assert other.where
            for left, right in zip(astuple(one.numbers), astuple(other.numbers), strict=True):  # type: ignore[arg-type]
                assert abs(left - right) <= 1e-6 * left


@pytest.mark.parametrize(
    ("source", "message"),
    [("absent.onnx", "is not there"), ("absent:thing:x", "is not there"), ("no_such_module:make", "--input-shape")],
)
def test_a_source_that_cannot_be_opened_is_one_sentence(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(BnfoldError, match=message) as raised:
        build_bundle(source, tmp_path / "x")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def small(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), *layers).eval()
    network[2].running_mean.normal_()
    network[2].running_var.uniform_(0.5, 2.0)
    return network


class Casting(nn.Module):
    """Spells out the dtype that it works in, gives more than tensors, and gives a parameter away."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor]:
        return self.net(x.float() / 255), None, self.net[1].bias


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_the_truth_of_a_module_is_float64_whatever_it_spells_out(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 4)).astype(np.uint8)
    example = (torch.from_numpy(pixels[:2]),)
    bundle = build_bundle(Casting(), tmp_path / "casting", example_inputs=example, data=(pixels, None))
    golden = bundle.goldens()[0]
    assert [spec.dtype for spec in bundle.manifest.inputs] == ["uint8"]
    truth = golden.truth[bundle.manifest.outputs[0].name]
    assert (truth != truth.astype(np.float32)).any()

    with_history = nn.Sequential(small(), nn.utils.weight_norm(nn.Linear(4, 4)))  # its weight cannot be deep-copied
    build_bundle(with_history, tmp_path / "history", example_inputs=(torch.randn(2, 3, 4),))


def graph(*, ir_version: int = 8, inputs: tuple[onnx.ValueInfoProto, ...] = ()) -> onnx.ModelProto:
    """Gemm -> BatchNormalization -> y, with the constants w and v, and more graph inputs if wanted."""
    rng = np.random.default_rng(0)
    stored = {name: rng.uniform(0.5, 2.0, 4).astype(np.float32) for name in ("g", "b", "m", "v")}
    stored["w"] = rng.standard_normal((12, 4)).astype(np.float32)
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, number, [None, size]) for name, size in (("x", 12), ("y", 4)))
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in stored.items()]
    listed = [helper.make_tensor_value_info(name, number, array.shape) for name, array in stored.items()]
    given = [x, *inputs, *(listed if ir_version < 4 else [])]
    made = helper.make_graph(nodes, "small", given, [y], constants)
    return helper.make_model(made, ir_version=ir_version, opset_imports=[helper.make_opsetid("", 11)])


def test_a_graph_that_lists_its_constants_as_inputs_becomes_a_bundle(tmp_path: Path) -> None:
    """Up to IR version 3 every initialiser had to be listed."""
    bundle = build_bundle(graph(ir_version=3), tmp_path / "old")
    assert [spec.name for spec in bundle.manifest.inputs] == ["x"]
    for path in (bundle.model_path, bundle.reference_path):
        assert [value.name for value in onnx.load(path).graph.input] == ["x"]
    assert bundle.fold_report()["counts"]["folded"] == 1


def test_a_constant_that_a_caller_may_override_has_no_place_in_a_bundle(tmp_path: Path) -> None:
    listed = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [12, 4])
    with pytest.raises(FoldError, match="'w' is both an input and a constant"):
        build_bundle(graph(inputs=(listed,)), tmp_path / "x")


def test_a_graph_of_text_or_in_no_order_is_one_sentence(tmp_path: Path) -> None:
    text = onnx.helper.make_tensor_value_info("t", onnx.TensorProto.STRING, [None])
    with pytest.raises(FoldError, match="'t' of the graph is of type STRING"):
        build_bundle(graph(inputs=(text,)), tmp_path / "x")
    model = ir.from_proto(graph())
    first = model.graph[0]
    model.graph.remove(first)
    model.graph.append(first)
    with pytest.raises(FoldError, match="order"):
        build_bundle(model, tmp_path / "x")


def test_probabilities_lie_between_0_and_1(tmp_path: Path) -> None:
    example = (torch.randn(2, 3, 4),)
    with pytest.raises(DataError, match="expected probabilities"):
        build_bundle(small(), tmp_path / "x", example_inputs=example, output_kind="probabilities")
    assert not (tmp_path / "x").exists()
    network = small(nn.Softmax(1))
    bundle = build_bundle(network, tmp_path / "x", example_inputs=example, output_kind="probabilities")
    assert bundle.manifest.output_kind == "probabilities"


def test_one_name_to_keep_and_one_file_of_labels_may_be_plain_strings(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n")
    example = (torch.randn(2, 3, 4),)
    labels: Any = str(tmp_path / "labels.txt")
    bundle = build_bundle(small(), tmp_path / "x", example_inputs=example, labels=labels, keep="2")
    assert bundle.manifest.labels == ("a", "b", "c", "d")
    assert [row["reason"] for row in bundle.fold_report()["norms"]] == ["KEEP_ASKED"]
    assert [row.reason for row in inspect(small(), example_inputs=example, keep="2").report.norms] == ["KEEP_ASKED"]


def test_the_choices_and_the_fate_of_every_parameter_are_in_the_bundle(tmp_path: Path) -> None:
    network = small(nn.Linear(4, 4), nn.Linear(4, 4))
    network[4].weight = network[3].weight
    network.register_buffer("unused", torch.ones(3))
    example = (torch.randn(2, 3, 4),)
    bundle = build_bundle(network, tmp_path / "x", example_inputs=example, moves=["linear_to_norm"], keep=["2"])
    report = bundle.fold_report()
    assert (report["moves"], report["keep"]) == (["linear_to_norm"], ["2"])
    bundle = build_bundle(network, tmp_path / "x", example_inputs=example)
    found = {item.name: item for item in bundle.manifest.parameters}
    stored = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers())
    assert found.keys() == stored.keys()
    assert all(found[name].sha256 == hash_tensor(tensor.detach().numpy()) for name, tensor in stored.items())
    folded = {"1.weight", "1.bias", "2.weight", "2.bias", "2.running_mean", "2.running_var"}
    assert {name for name, item in found.items() if item.fate == "folded"} >= folded
    assert {name for name, item in found.items() if item.fate == "gone"} == {"2.num_batches_tracked", "unused"}
    assert found["3.weight"].into == found["4.weight"].into
    assert {name for name in ("3.weight", "4.weight") if found[name].fate == "unchanged"}
    left = {tensor.name for tensor in onnx.load(bundle.model_path).graph.initializer if tensor.data_type == 1}
    assert {tensor for item in found.values() for tensor in item.into} == left
    (bound,) = bundle.fold_report()["bounds"]
    assert (bound["linear"], bound["norms"], bound["x"], len(bound["channels"])) == ("1", ["2"], 1.0, 4)
    assert bundle.fold_report()["norms"][0]["numbers"]["max_scale"] > 0


def test_a_fold_that_is_wrong_is_not_written(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the whole pipeline: break the fold itself, and nothing leaves the house."""
    carry_out = onnx_graph.carry_out

    def broken(model: ir.Model, edits: Any) -> Any:
        folded, fold_map = carry_out(model, edits)
        value = next(v for name, v in folded.graph.initializers.items() if name.endswith("weight.folded"))
        array = value.const_value.numpy().copy()  # type: ignore[union-attr]
        array.reshape(-1)[0] = np.nextafter(array.reshape(-1)[0], np.float32(np.inf))
        value.const_value = ir.tensor(array, name=value.name)
        return folded, fold_map

    monkeypatch.setattr(onnx_graph, "carry_out", broken)
    with pytest.raises(bnfold.ParityError, match=r"weight\.folded"):
        build_bundle(repository / "runs/digits-cnn", tmp_path / "models/x")
    assert not list(tmp_path.rglob("*.onnx"))
