"""The commands on ONNX files, as a host without torch uses them: inspect, fold-and-export, verify, predict."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_networks import CLASSES, save_network, tree
from onnx import numpy_helper
from PIL import Image

from bnfold.bundle import load_bundle
from bnfold.cli import main

ROOT = Path(__file__).resolve().parent.parent
LABELS = ["circle", "square", "triangle"]
PREPROCESSING = {"mode": "L", "height": 8, "width": 8, "scale": 1 / 255, "mean": [0.0], "std": [1.0]}

# Everything that the extras `torch` and `dev` bring and a serving host does not have.
NOT_THERE = ("torch", "torchvision", "onnxscript", "sklearn", "scipy", "matplotlib", "pandas", "httpx", "hypothesis")


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def assert_one_sentence(err: str) -> None:
    assert len(err.splitlines()) == 1, err
    assert err.startswith("bnfold: ")
    assert "unexpected error" not in err


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/small/1, built by the command line from an ONNX file."""
    folder = tmp_path_factory.mktemp("cli")
    save_network(folder / "small.onnx")
    numbers = np.random.default_rng(5)
    samples = numbers.uniform(0, 1, (20, 1, 8, 8)).astype(np.float32)
    np.savez(folder / "samples.npz", input=samples, labels=numbers.integers(0, CLASSES, 20))
    (folder / "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")
    (folder / "preprocessing.json").write_text(json.dumps(PREPROCESSING), encoding="utf-8")
    options = ["--data", "samples.npz", "--labels", "labels.txt", "--preprocessing", "preprocessing.json"]
    command = [sys.executable, "-m", "bnfold", "fold-and-export", "small.onnx", "-o", "models/small", *options]
    ran = subprocess.run(
        [*command, "--output-kind", "logits", "--json"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    document = json.loads(ran.stdout)
    assert folder / document["bundle"] == folder / "models" / "small" / "1"
    assert document["fold"]["counts"]["folded"] == 1
    return folder / "models"


def test_inspect_prints_a_row_for_every_norm(tmp_path, capsys):
    code, out, err = call(capsys, "inspect", save_network(tmp_path / "small.onnx"))
    assert (code, err) == (0, "")
    assert "norm  into conv  folded" in out
    assert "1 norm found: 1 folded" in out


def test_inspect_json_is_the_report(tmp_path, capsys):
    code, out, _ = call(capsys, "inspect", save_network(tmp_path / "small.onnx"), "--keep", "norm", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["counts"]["kept"] == 1
    assert document["norms"][0]["name"] == "norm"


def test_inspect_writes_a_page_and_gives_numbers(tmp_path, capsys):
    source, page = save_network(tmp_path / "small.onnx"), tmp_path / "page.html"
    code, out, _ = call(capsys, "inspect", source, "--numbers", "2.5", "--html", page)
    assert code == 0
    assert "amplification" in out
    assert "|x| <= 2.5" in out
    assert out.rstrip().endswith("page.html")
    assert "<title>small.onnx: what folds</title>" in page.read_text()
    assert str(tmp_path) not in page.read_text()
    code, out, _ = call(capsys, "inspect", source, "--numbers", "2.5", "--html", page, "--json")
    document = json.loads(out)
    assert document["html"] == str(page)
    (bound,) = document["bounds"]
    assert (bound["norms"], bound["x"], len(bound["channels"])) == (["norm"], 2.5, 4)
    assert document["norms"][0]["numbers"]["max_scale"] > 0
    assert (document["moves"], document["keep"], document["declined"]) == ("default", [], [])


def test_inspect_writes_nothing_else(tmp_path, capsys):
    source = save_network(tmp_path / "small.onnx")
    before = tree(tmp_path)
    assert call(capsys, "inspect", source, "--numbers", "1")[0] == 0
    assert tree(tmp_path) == before
    code, _, err = call(capsys, "inspect", source, "--html", source)
    assert code == 2
    assert_one_sentence(err)
    assert tree(tmp_path) == before


def test_moves_and_norms_to_keep_are_passed_on_and_recorded(tmp_path, capsys):
    source = save_network(tmp_path / "small.onnx")
    options = ("--keep", "no*", "--moves", "linear_to_norm,norm_to_linear")
    code, out, _ = call(capsys, "inspect", source, *options, "--json")
    shown = json.loads(out)
    assert code == 0
    code, _, _ = call(capsys, "fold-and-export", source, "-o", tmp_path / "models" / "x", *options)
    assert code == 0
    stored = load_bundle(tmp_path / "models" / "x" / "1").fold_report()
    for document in (shown, stored):
        assert (document["moves"], document["keep"]) == (["linear_to_norm", "norm_to_linear"], ["no*"])
        assert document["norms"][0]["reason"] == "KEEP_ASKED"


@pytest.mark.parametrize("wrong", [("--keep", "absent"), ("--moves", "teleport"), ("--html", "no/page.html")])
def test_choices_that_fit_nothing_are_one_sentence(tmp_path, capsys, wrong):
    code, _, err = call(capsys, "inspect", save_network(tmp_path / "small.onnx"), *wrong)
    assert code == 2
    assert_one_sentence(err)


@pytest.mark.parametrize(("fault", "reason"), [({"variance": np.nan}, "NON_FINITE"), ({"training": True}, "TRAINING")])
def test_refused_norm_is_a_row_of_inspect_and_stops_fold_and_export(tmp_path, capsys, fault, reason):
    source = save_network(tmp_path / "small.onnx", **fault)
    before = tree(tmp_path)
    code, out, _ = call(capsys, "inspect", source)
    assert code == 0
    assert "refused" in out
    assert reason in out
    code, out, err = call(capsys, "fold-and-export", source, "-o", tmp_path / "models" / "small")
    assert (code, out) == (2, "")
    assert_one_sentence(err)
    assert "'norm'" in err
    assert reason in err
    assert tree(tmp_path) == before
    assert not (tmp_path / "models").exists()


def test_missing_file_is_one_sentence(tmp_path, capsys):
    for command in (["inspect"], ["fold-and-export", "-o", tmp_path / "models" / "x"]):
        code, out, err = call(capsys, *command, tmp_path / "nothing.onnx")
        assert (code, out) == (2, "")
        assert_one_sentence(err)
        assert "nothing.onnx" in err
    assert tree(tmp_path) == {}


def test_text_file_named_onnx_is_one_sentence(tmp_path, capsys):
    source = tmp_path / "poem.onnx"
    source.write_text("not a graph\n" * 50, encoding="utf-8")
    before = tree(tmp_path)
    for command in (["inspect"], ["fold-and-export", "-o", tmp_path / "models" / "x"]):
        code, out, err = call(capsys, *command, source)
        assert (code, out) == (2, "")
        assert_one_sentence(err)
        assert "poem.onnx" in err
    assert tree(tmp_path) == before


def test_version_that_exists_is_not_written_again(repository, capsys):
    before = tree(repository)
    code, out, err = call(capsys, "fold-and-export", repository.parent / "small.onnx", "-o", repository / "small" / "1")
    assert (code, out) == (2, "")
    assert_one_sentence(err)
    assert "exist" in err or "there" in err
    assert tree(repository) == before


def test_next_version_is_counted_up_and_is_the_one_that_a_model_folder_means(repository, tmp_path, capsys):
    source = repository.parent / "small.onnx"
    for expected in ("1", "2"):
        code, out, _ = call(capsys, "fold-and-export", source, "-o", tmp_path / "models" / "twice", "--json")
        assert code == 0
        assert Path(json.loads(out)["bundle"]) == tmp_path / "models" / "twice" / expected
    np.save(tmp_path / "sample.npy", np.zeros((1, 8, 8), np.float32))
    code, out, _ = call(capsys, "predict", tmp_path / "models" / "twice", tmp_path / "sample.npy", "--json")
    assert (code, json.loads(out)["version"]) == (0, 2)


def test_verify_says_that_parity_holds_with_exit_code_0(repository, capsys):
    code, out, err = call(capsys, "verify", repository / "small" / "1")
    assert (code, err) == (0, "")
    assert out.strip()
    code, out, _ = call(capsys, "verify", repository / "small", "--json")
    assert code == 0
    assert json.loads(out)


def test_verify_of_a_changed_file_gives_exit_code_1(repository, tmp_path, capsys):
    broken = tmp_path / "small" / "1"
    shutil.copytree(repository / "small" / "1", broken)
    model = onnx.load(broken / "model.onnx")
    (tensor,) = (item for item in model.graph.initializer if len(item.dims) == 4)
    values = numpy_helper.to_array(tensor).copy()
    values[2] *= 1.001
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, broken / "model.onnx")
    code, out, _ = call(capsys, "verify", broken)
    assert code == 1
    assert "model.onnx" in out
    assert tensor.name in out


def test_verify_of_what_is_no_bundle_gives_exit_code_2(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "nothing"):
        code, out, err = call(capsys, "verify", path)
        assert (code, out) == (2, "")
        assert_one_sentence(err)


@pytest.mark.parametrize("kind", ["npy", "npy without batch", "json", "json instances", "json by name", "png"])
def test_predict_answers_as_the_reference_does_for_every_kind_of_input(repository, tmp_path, capsys, kind):
    bundle = load_bundle(repository / "small" / "1")
    pixels = np.random.default_rng(8).integers(0, 256, (8, 8), np.uint8)
    sample = (pixels / np.float32(255)).astype(np.float32)[np.newaxis, np.newaxis]
    file = tmp_path / f"input.{kind.split()[0]}"
    if kind == "npy":
        np.save(file, sample)
    elif kind == "npy without batch":
        np.save(file, sample[0])
    elif kind == "png":
        Image.fromarray(pixels).save(file)
    else:
        document = {"json": sample.tolist(), "json instances": {"instances": sample.tolist()}}
        file.write_text(json.dumps(document.get(kind, {"input": sample.tolist()})), encoding="utf-8")
    code, out, err = call(capsys, "predict", repository / "small", file, "--json")
    assert (code, err) == (0, "")
    (row,) = json.loads(out)["predictions"]

    from onnx.reference import ReferenceEvaluator

    (logits,) = ReferenceEvaluator(str(bundle.reference_path)).run(None, {"input": sample})
    probabilities = np.exp(logits[0] - logits[0].max())
    probabilities /= probabilities.sum()
    assert row["class"] == probabilities.argmax()
    assert row["label"] == LABELS[row["class"]]
    assert abs(row["probability"] - probabilities.max()) < 1e-5


def test_predict_refuses_a_bundle_whose_fold_is_wrong_though_its_hashes_fit(repository, tmp_path, capsys):
    broken = tmp_path / "small" / "1"
    shutil.copytree(repository / "small" / "1", broken)
    model = onnx.load(broken / "model.onnx")
    tensor = next(item for item in model.graph.initializer if item.name.endswith(".folded"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.001), tensor.name))
    onnx.save(model, broken / "model.onnx")
    manifest = json.loads((broken / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = hashlib.sha256((broken / "model.onnx").read_bytes()).hexdigest()
    (broken / "manifest.json").write_text(json.dumps(manifest))
    np.save(tmp_path / "one.npy", np.zeros((1, 1, 8, 8), np.float32))
    code, out, err = call(capsys, "predict", broken, tmp_path / "one.npy")
    assert (code, out) == (2, "")
    assert_one_sentence(err)
    assert tensor.name in err


def test_predict_prints_a_line_for_a_person(repository, tmp_path, capsys):
    np.save(tmp_path / "two.npy", np.zeros((2, 1, 8, 8), np.float32))
    code, out, _ = call(capsys, "predict", repository / "small", tmp_path / "two.npy")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 2)
    assert lines[0] == lines[1]
    assert lines[0].startswith("class ")
    assert any(f'label "{label}"' in lines[0] for label in LABELS)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("note.png", b"this is no image", "image"),
        ("cut.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "image"),
        ("text.json", b"{", "JSON"),
        ("ragged.json", b"[[1, 2], [3]]", "unequal"),
        ("words.json", b'["a", "b"]', "numbers"),
        ("shape.json", b"[[1.0, 2.0]]", "shape [1, 2]"),
        ("null.json", b"null", "input"),
        ("empty.json", b"[]", "shape [0]"),
        ("bad.npy", b"\x93NUMPY rubbish", ".npy"),
        ("missing.npy", None, "not there"),
    ],
)
def test_predict_of_a_wrong_input_is_one_sentence(repository, tmp_path, capsys, name, content, found):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, out, err = call(capsys, "predict", repository / "small", tmp_path / name)
    assert (code, out) == (2, "")
    assert_one_sentence(err)
    assert name in err
    assert found in err


def test_predict_refuses_arrays_that_hold_no_numbers(repository, tmp_path, capsys):
    np.savez(tmp_path / "archive.npz", input=np.zeros((1, 1, 8, 8), np.float32))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    np.save(tmp_path / "complex.npy", np.zeros((1, 1, 8, 8), np.complex64))
    np.save(tmp_path / "date.npy", np.zeros((1, 1, 8, 8), "datetime64[s]"))
    for name in ("archive.npy", "complex.npy", "date.npy"):
        for model in (repository / "small", "http://127.0.0.1:9"):  # a server is not even asked
            code, out, err = call(capsys, "predict", model, tmp_path / name)
            assert (code, out) == (2, "")
            assert_one_sentence(err)
            assert name in err


def _outputs(path: Path, *, total_first: bool) -> Path:
    """The small network with the mean of its logits as another output, one number for all samples."""
    model = onnx.load(save_network(path))
    model.graph.node.append(onnx.helper.make_node("ReduceMean", ["logits"], ["total"], keepdims=0))
    total = onnx.helper.make_tensor_value_info("total", onnx.TensorProto.FLOAT, [])
    model.graph.output.insert(0 if total_first else 1, total)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("total_first", [True, False])
def test_predict_gives_raw_outputs_in_one_piece_where_they_do_not_count_the_samples(tmp_path, capsys, total_first):
    source = _outputs(tmp_path / "small.onnx", total_first=total_first)
    assert call(capsys, "fold-and-export", source, "-o", tmp_path / "models" / "raw", "--output-kind", "raw")[0] == 0
    np.save(tmp_path / "two.npy", np.random.default_rng(1).random((2, 1, 8, 8), np.float32))
    code, out, err = call(capsys, "predict", tmp_path / "models" / "raw", tmp_path / "two.npy", "--json")
    assert (code, err) == (0, "")
    (row,) = json.loads(out)["predictions"]
    assert np.shape(row["outputs"]["logits"]) == (2, CLASSES)
    assert row["outputs"]["total"] == pytest.approx(np.mean(row["outputs"]["logits"]), rel=1e-5)
    assert call(capsys, "predict", tmp_path / "models" / "raw", tmp_path / "two.npy")[0] == 0


def test_predict_refuses_labels_that_are_not_one_for_each_score(tmp_path, capsys):
    source = save_network(tmp_path / "small.onnx")
    model = onnx.load(source)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"  # what the manifest cannot check
    onnx.save(model, source)
    (tmp_path / "labels.txt").write_text("one\n", encoding="utf-8")
    options = ("--labels", tmp_path / "labels.txt", "--output-kind", "logits")
    assert call(capsys, "fold-and-export", source, "-o", tmp_path / "models" / "few", *options)[0] == 0
    np.save(tmp_path / "sample.npy", np.zeros((1, 1, 8, 8), np.float32))
    code, out, err = call(capsys, "predict", tmp_path / "models" / "few", tmp_path / "sample.npy")
    assert (code, out) == (2, "")
    assert_one_sentence(err)
    assert "3 scores" in err
    assert "1, one for each label" in err


def test_predict_refuses_pickled_objects(repository, tmp_path, capsys):
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    code, _, err = call(capsys, "predict", repository / "small", tmp_path / "objects.npy")
    assert code == 2
    assert_one_sentence(err)


def test_cuda_without_a_device_is_one_sentence(repository, tmp_path, capsys):
    import onnxruntime

    from bnfold.errors import BnfoldError
    from bnfold.runtime import open_session

    try:
        open_session(repository / "small" / "1" / "model.onnx", optimise=True, device="cuda")
    except BnfoldError:
        pass
    else:
        pytest.skip(f"onnxruntime {onnxruntime.__version__} has a CUDA device here")
    np.save(tmp_path / "sample.npy", np.zeros((1, 8, 8), np.float32))
    code, out, err = call(capsys, "predict", repository / "small", tmp_path / "sample.npy", "--device", "cuda")
    assert (code, out) == (2, "")
    assert_one_sentence(err)
    assert "cuda" in err.lower()


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "small.onnx"],
        ["fold-and-export", "small.onnx", "-o", "{tmp}/models/small"],
        ["verify", "models/small/1"],
        ["predict", "models/small", "{tmp}/sample.npy"],
        ["serve", "--help"],
    ],
)
def test_works_where_torch_and_its_friends_are_not_installed(repository, tmp_path, arguments):
    np.save(tmp_path / "sample.npy", np.zeros((1, 8, 8), np.float32))
    words = [word.replace("{tmp}", str(tmp_path)) for word in arguments]
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({NOT_THERE!r}))\n"
        "from bnfold.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=repository.parent, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_torch_sources_without_torch_say_what_to_install():
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({NOT_THERE!r}))\n"
        "from bnfold.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    for words in (["train", str(ROOT / "models" / "digits-cnn" / "recipe.toml")], ["inspect", "torch.nn:Identity"]):
        ran = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert_one_sentence(ran.stderr)
        assert "extra `torch`" in ran.stderr
