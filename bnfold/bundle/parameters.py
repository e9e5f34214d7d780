"""Where every parameter of the source went: into which tensors of the folded model, unchanged, or nowhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

from bnfold.documents import Fields

Fate: TypeAlias = Literal["unchanged", "folded", "gone"]
FATES: tuple[Fate, ...] = ("unchanged", "folded", "gone")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Parameter:
    """One parameter or buffer of the source.

    sha256: its `hash_tensor`. fate: `unchanged` (the folded model has it under this name), `folded` (tensors of the
    folded model are made of it, among others), `gone`. into: those tensors of model.onnx. reason: why it is gone.
    """

    name: str
    sha256: str
    fate: Fate
    into: tuple[str, ...] = ()
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; `from_dict` reads them back."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "fate": self.fate,
            "into": list(self.into),
            "reason": self.reason,
        }

    @staticmethod
    def from_dict(document: object, what: str) -> Parameter:
        """Read what `to_dict` wrote. Raises BundleError on anything else."""
        fields = Fields.of(document, what, ("name", "sha256", "fate", "into", "reason"))
        into, name, reason = fields.items("into"), fields.values["name"], fields.values["reason"]
        if not isinstance(name, str) or not name:
            fields.refuse("name", "the name of a parameter")
        if not isinstance(reason, str):
            fields.refuse("reason", "text, empty for a parameter that is not gone")
        if not all(isinstance(tensor, str) and tensor for tensor in into):
            fields.refuse("into", "a list of names of tensors")
        if not _SHA256.fullmatch(fields.text("sha256")):
            fields.refuse("sha256", "64 lower-case hex digits")
        fate = cast(Fate, fields.choice("fate", FATES))
        if (fate == "gone") != (not into) or (fate == "gone") != bool(reason):
            fields.refuse("fate", "tensors that it went into, or 'gone' and a reason")
        return Parameter(name, fields.text("sha256"), fate, tuple(into), reason)


@dataclass(frozen=True)
class SourceParameter:
    """A parameter as the source has it. sha256: its `hash_tensor`. twins: other names of the same storage."""

    name: str
    sha256: str
    twins: tuple[str, ...] = field(default=())


def trace_parameters(
    source: Sequence[SourceParameter],
    reference: Mapping[str, str],
    folded: Mapping[str, str],
    fold_map: Sequence[Mapping[str, Any]],
) -> tuple[Parameter, ...]:
    """The fate of every parameter, in the order of the source.

    reference, folded: name of a tensor -> its `hash_tensor`, of the unfolded and of the folded model.
    """
    made_of: dict[str, dict[str, None]] = {}
    for entry in fold_map:
        for name in entry["from"]:
            made_of.setdefault(name, {})[str(entry["tensor"])] = None
    return tuple(_traced(item, reference, folded, made_of) for item in source)


def _traced(
    item: SourceParameter,
    reference: Mapping[str, str],
    folded: Mapping[str, str],
    made_of: Mapping[str, Mapping[str, None]],
) -> Parameter:
    names = [name for name in (item.name, *item.twins) if reference.get(name) == item.sha256]
    same = [name for name in names if folded.get(name) == item.sha256]
    into = tuple(dict.fromkeys([*same, *(tensor for name in names for tensor in made_of.get(name, ()))]))
    if into:
        return Parameter(item.name, item.sha256, "unchanged" if item.name in same else "folded", into)
    if not names and item.name.rpartition(".")[2] == _COUNTER:
        reason = "it counts batches of training; in eval mode nobody reads it"
    elif not names:
        reason = "the network in eval mode does not use it"
    else:
        reason = "nothing that is left in the folded network depends on it"
    return Parameter(item.name, item.sha256, "gone", (), reason)
