from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch_networks import CASES, Written, chain, conv, norm, randomised, wired

from bnfold import runtime
from bnfold.errors import ExportError
from bnfold.export import export_model, export_onnx


def network() -> nn.Module:
    """Every kind of layer that the exporter spells out at length: no biases, no gamma, flattening, by hand."""
    torch.manual_seed(0)
    layers = chain(
        conv(3, 4, 3, bias=False), norm(4), lambda: nn.ReLU(inplace=True), lambda: Written(4), nn.Dropout,
        lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False), norm(6, affine=False), nn.Flatten,
        lambda: nn.Linear(6 * 256, 5, bias=False), lambda: nn.BatchNorm1d(5, affine=False), lambda: nn.Linear(5, 4),
    )  # fmt: skip
    return randomised(layers()).eval()


X = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return export_model(network(), (X,))


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]


def test_the_graph_is_the_network_and_nothing_else(model: onnx.ModelProto) -> None:
    by_hand = ["Reshape", "Sub", "Reshape", "Add", "Sqrt", "Div", "Reshape", "Mul", "Reshape", "Add"]
    found = [node.op_type for node in model.graph.node]
    assert found[:3] == ["Conv", "BatchNormalization", "Relu"]
    assert sorted(found[3:13]) == sorted(by_hand)
    assert found[13:] == [
        "ConvTranspose", "BatchNormalization", "Reshape", "Gemm", "BatchNormalization", "Gemm"
    ]  # fmt: skip
    assert [len(node.input) for node in model.graph.node if node.op_type.startswith("Conv")] == [2, 2]


def test_every_parameter_stays_bit_for_bit_under_its_name(model: onnx.ModelProto) -> None:
    state = {name: tensor.numpy() for name, tensor in network().state_dict().items() if "num_batches" not in name}
    stored = initializers(model)
    assert set(state) <= set(stored)
    assert all(stored[name].tobytes() == array.tobytes() for name, array in state.items())
    added = {name: array for name, array in stored.items() if name not in state and array.dtype.kind == "f"}
    ones = {name for name, array in added.items() if array.ndim and np.all(array == 1)}
    zeros = {name for name, array in added.items() if array.ndim and np.all(array == 0)}
    assert (ones, zeros) == ({"6.weight", "9.weight"}, {"6.bias", "9.bias"})
    assert [float(array) for array in added.values() if not array.ndim] == [float(np.float32(1e-3))]


def test_names_are_those_of_arguments_and_the_same_each_time(model: onnx.ModelProto) -> None:
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["output"]
    assert [node.name for node in model.graph.node if node.op_type == "BatchNormalization"] == [
        "batch_norm", "batch_norm_1", "batch_norm_2"
    ]  # fmt: skip
    assert export_model(network(), (X,)).SerializeToString() == model.SerializeToString()


def test_the_batch_is_free_at_inputs_and_outputs(model: onnx.ModelProto) -> None:
    assert dims(model.graph.input[0]) == ["batch", 3, 10, 10]
    assert dims(model.graph.output[0]) == ["batch", 4]
    assert {size for value in model.graph.value_info for size in dims(value) if isinstance(size, str)} == {"batch"}
    session = runtime.open_session(model.SerializeToString(), optimise=False)
    module = network()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 10, 10)
        found = runtime.run(session, {"input": x.numpy()})["output"]
        with torch.no_grad():
            assert np.abs(found - module(x).numpy()).max() < 1e-4


def test_an_example_of_one_row_gives_the_same_file(model: onnx.ModelProto) -> None:
    assert export_model(network(), (X[:1],)).SerializeToString() == model.SerializeToString()


def test_the_batch_is_fixed_when_asked() -> None:
    model = export_model(network(), (X,), dynamic_batch=False)
    assert dims(model.graph.input[0]) == [2, 3, 10, 10]
    assert dims(model.graph.output[0]) == [2, 4]


def test_the_file_tells_nothing_of_the_machine(model: onnx.ModelProto, tmp_path: Path) -> None:
    assert not model.metadata_props
    assert not model.doc_string
    assert not model.graph.doc_string
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    for text in (str(Path.cwd()), str(Path(torch.__file__).parent), str(Path.home()), ".py", "stack_trace"):
        assert text.encode() not in model.SerializeToString()
    assert [(entry.domain, entry.version <= 26) for entry in model.opset_import] == [("", True)]
    assert model.ir_version <= 13
    path = tmp_path / "network.onnx"
    export_onnx(network(), (X,), path)
    assert [item.name for item in tmp_path.iterdir()] == ["network.onnx"]
    assert path.read_bytes() == model.SerializeToString()


