"""A client of `bnfold serve`: predictions, inference with arrays, and what the server says of its models.

    with Client("http://127.0.0.1:8000") as client:
        found = client.infer("digits-cnn", {"input": pixels})
        found.outputs["logits"], found.proof.digest

It needs neither torch nor ONNX Runtime. Threads may share one: each call has a connection to itself, and connections
are kept for the next. Every failure is a BnfoldError: ServerError with the status of HTTP, 0 where no answer came;
DataError for what cannot be sent or read. An answer of 503 is waited for as its Retry-After says and asked for again,
at most `retries` times within the time-out, by every call that changes nothing; `load` and `unload` are sent once.
"""

from __future__ import annotations

import json
import ssl
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.answers import Inference, Metadata, ModelVersion, Predictions, Proof
from bnfold.datatypes import DATATYPES
from bnfold.errors import DataError, ServerError
from bnfold.remote import TIMEOUT, Reply, Session
from bnfold.wire import Array, read_response, write_request, write_rows

_BUSY = 503
_MOST_KEY_BYTES = 2**16


class Client:
    """A server at an address.

    key, admin_key: a key as text, or the Path of a file of which the first key is taken; `load` and `unload` use
    admin_key. ca: a PEM file of certificates to trust instead of the system's. timeout: seconds for one call with its
    retries. Raises BnfoldError for an address, a key or a file that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | Path | None = None,
        admin_key: str | Path | None = None,
        ca: Path | None = None,
        timeout: float = TIMEOUT,
        retries: int = 2,
    ) -> None:
        if "?" in url or "#" in url:
            raise DataError("the address of a server has no ? and no #; expected one like http://127.0.0.1:8000")
        self._session = Session(url.rstrip("/"), _trust(ca))
        self._key = _read_key(key)
        self._admin_key = _read_key(admin_key) or self._key
        self._timeout = timeout
        self._retries = retries

    def predict(
        self,
        data: str | Path | bytes | Array | Sequence[Any] | Mapping[str, Any],
        model: str | None = None,
        top: int = 5,
    ) -> Predictions:
        """One prediction for each row. data: a picture as a path or as its bytes; or rows as an array or nested lists,
        by name where the model has several inputs. model: may be left out where there is one. top: so many classes.
        """
        if isinstance(data, str | Path | bytes):
            body, headers = _read_picture(data), {"Content-Type": "application/octet-stream"}
        else:
            body, headers = _write_rows(data)
        where = "" if model is None else f"/models/{_quoted(model)}"
        return Predictions.read(self._ask(f"{where}/predict?top={int(top)}", body, headers))

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        version: str | int | None = None,
        *,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> Inference:
        """The outputs for inputs by name, as blobs in both directions, and their proof.

        outputs: these alone, None for all. version: None for the one in service. timeout: seconds that the server may
        take. priority: 1 for the most urgent.
        """
        arrays = {name: _checked(name, array) for name, array in inputs.items()}
        parameters: dict[str, int | bool] = {}
        if timeout is not None:
            parameters["timeout"] = max(1, round(timeout * 1e6))  # microseconds
        if priority is not None:
            parameters["priority"] = priority
        body, headers = write_request(arrays, outputs, binary=True, parameters=parameters)
        reply = self._ask(f"{_model(model, version)}/infer", body, headers)
        return Inference(read_response(reply, None), Proof.read(reply))

    def models(self) -> tuple[ModelVersion, ...]:
        """Every version of every model, its state, and why it is not served."""
        return ModelVersion.read(self._ask("/v2/repository/index", b"{}"))

    def metadata(self, model: str, version: str | int | None = None) -> Metadata:
        """Versions, inputs and outputs of a model."""
        return Metadata.read(self._ask(_model(model, version)))

    def ready(self, model: str | None = None, version: str | int | None = None) -> bool:
        """Whether every model, or this one, is here and proven, and the server is not stopping. It is asked once."""
        if model is None:
            return self._ask("/v2/health/ready", retries=0, accepts=(200, _BUSY)).status == 200
        return self._ask(f"{_model(model, version)}/ready", retries=0, accepts=(200, 404, _BUSY)).status == 200

    def parity(self, model: str) -> dict[str, Any]:
        """The proof: what the load gate found, what was refused and why, parity.json."""
        return _object(self._ask(f"{_model(model)}/parity"))

    def statistics(self, model: str | None = None) -> list[dict[str, Any]]:
        """Counts and nanoseconds of every version in service, as Triton has them."""
        path = "/v2/models/stats" if model is None else f"{_model(model)}/stats"
        found = _object(self._ask(path)).get("model_stats")
        if not isinstance(found, list):
            raise DataError("the answer holds no statistics; expected the server of `bnfold serve`")
        return found

    def load(self, model: str, version_policy: str | None = None) -> None:
        """Prove a model again and serve it. version_policy: latest, latest:N, all, specific:1,3; None: the server's."""
        document = {"parameters": {"version_policy": version_policy}} if version_policy else {}
        self._change(model, "load", document)

    def unload(self, model: str) -> None:
        """Take a model out of service, once the requests that use it are answered."""
        self._change(model, "unload", {})

    def close(self) -> None:
        """Close the connections that are kept."""
        self._session.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _change(self, model: str, what: str, document: Mapping[str, Any]) -> None:
        path, body = f"/v2/repository/models/{_quoted(model)}/{what}", json.dumps(document).encode()
        headers = {"Content-Type": "application/json"}
        reply = self._session.ask(
            path, body, {**headers, **_bearer(self._admin_key)}, seconds=self._timeout, repeatable=False
        )
        _check(path, reply, (200,))

    def _ask(
        self,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        retries: int | None = None,
        accepts: tuple[int, ...] = (200,),
    ) -> Reply:
        """One answer of an accepted status, to a question that changes nothing."""
        end = time.monotonic() + self._timeout
        left = self._retries if retries is None else retries
        while True:
            seconds = max(0.001, end - time.monotonic())
            reply = self._session.ask(path, body, {**(headers or {}), **_bearer(self._key)}, seconds=seconds)
            pause = _pause(reply) if left > 0 and reply.status == _BUSY and _BUSY not in accepts else None
            if pause is None or time.monotonic() + pause >= end:
                _check(path, reply, accepts)
                return reply
            left -= 1
            time.sleep(pause)


