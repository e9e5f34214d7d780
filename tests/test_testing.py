"""assert_parity: right folds by others hold, wrong ones fail, and the message says what is wrong."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from testing_networks import (
    another_axis,
    channel_broken,
    eps_dropped,
    fused,
    images,
    network,
    stale_statistics,
)
from torch import nn
from torch.nn.utils.fusion import fuse_linear_bn_eval  # noqa: TID251 - the peer that is judged

import bnfold
from bnfold.errors import BnfoldError, DataError, ParityError
from bnfold.export import export_model
from bnfold.testing import ParityFailure, assert_parity

WRONG = {
    eps_dropped: ("conv.weight", "the epsilon was dropped"),
    channel_broken: ("conv.weight", "channel 3 is multiplied by 1.001"),
    another_axis: ("fc.weight", "wrong axis"),
    stale_statistics: ("conv.weight", "stale statistics"),
}


def onnx_pair(fold=None) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The network as ONNX, and its fold: by this package, or by another one in torch."""
    model = export_model(network(), (images(),))
    return model, bnfold.fold(model).model if fold is None else export_model(fold(network()), (images(),))


@pytest.mark.parametrize("seed", range(3))
def test_fold_by_torch_is_consistent_with_rounding(seed: int):
    module = network(seed)
    proof = assert_parity(module, fused(module), images(), labels=torch.zeros(32, dtype=torch.int64))
    assert proof.holds is True
    assert [tier.tier for tier in proof.tiers] == ["T1", "T3", "T4"]
    assert proof.tier("T1").summary["consistent_with_rounding"] == 4
    assert 0.5 < proof.tier("T1").summary["worst_ulp_weight"] < 3
    assert "T2 is left out" in proof.to_text()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fold", WRONG, ids=lambda fold: fold.__name__)
def test_wrong_fold_fails_and_the_message_names_tensor_channel_and_cause(fold, seed: int):
    module = network(seed)
    with pytest.raises(ParityFailure) as failure:
        assert_parity(module, fold(module), images())
    text = " ".join(str(failure.value).split())
    tensor, cause = WRONG[fold]
    assert text.startswith("the folded Network is not a right fold of Network (T1")
    assert f"tensor '{tensor}'" in text
    assert cause in text
    assert "channel" in text
    assert "next: mend the fold" in text
    assert max(map(len, str(failure.value).splitlines())) <= 120
    assert len(str(failure.value).splitlines()) < 40
    assert failure.value.proof.holds is False
    assert isinstance(failure.value, AssertionError)
    assert isinstance(failure.value, BnfoldError)


def test_tolerances_fail_right_folds_and_pass_wrong_ones():
    module = network()
    inputs = 8 * images(256)
    with torch.no_grad():
        true, right, wrong = (net(inputs) for net in (module, fused(module), eps_dropped(module)))
    assert float((true - right).abs().max()) > 1e-6
    assert float((true - wrong).abs().max()) < 1e-3
    assert not torch.allclose(true, right, rtol=0, atol=1e-6)
    assert torch.allclose(true, wrong, rtol=0, atol=1e-3)
    assert assert_parity(module, fused(module), inputs).holds
    with pytest.raises(AssertionError, match="epsilon was"):
        assert_parity(module, eps_dropped(module), inputs)


def test_own_fold_has_every_tier():
    model, folded = onnx_pair()
    proof = assert_parity(model, folded, images().numpy())
    assert [(tier.tier, tier.status) for tier in proof.tiers] == [(t, "holds") for t in ("T1", "T2", "T3", "T4")]
    assert proof.tier("T2").summary["sites"] == 2
    assert not proof.report.notes


def test_wrong_number_in_own_fold_breaks_its_local_bound():
    model, folded = onnx_pair()
    weight = next(tensor for tensor in folded.graph.initializer if len(tensor.dims) == 4)
    array = onnx.numpy_helper.to_array(weight).copy()
    array[5] *= 1.5
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    with pytest.raises(ParityFailure) as failure:
        assert_parity(model, folded, images().numpy())
    assert {tier.tier for tier in failure.value.proof.tiers if tier.status == "fails"} >= {"T1", "T2", "T3"}


