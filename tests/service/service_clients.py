"""The four stock clients of the Triton server, unmodified, called one way; and the server that they meet."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import inspect
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from service_runs import Process, process
from tritonclient.utils import InferenceServerException

KINDS = ("http", "http.aio", "grpc", "grpc.aio")
KEY = "admin-key-of-the-tests"
ADMIN = {"authorization": f"Bearer {KEY}"}
_NOT_OFFERED = {"http": "501", "grpc": "StatusCode.UNIMPLEMENTED"}


@dataclass(frozen=True)
class Doors:
    """A server with both doors."""

    child: Process
    grpc: str

    @property
    def http(self) -> str:
        return self.child.url.removeprefix("http://")


@contextlib.contextmanager
def both_doors(repository: Path, folder: Path, **environment: str) -> Iterator[Doors]:
    """`bnfold serve --grpc-port` as a process of its own; load and unload take KEY."""
    keys = folder / "admin-keys"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o600)
    settings = {"BNFOLD_GRPC_PORT": "0", "BNFOLD_ADMIN_KEY_FILE": str(keys), "BNFOLD_THREADS": "1", **environment}
    with process(repository, folder, **settings) as child:
        found = re.search(r"gRPC on ([0-9.:]+)", child.text())
        assert found is not None, child.text()
        yield Doors(child, found[1])


@dataclass
class Client:
    """One client. A coroutine of an aio client is run to its end."""

    kind: str
    module: Any
    stock: Any
    _runner: asyncio.Runner | None = field(default=None)

    @property
    def is_grpc(self) -> bool:
        return self.kind.startswith("grpc")

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        found = getattr(self.stock, method)(*arguments, **options)
        return self.wait(found) if inspect.isawaitable(found) else found

    def wait(self, work: Any) -> Any:
        async def run() -> Any:
            return await work

        assert self._runner is not None
        return self._runner.run(run())

    def document(self, method: str, *arguments: Any, **options: Any) -> Any:
        """The answer as plain values; gRPC's JSON writes 64-bit numbers as text."""
        return self.call(method, *arguments, **options, **({"as_json": True} if self.is_grpc else {}))

    def tensor(self, name: str, array: np.ndarray, datatype: str, *, binary: bool = True) -> Any:
        tensor = self.module.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array, **({} if self.is_grpc else {"binary_data": binary}))
        return tensor

    def wanted(self, name: str, *, binary: bool = True, **options: Any) -> Any:
        return self.module.InferRequestedOutput(name, **options, **({} if self.is_grpc else {"binary_data": binary}))

    def infer(self, model: str, inputs: Sequence[Any], compression: str | None = None, **options: Any) -> Any:
        """compression: in both directions over HTTP, of the request over gRPC."""
        if compression is None:
            return self.call("infer", model, inputs, **options)
        if self.is_grpc:
            return self.call("infer", model, inputs, compression_algorithm=compression, **options)
        both = {"request_compression_algorithm": compression, "response_compression_algorithm": compression}
        return self.call("infer", model, inputs, **both, **options)

    def refuses(self, method: str, *arguments: Any, **options: Any) -> tuple[str, str]:
        """Status and message of a call that is an error."""
        try:
            self.call(method, *arguments, **options)
        except InferenceServerException as refusal:
            return str(refusal.status()), str(refusal.message())
        raise AssertionError(f"{method} was answered")

    @property
    def not_offered(self) -> str:
        return _NOT_OFFERED[self.kind.partition(".")[0]]


def module_of(kind: str) -> Any:
    return importlib.import_module(f"tritonclient.{kind}")


def public_methods(kind: str) -> list[str]:
    """Every call that a client has, whatever its release."""
    members = inspect.getmembers(module_of(kind).InferenceServerClient, callable)
    return [name for name, _ in members if not name.startswith("_")]


@contextlib.contextmanager
def _leaky() -> Iterator[None]:
    """tritonclient's aio client does not read the answers to is_model_ready, and lets their connections leak."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


@contextlib.contextmanager
def client_of(kind: str, doors: Doors) -> Iterator[Client]:
    """A client of a kind, closed at the end."""
    module = module_of(kind)
    address = doors.grpc if kind.startswith("grpc") else doors.http
    if not kind.endswith("aio"):
        with module.InferenceServerClient(address) as stock:
            yield Client(kind, module, stock)
        return
    with _leaky(), asyncio.Runner() as runner:

        async def make() -> Any:
            return module.InferenceServerClient(address)

        client = Client(kind, module, runner.run(make()), runner)
        try:
            yield client
        finally:
            client.call("close")