def test_says_nothing_while_it_works(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_model(network(), (X,))
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


def test_the_module_is_left_as_it_was() -> None:
    module = network().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    export_model(module, (X,))
    assert all(inner.training for inner in module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_takes_names_and_moves_inner_ones_aside() -> None:
    module = CASES["two inputs"].module()
    inputs = CASES["two inputs"].inputs()
    model = export_model(module, inputs, input_names=["conv2d", "other"], output_names=["mul", "batch_norm"])
    assert [value.name for value in model.graph.input] == ["conv2d", "other"]
    assert [value.name for value in model.graph.output] == ["mul", "batch_norm"]
    session = runtime.open_session(model.SerializeToString(), optimise=False)
    found = runtime.run(session, {"conv2d": inputs[0].numpy(), "other": inputs[1].numpy()})
    assert np.array_equal(found["batch_norm"], inputs[1].numpy() * 2)


def test_names_outputs_by_the_keys_of_a_dict() -> None:
    case = CASES["output given out"]
    model = export_model(case.module(), case.inputs())
    assert [value.name for value in model.graph.output] == ["normed", "raw"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_names": ["a", "b"]}, "input names .* expected 1 different names"),
        ({"output_names": []}, "output names .* expected 1 different names"),
        ({"output_names": ["input"]}, "share a name"),
        ({"input_names": ["0.weight"]}, "is the name of a parameter"),
    ],
)
def test_refuses_names_that_do_not_fit(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_model(CASES["conv2d padded by name"].module(), (X,), **given)


def test_a_result_that_is_an_argument_or_given_twice_is_an_output_of_its_own() -> None:
    module = wired(lambda m, x: (x, (y := m.conv(x)), y), conv=conv(3, 4, 3))().eval()
    model = export_model(module, (X,))
    assert [value.name for value in model.graph.input] == ["inputs_0"]
    assert [value.name for value in model.graph.output] == ["output", "output_1", "output_2"]
    session = runtime.open_session(model.SerializeToString(), optimise=False)
    found = runtime.run(session, {model.graph.input[0].name: X.numpy()})
    assert np.array_equal(found["output"], X.numpy())
    assert np.array_equal(found["output_1"], found["output_2"])


def test_takes_arguments_and_results_in_containers_and_none() -> None:
    class Nested(nn.Module):
        def forward(self, pair: dict[str, torch.Tensor], scale: float) -> dict[str, Any]:
            return {"sum": pair["a"] + pair["b"], "none": None, "more": [pair["a"] * scale]}

    model = export_model(Nested(), ({"a": torch.ones(2, 3), "b": torch.ones(2, 3)}, 2.0))
    assert [value.name for value in model.graph.input] == ["pair_a", "pair_b"]
    assert [value.name for value in model.graph.output] == ["sum", "more"]


def test_instance_norm_with_statistics_is_batch_norm() -> None:
    case = CASES["instance norm with statistics"]
    model = export_model(case.module(), case.inputs())
    assert [node.op_type for node in model.graph.node] == ["Conv", "BatchNormalization"]


def test_says_that_a_network_fixes_its_batch() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(2, 300)

    with pytest.raises(ExportError, match=r"Fixed fixes the size of axis 0 .* dynamic_batch=False"):
        export_model(Fixed(), (X,))
    assert dims(export_model(Fixed(), (X,), dynamic_batch=False).graph.output[0]) == [2, 300]


def test_says_that_control_flow_depends_on_data() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(ExportError, match=r"Branching cannot be traced .*forward, line \d+ of test_onnx_model\.py"):
        export_model(Branching(), (X,))


@torch.library.custom_op("bnfold_tests::unknown", mutates_args=())
def unknown(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@unknown.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_names_an_operator_that_onnx_does_not_have(tmp_path: Path) -> None:
    class Custom(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return unknown(x)

    with pytest.raises(ExportError, match=r"Custom cannot be translated to ONNX: .*bnfold_tests") as caught:
        export_onnx(Custom(), (X,), tmp_path / "custom.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_says_what_the_runtime_cannot_run(tmp_path: Path) -> None:
    case = CASES["float64"]
    with pytest.raises(ExportError, match=r"does not run: .*Conv.*module\.float\(\)") as caught:
        export_onnx(case.module(), case.inputs(), tmp_path / "wide.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_leaves_what_was_there_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ExportError):
        export_onnx(CASES["float64"].module(), CASES["float64"].inputs(), path)
    assert path.read_bytes() == b"old"
    export_onnx(CASES["linear"].module(), CASES["linear"].inputs(), path)
    onnx.checker.check_model(onnx.load(path))


def test_says_that_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be written: No such file or directory"):
        export_onnx(CASES["linear"].module(), CASES["linear"].inputs(), tmp_path / "nowhere" / "network.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ExportError, match="cannot be written"):
        export_onnx(CASES["linear"].module(), CASES["linear"].inputs(), tmp_path / "folder.onnx")
    assert [item.name for item in tmp_path.iterdir()] == ["folder.onnx"]


def test_needs_an_example() -> None:
    with pytest.raises(ExportError, match="needs example_inputs"):
        export_model(network(), ())


def test_half_precision_stays_half() -> None:
    case = CASES["float16"]
    model = export_model(case.module(), case.inputs())
    assert {array.dtype.name for array in initializers(model).values()} <= {"float16", "int64"}