def test_every_kind_of_network_and_of_inputs_is_taken(tmp_path: Path):
    module, inputs = network(), images()
    model, folded = onnx_pair()
    onnx.save(model, tmp_path / "model.onnx")
    program = torch.export.export(module, (inputs,))
    array = inputs.numpy()
    for left, right, given in (
        (model, folded, array),
        (tmp_path / "model.onnx", folded.SerializeToString(), (array,)),
        (str(tmp_path / "model.onnx"), fused(module), [array[:16], (array[16:],)]),
        (module, folded, {"x": inputs}),
        (program, fused(module), inputs),
    ):
        proof = assert_parity(left, right, given)
        assert proof.holds
        assert proof.tier("T3").summary["inputs"] == 32


def test_mixed_pair_with_a_wrong_fold_fails():
    model, folded = onnx_pair(eps_dropped)
    for left in (model, network()):
        with pytest.raises(ParityFailure, match="epsilon was"):
            assert_parity(left, folded, images())


def test_networks_and_generator_stay_as_they_were():
    module = network()
    folded = fused(module)
    module.fc.weight.requires_grad_(False)
    states = [copy.deepcopy(net.state_dict()) for net in (module, folded)]
    generator = torch.get_rng_state()
    numbers = np.random.get_state()[1].copy()
    assert_parity(module, folded, images())
    assert torch.equal(generator, torch.get_rng_state())
    assert np.array_equal(numbers, np.random.get_state()[1])
    assert not module.training
    assert not module.fc.weight.requires_grad
    assert module.conv.weight.requires_grad
    assert module.conv.weight.grad is None
    for net, state in zip((module, folded), states, strict=True):
        assert net.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_network_that_cannot_be_exported_is_not_proven_but_may_be_measured():
    class Odd(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) if float(x.sum()) > -1e9 else x

    module = Odd(network()).eval()
    folded = Odd(fused(network())).eval()
    with pytest.raises(ParityFailure, match="cannot tell whether") as failure:
        assert_parity(module, folded, images())
    assert failure.value.proof.holds is None
    proof = assert_parity(module, folded, images(), tiers=("T3", "T4"))
    assert [tier.tier for tier in proof.tiers] == ["T3", "T4"]
    with pytest.raises(ParityFailure, match=r"\(T3\)"):
        assert_parity(module, Odd(channel_broken(network())).eval(), images(), tiers=("T3", "T4"))


def test_module_in_training_mode_is_refused_with_one_sentence():
    module = network()
    with pytest.raises(ParityError, match=r"folded is in training mode.*call \.eval\(\)"):
        assert_parity(module, fused(module).train(), images())
    module.bn.train()
    with pytest.raises(ParityError, match="'bn' of model is in training mode"):
        assert_parity(module, fused(network()), images())


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        ({"model": 3}, TypeError, "model is a int; expected a torch.nn.Module"),
        ({"model": "weights.bin"}, DataError, "weights.bin"),
        ({"folded": "gone.onnx"}, DataError, "folded is the path gone.onnx, where nothing is; expected an .onnx file"),
        ({"inputs": "x"}, TypeError, "inputs hold a str"),
        ({"inputs": []}, DataError, "empty list"),
        ({"inputs": torch.full((2, 3, 8, 8), torch.nan)}, DataError, "NaN"),
        ({"inputs": torch.zeros(2, 4, 8, 8)}, DataError, "cannot be run on the inputs"),
        ({"inputs": {"y": torch.zeros(2, 3, 8, 8)}}, DataError, "expected the names of the model's inputs"),
        ({"labels": [1, 2, 3]}, DataError, "labels have shape"),
        ({"tiers": ("T9",)}, DataError, "'T9'"),
        ({"tiers": "T1"}, DataError, "expected a tuple"),
        ({"output_kind": "classes"}, DataError, "output_kind"),
    ],
)
def test_arguments_that_do_not_fit_are_told_in_one_sentence(change, kind, match):
    module = network()
    given = {"model": module, "folded": fused(module), "inputs": images(2), **change}
    with pytest.raises(kind, match=match) as problem:
        assert_parity(given.pop("model"), given.pop("folded"), given.pop("inputs"), **given)
    assert not isinstance(problem.value, ParityFailure)
    assert "\n" not in str(problem.value)
    if kind is DataError:  # and in the trace back, no line of the suite's own behind the call
        assert [entry.path.name for entry in problem.traceback[1:]] in ([], ["asserting.py"])


