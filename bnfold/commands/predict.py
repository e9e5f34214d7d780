"""`bnfold predict`: one prediction, on this machine or from a server."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.commands.options import Commands, add_command

if TYPE_CHECKING:
    from bnfold.commands.console import Console


def add(commands: Commands) -> None:
    """Declare the parser."""
    parser = add_command(
        commands, "predict", run, "Ask a bundle or a running server for a prediction. Prints class, label, probability."
    )
    parser.add_argument(
        "model",
        metavar="BUNDLE-or-URL",
        help="a version folder, a model folder for its newest version, or the URL of a server, as in "
        "http://127.0.0.1:8000 (with several models: http://127.0.0.1:8000/models/NAME)",
    )
    parser.add_argument(
        "input",
        metavar="INPUT",
        type=Path,
        help="an image (PNG, JPEG, WebP), a .npy array, or a .json nested list; "
        "arrays for a server have the batch first",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cuda", "cpu"),
        default="cpu",
        help="where a bundle runs; a server decides for itself (default: cpu)",
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Print one line for every sample of the input."""
    remote = options.model.startswith(("http://", "https://"))
    document = _ask(options.model, options.input) if remote else _predict(options)
    console.result(document, "\n".join(_line(row) for row in document["predictions"]))
    return 0


def _predict(options: argparse.Namespace) -> dict[str, Any]:
    from bnfold.bundle import load_bundle
    from bnfold.commands.versions import find_version
    from bnfold.prediction import predict

    bundle = load_bundle(find_version(Path(options.model)))
    predictions = predict(bundle, options.input, device=options.device)
    return {
        "model": bundle.manifest.name,
        "version": bundle.manifest.version,
        "predictions": [prediction.to_dict() for prediction in predictions],
    }


def _line(row: Mapping[str, Any]) -> str:
    """`class 7  label "seven"  probability 0.998`, or the raw outputs as JSON."""
    if "class" not in row:
        return json.dumps(row)
    label = row.get("label")
    named = "" if label is None else f"  label {json.dumps(label, ensure_ascii=False)}"
    return f"class {row['class']}{named}  probability {row['probability']:.6f}"


def _ask(url: str, file: Path) -> dict[str, Any]:
    from bnfold.errors import BnfoldError, DataError
    from bnfold.remote import ask

    if not file.is_file():
        raise DataError(f"{file} is not there or no file; expected an image, a .npy array, or a .json document")
    target = url.rstrip("/") + ("" if url.rstrip("/").endswith("/predict") else "/predict")
    body, kind = _body(file)
    reply = ask(target, body, {"Content-Type": kind})
    if reply.status != 200:
        raise BnfoldError(f"{target} answered {reply.status}: {reply.error()}")
    try:
        document = reply.document()
    except ValueError:
        document = None
    rows = document.get("predictions") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(map(_is_prediction, rows)):
        raise BnfoldError(f"{target} answered something that is no prediction; expected the /predict of `bnfold serve`")
    return dict(document)


def _is_prediction(row: object) -> bool:
    if not isinstance(row, dict):
        return False
    return "outputs" in row or (isinstance(row.get("class"), int) and isinstance(row.get("probability"), int | float))


def _body(file: Path) -> tuple[bytes, str]:
    """The body to send and its content type; arrays travel as JSON rows."""
    if file.suffix not in (".json", ".npy"):
        return file.read_bytes(), "application/octet-stream"
    from bnfold.prediction import read_json, read_npy

    rows = read_json(file) if file.suffix == ".json" else read_npy(file).tolist()
    document = rows if isinstance(rows, dict) and "instances" in rows else {"instances": rows}
    return json.dumps(document).encode(), "application/json"