def _pause(reply: Reply) -> float | None:
    """The seconds after which a server asks to be tried again."""
    value = reply.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() and len(value) < 6 else None


def _check(path: str, reply: Reply, accepts: tuple[int, ...]) -> None:
    if reply.status not in accepts:
        raise ServerError(f"{path} answered {reply.status}: {reply.error()}", reply.status)


def _object(reply: Reply) -> dict[str, Any]:
    try:
        document = reply.document()
    except ValueError as problem:
        raise DataError(f"the answer is no JSON ({str(problem)[:120]})") from None
    if not isinstance(document, dict):
        raise DataError("the answer is no JSON object; expected the server of `bnfold serve`")
    return document


def _model(model: str, version: str | int | None = None) -> str:
    return f"/v2/models/{_quoted(model)}" + ("" if version is None else f"/versions/{_quoted(str(version))}")


def _quoted(name: str) -> str:
    if not name or name in (".", ".."):
        raise DataError(f"{name!r} is no name of a model or version; `models()` lists what there is")
    return urllib.parse.quote(name, safe="")


def _checked(name: str, array: Array) -> Array:
    found = np.asarray(array)
    if found.dtype.name not in DATATYPES:
        known = ", ".join(DATATYPES)
        raise DataError(f"input {name!r} is an array of {found.dtype}, expected one of {known}; convert it with astype")
    return found


def _read_picture(data: str | Path | bytes) -> bytes:
    if isinstance(data, bytes):
        return data
    try:
        return Path(data).read_bytes()
    except OSError as problem:
        raise DataError(f"{data} cannot be read ({problem.strerror}); expected a picture") from None


def _write_rows(data: Array | Sequence[Any] | Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    try:
        if isinstance(data, Mapping):
            return write_rows({name: np.asarray(rows) for name, rows in data.items()})
        if isinstance(data, np.ndarray):
            return write_rows({"": data})
        return json.dumps({"instances": list(data)}, allow_nan=False).encode(), {"Content-Type": "application/json"}
    except (TypeError, ValueError, RecursionError) as problem:
        raise DataError(
            f"the rows cannot be sent as JSON ({str(problem)[:120]}); expected finite numbers, nested alike; "
            "`infer` sends NaN and infinity too"
        ) from None


def _bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def _read_key(key: str | Path | None) -> str | None:
    """A key, from its file where it is a path. It is never shown. Raises DataError."""
    where = "the key"
    if isinstance(key, Path):
        where = f"the key file {key}"
        try:
            with key.open("rb") as stream:
                lines = stream.read(_MOST_KEY_BYTES).decode("ascii", "replace").splitlines()
        except OSError as problem:
            raise DataError(f"{where} cannot be read ({problem.strerror}); expected a file with a key a line") from None
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        key = found[0] if found else ""
    if key is not None and not (key and all(0x21 <= ord(letter) <= 0x7E for letter in key)):
        raise DataError(f"{where} is empty, or has a space or a special character; expected letters of ASCII")
    return key


def _trust(ca: Path | None) -> ssl.SSLContext | None:
    if ca is None:
        return None
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as problem:  # ssl.SSLError is one
        raise DataError(
            f"the certificates in {ca} cannot be used ({problem.strerror or problem}); expected a PEM file"
        ) from None
