"""What a server answers, read with suspicion: it comes from outside. Raises DataError for what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bnfold.errors import DataError
from bnfold.remote import Reply
from bnfold.wire import Array


@dataclass(frozen=True)
class Proof:
    """What answered: version, sha256 of its model.onnx, what it ran on, and the id that the server's log has."""

    model: str
    version: str
    digest: str
    provider: str
    request_id: str

    @staticmethod
    def read(reply: Reply) -> Proof:
        """From the headers; empty where another server sends none."""
        names = ("bnfold-model", "bnfold-model-version", "bnfold-model-digest", "bnfold-provider", "x-request-id")
        return Proof(*(reply.headers.get(name, "") for name in names))


@dataclass(frozen=True)
class Inference:
    """Outputs by name, and their proof. The arrays can be read only; `.copy()` gives one that can be written."""

    outputs: Mapping[str, Array]
    proof: Proof


@dataclass(frozen=True)
class Chance:
    """One class. label: None for a model without labels."""

    index: int
    label: str | None
    probability: float

    @staticmethod
    def read(entry: Any) -> Chance:
        """From JSON."""
        with _Fitting("class"):
            index, label, probability = entry["class"], entry.get("label"), entry["probability"]
            if type(index) is not int or not isinstance(label, str | None) or not isinstance(probability, int | float):
                raise TypeError
            return Chance(index, label, float(probability))


@dataclass(frozen=True)
class Prediction:
    """The answer for one row: the likeliest class and those after it; or, of a model that gives none, its outputs."""

    best: Chance | None
    top: tuple[Chance, ...] = ()
    outputs: Mapping[str, Any] | None = None

    @staticmethod
    def read(row: Any) -> Prediction:
        """From JSON."""
        with _Fitting("prediction"):
            if "outputs" in row:
                return Prediction(None, (), dict(row["outputs"]))
            return Prediction(Chance.read(row), tuple(map(Chance.read, row["top"])))


@dataclass(frozen=True)
class Predictions:
    """One prediction for each row, and their proof."""

    rows: tuple[Prediction, ...]
    proof: Proof

    @staticmethod
    def read(reply: Reply) -> Predictions:
        """From the answer of /predict."""
        with _Fitting("answer of /predict"):
            return Predictions(tuple(map(Prediction.read, reply.document()["predictions"])), Proof.read(reply))


@dataclass(frozen=True)
class Tensor:
    """An input or output. datatype: as the protocol names it. shape: -1 where the size is free."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @staticmethod
    def read(entry: Any) -> Tensor:
        """From JSON."""
        with _Fitting("tensor"):
            return Tensor(str(entry["name"]), str(entry["datatype"]), tuple(map(int, entry["shape"])))


@dataclass(frozen=True)
class Metadata:
    """A model: the versions in service, its inputs and outputs."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @staticmethod
    def read(reply: Reply) -> Metadata:
        """From the answer of /v2/models/NAME."""
        with _Fitting("metadata of a model"):
            found = reply.document()
            sides = [tuple(map(Tensor.read, found[side])) for side in ("inputs", "outputs")]
            versions = tuple(map(str, found.get("versions", ())))
            return Metadata(str(found["name"]), versions, str(found.get("platform", "")), *sides)


@dataclass(frozen=True)
class ModelVersion:
    """A version in the repository. state: READY where it is served. reason: why it is not."""

    name: str
    version: str
    state: str
    reason: str

    @staticmethod
    def read(reply: Reply) -> tuple[ModelVersion, ...]:
        """From the repository's index."""
        with _Fitting("index of a repository"):
            keys = ("name", "version", "state", "reason")
            return tuple(ModelVersion(*(str(entry.get(key, "")) for key in keys)) for entry in reply.document())


class _Fitting:
    """Turn what goes wrong in reading into one sentence."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: object) -> None:
        if isinstance(problem, ValueError | KeyError | TypeError | AttributeError):
            raise DataError(f"the answer is no {self._what}; expected the server of `bnfold serve`") from None