def test_module_loads_neither_torch_nor_onnxruntime_nor_pytest():
    code = "import sys, bnfold.testing; from bnfold.testing import assert_parity, ParityFailure\n"
    code += "print([name for name in ('torch', 'onnxruntime', 'pytest') if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_onnx_pair_is_proven_without_torch(tmp_path: Path):
    for name, proto in zip(("model", "folded"), onnx_pair(), strict=True):
        onnx.save(proto, tmp_path / f"{name}.onnx")
    np.save(tmp_path / "x.npy", images().numpy())
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np; from bnfold.testing import assert_parity\n"
        "print(assert_parity('model.onnx', 'folded.onnx', np.load('x.npy')).verdict())"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout.strip() == "folded is a right fold of model (T1, T2, T3, T4 hold)", ran.stderr


def test_right_fold_of_one_lucky_row_is_no_alarm():
    """Of one row the unfolded network may be exact by luck; how far re-rounded copies are apart then decides."""
    module = network()
    folded = fused(module)
    truth = copy.deepcopy(module).double()
    with torch.no_grad():
        rows = images(4000)
        error = (module(rows) - truth(rows.double())).abs().amax(1)
    lucky = rows[error.argmin()][None]
    assert assert_parity(module, folded, lucky, tiers=("T3",)).holds
    with pytest.raises(ParityFailure):
        assert_parity(module, channel_broken(module), lucky, tiers=("T3",))


class Speechless(Exception):
    """What cannot be made a text."""

    def __str__(self) -> str:
        raise RuntimeError("not even this")


class Mute(nn.Module):
    """A network that fails without a word."""

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        raise Speechless


def test_network_that_fails_without_a_word_is_a_sentence():
    with pytest.raises(DataError, match=r"model \(Mute\) cannot be run on the inputs: Speechless"):
        assert_parity(Mute().eval(), network(), images())
    with pytest.raises(ParityFailure, match="cannot be run on the inputs: Speechless"):
        assert_parity(network(), Mute().eval(), images())


class Twice(nn.Module):
    """A network that gives what another one gives, and its negative."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.inner(x)
        return y, -y


@pytest.mark.parametrize("tiers", [None, ("T1",)])
def test_another_number_of_outputs_is_a_sentence(tiers):
    one, two = fused(network()), Twice(network()).eval()
    with pytest.raises(ParityFailure, match="cannot tell") as failure:
        assert_parity(two, one, images(), tiers=tiers)
    (sentence,) = failure.value.proof.tier("T1").findings
    assert sentence == "FOLDED has 1 outputs, ORIGINAL 2; expected the same: they are not one network"


def dense_in_float64() -> tuple[nn.Sequential, nn.Sequential]:
    """A dense layer and its norm, and the fold of the two by torch; all in float64."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU()).double().eval()
    with torch.no_grad():
        module[1].running_mean.normal_(), module[1].running_var.uniform_(0.01, 0.5)
    return module, nn.Sequential(fuse_linear_bn_eval(module[0], module[1]), nn.ReLU()).eval()


def test_epsilon_of_a_float64_module_is_not_that_of_its_export():
    """ONNX states 1e-5 in float32, as 9.99999974738e-06: some thousand ulp of a float64 fold."""
    module, folded = dense_in_float64()
    inputs = torch.randn(20, 5, dtype=torch.float64)
    proof = assert_parity(module, folded, inputs)
    assert proof.tier("T1").headline.endswith("on biases")
    with torch.no_grad():
        folded[0].weight[2, 3] *= 1 + 1e-14
    with pytest.raises(ParityFailure, match="channel 2"):
        assert_parity(module, folded, inputs)


def test_epsilon_that_differs_in_its_last_digits_is_named():
    module, folded = dense_in_float64()
    inputs = torch.randn(20, 5, dtype=torch.float64)
    before, after = (export_model(part, (inputs,)) for part in (module, folded))
    with pytest.raises(ParityFailure, match=r"(?s)the epsilon was 1e-05\s+instead of\s+9\.99999974738e-06"):
        assert_parity(before, after, inputs.numpy(), tiers=("T1",))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_frozen_torchscript_is_measured_where_it_has_no_graph_to_prove():
    module = network()
    folded = torch.jit.freeze(torch.jit.trace(fused(module), images()))
    with pytest.raises(ParityFailure, match="cannot tell") as failure:
        assert_parity(module, folded, images())
    assert [tier.status for tier in failure.value.proof.report.tiers] == ["cannot tell", "holds", "holds"]
