"""What checkpoint.json says of a network: written, checked on reading, and built again.

A network of this package stands there by its kind; one of the user's own by the name of the code that makes it, which
is run for nobody who does not give that name himself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from bnfold.documents import Fields
from bnfold.errors import BundleError, DataError
from bnfold.factories import is_spec
from bnfold.training.networks import KINDS, build_network, read_args
from bnfold.training.networks.factory import make_network, read_arguments, without_storage

_FACTORY = "factory"


def network_document(kind: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Of a recipe's kind, or of its module:factory."""
    named = {"kind": _FACTORY, "factory": kind} if is_spec(kind) else {"kind": kind}
    return {**named, "args": dict(args)}


def check_network(document: object, what: str) -> None:
    """Raise BundleError for what `network_document` does not write. what: how a sentence names the checkpoint's."""
    has_factory = isinstance(document, Mapping) and document.get("kind") == _FACTORY
    network = Fields.of(document, f"{what}, network,", ("kind", *([_FACTORY] if has_factory else []), "args"))
    args, faults = network.values["args"], _Arguments(f"{what}, network.args,")
    if not isinstance(args, Mapping):
        network.refuse("args", "an object")
    if not has_factory:
        read_args(network.choice("kind", (*KINDS, _FACTORY)), args, faults)
        return
    if not is_spec(network.text(_FACTORY)):
        network.refuse(_FACTORY, "module:factory")
    read_arguments(args, faults)


def factory_of(network: Mapping[str, Any]) -> str | None:
    """The `module:factory` in a document; None for a network of this package."""
    return str(network[_FACTORY]) if network["kind"] == _FACTORY else None


def check_factory(network: Mapping[str, Any], given: str | None, path: Path) -> None:
    """Raise DataError unless the caller names the code that a checkpoint needs, and no other. path: of it."""
    named = factory_of(network)
    if named == given:
        return
    if named is None:
        raise DataError(
            f"the network of {path} is a '{network['kind']}' of this package, and the code '{given}' was given for it; "
            "leave that out"
        )
    if given is None:
        raise DataError(
            f"the network of {path} is made by the code '{named}', which is not this package's and is run to open it; "
            f"if you trust that code, say so with --network {named} (in Python: factory='{named}')"
        )
    raise DataError(
        f"the network of {path} is made by the code '{named}', and '{given:.300}' was given for it; give that name if "
        "you trust the code"
    )


def build(
    network: Mapping[str, Any], shape: tuple[int, ...], classes: int, fits: Callable[[Mapping[str, torch.Tensor]], None]
) -> nn.Module:
    """The network of a checked document; one of this package without storage. fits: raises unless a state dict is that
    of the weights at hand.
    """
    args = dict(network["args"])
    factory = factory_of(network)
    # Without storage first: a document that asks for terabytes is refused by the tensors that are there.
    if factory is None:
        with torch.device("meta"):
            module = build_network(network["kind"], shape, classes, args)
    else:
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers are as they were
            blank = without_storage(factory, shape, classes, args, (Path.cwd(),))
            if blank is not None:
                fits(blank)
            module = make_network(factory, shape, classes, args, (Path.cwd(),))
    fits(module.state_dict())
    return module


@dataclass(frozen=True)
class _Arguments:
    """The arguments of the network in a document; what is wrong with them is one sentence."""

    what: str

    def unknown(self, name: str, known: tuple[str, ...]) -> NoReturn:
        raise BundleError(f"{self.what} has the unknown key {name!r:.80}; expected only {', '.join(known)}")

    def missing(self, name: str) -> NoReturn:
        raise BundleError(f"{self.what} has no key {name!r}; expected it")

    def refused(self, name: str, value: object, expected: str) -> NoReturn:
        raise BundleError(f"{self.what} has {value!r:.80} as {name!r:.80}; expected {expected}")
