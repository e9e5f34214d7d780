"""Networks with batch norm, by name: one file each, with the keys that a recipe may say of it.

mlp.py     plain_cnn.py  resnet.py  vgg_bn.py  mobilenet.py  densenet.py  repvgg.py  airbench.py
kind.py    what a kind is
layers.py  a layer with its norm and its activation; initial weights
stages.py  stages of blocks
norms.py   norms by name      handwritten.py  batch_renorm.py
factory.py networks that the user's own code gives
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import nn

from bnfold.errors import DataError, first_line
from bnfold.training.fields import Faults, read
from bnfold.training.networks import airbench, densenet, mlp, mobilenet, plain_cnn, repvgg, resnet, vgg_bn
from bnfold.training.networks.kind import Kind
from bnfold.training.networks.layers import initialise

_FILES = (mlp, plain_cnn, resnet, vgg_bn, mobilenet, densenet, repvgg, airbench)
KINDS: Mapping[str, Kind] = {each.KIND.name: each.KIND for each in _FILES}


def read_args(kind: object, values: Mapping[str, object], faults: Faults) -> Any:
    """The arguments of a kind, checked. Raises what `faults` raises."""
    if not isinstance(kind, str) or kind not in KINDS:
        faults.refused("kind", kind, f"one of {', '.join(KINDS)}, or module:factory in a recipe")
    return read(KINDS[kind].args, values, faults)


def build_network(kind: str, shape: tuple[int, ...], classes: int, args: Mapping[str, Any]) -> nn.Module:
    """A network by its kind. shape: of one input, without the batch; args: as a recipe or a checkpoint has them.

    Raises DataError for a kind that is not known or arguments that it cannot take.
    """
    checked = read_args(kind, args, _Arguments(kind))
    try:
        with torch.device("meta"):  # without storage: what does not fit together is known before any work is done
            KINDS[kind].build(shape, classes, checked)(torch.zeros(2, *shape))
        return initialise(KINDS[kind].build(shape, classes, checked), checked.init)
    except (TypeError, ValueError, RuntimeError, IndexError) as problem:
        raise DataError(
            f"network '{kind}' cannot be built from {dict(args)!s:.200} for inputs {list(shape)}: "
            f"{first_line(problem)}; change the network's keys or the size of the inputs"
        ) from None


class _Arguments:
    """The arguments of a network, where no file is known."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def unknown(self, name: str, known: tuple[str, ...]) -> NoReturn:
        raise DataError(f"network '{self._kind}' takes no '{name}'; known are {', '.join(known)}")

    def missing(self, name: str) -> NoReturn:
        raise DataError(f"network '{self._kind}' needs '{name}'; give it")

    def refused(self, name: str, value: object, expected: str) -> NoReturn:
        if name == "kind":
            raise DataError(f"network '{value}' is not known; expected {expected}")
        raise DataError(f"network '{self._kind}' has {value!r:.80} as '{name}'; expected {expected}")
