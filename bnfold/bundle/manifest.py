"""manifest.json: the schema of a deployment bundle, as frozen dataclasses that refuse what is outside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from bnfold.bundle.parameters import Parameter
from bnfold.documents import Fields
from bnfold.errors import BundleError
from bnfold.preprocessing import Preprocessing

SCHEMA_VERSION = 1

MANIFEST = "manifest.json"
MODEL = "model.onnx"
SIDECAR = "model.onnx.data"
REFERENCE = "reference.onnx"
STATISTICS = "statistics.safetensors"
FOLD = "fold.json"
PARITY = "parity.json"
PARITY_PAGE = "parity.html"
TRUTH = "golden/truth.safetensors"

REQUIRED_FILES = (MODEL, REFERENCE, STATISTICS, FOLD, PARITY, TRUTH)
OPTIONAL_FILES = (SIDECAR, PARITY_PAGE)
MAX_FILES = 10_000
MAX_RANK = 32
MAX_ELEMENTS = 2**31  # of one row of an input or output: the free sizes count as 1

OUTPUT_KINDS = ("logits", "probabilities", "raw")
DTYPES = (
    "float16", "bfloat16", "float32", "float64", "bool",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GOLDEN_FILE = re.compile(r"golden/test_data_set_(?:0|[1-9][0-9]{0,3})/(?:input|output)_(?:0|[1-9][0-9]{0,3})\.pb")
_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_KEYS = (
    "schema_version", "name", "version", "source", "inputs", "outputs", "output_kind", "labels", "preprocessing",
    "fold_map", "source_tensors", "tool_versions", "files", "created",
)  # fmt: skip
_LATER_KEYS = ("parameters",)  # bundles of release 0.1.0 do not have them


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of the model. dtype: numpy's name of it. shape: -1 where the size is free."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; `from_dict` reads them back."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @staticmethod
    def from_dict(document: object, what: str) -> TensorSpec:
        """Read what `to_dict` wrote. Raises BundleError on anything else."""
        fields = Fields.of(document, what, ("name", "dtype", "shape"))
        shape = fields.items("shape")
        elements = 1
        for size in shape:
            if type(size) is not int or size < -1:
                fields.refuse("shape", "a list of sizes, -1 where free")
            elements *= max(size, 1)
            if elements > MAX_ELEMENTS or len(shape) > MAX_RANK:
                fields.refuse("shape", f"at most {MAX_ELEMENTS} elements in at most {MAX_RANK} dimensions")
        return TensorSpec(fields.text("name"), fields.choice("dtype", DTYPES), tuple(shape))


@dataclass(frozen=True)
class Manifest:
    """What a bundle says about itself.

    source: where the network came from, `kind` and other texts, never an absolute path. fold_map: one object a
    folded tensor. source_tensors: name of a tensor of the reference -> its `hash_tensor`. files: path in the bundle
    -> sha256, for every file but manifest.json. created: UTC, `YYYY-MM-DDTHH:MM:SSZ`. parameters: where each parameter
    of the source went.
    """

    schema_version: int
    name: str
    version: int
    source: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    output_kind: Literal["logits", "probabilities", "raw"]
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    fold_map: tuple[Mapping[str, Any], ...]
    source_tensors: Mapping[str, str]
    tool_versions: Mapping[str, str]
    files: Mapping[str, str]
    created: str
    parameters: tuple[Parameter, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The document of manifest.json; `from_dict` reads it back."""
        return {
            "schema_version": self.schema_version,
            "name": self.name,
            "version": self.version,
            "source": dict(self.source),
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
            "output_kind": self.output_kind,
            "labels": None if self.labels is None else list(self.labels),
            "preprocessing": None if self.preprocessing is None else self.preprocessing.to_dict(),
            "fold_map": [dict(entry) for entry in self.fold_map],
            "source_tensors": dict(sorted(self.source_tensors.items())),
            "parameters": [parameter.to_dict() for parameter in self.parameters],
            "tool_versions": dict(sorted(self.tool_versions.items())),
            "files": dict(sorted(self.files.items())),
            "created": self.created,
        }

    @staticmethod
    def from_dict(document: Mapping[str, Any], what: str = MANIFEST) -> Manifest:
        """Read the document of a manifest. Raises BundleError on anything outside the schema."""
        version = document.get("schema_version")
        if type(version) is not int or version != SCHEMA_VERSION:
            raise BundleError(
                f"{what} has {version!r:.40} as 'schema_version'; expected {SCHEMA_VERSION};"
                " use the release of bnfold that wrote it, or build the bundle again"
            )
        fields = Fields.of(document, what, _KEYS, _LATER_KEYS)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            name=check_name(fields.text("name"), what),
            version=fields.integer("version", 1, 10**9 - 1),
            source=_source(fields),
            inputs=_specs(fields, "inputs"),
            outputs=_specs(fields, "outputs"),
            output_kind=cast(Literal["logits", "probabilities", "raw"], fields.choice("output_kind", OUTPUT_KINDS)),
            labels=_labels(fields),
            preprocessing=_preprocessing(fields),
            fold_map=_objects(fields, "fold_map"),
            source_tensors=_hashes(fields, "source_tensors"),
            tool_versions=fields.texts("tool_versions"),
            files=_files(fields),
            created=_created(fields),
            parameters=_parameters(fields),
        )
        _check_labels(manifest, fields)
        _check_preprocessing(manifest, fields)
        return manifest


def check_name(name: str, what: str) -> str:
    """A model's name: letters, digits, `_`, `-` and, not first, `.`. Raises BundleError otherwise."""
    if not _NAME.fullmatch(name):
        raise BundleError(
            f"{what} has {name!r:.150} as the name of the model; expected 1 to 128 of A-Z a-z 0-9 _ . - and no dot"
            " first; rename it"
        )
    return name


def parse_version(name: str) -> int | None:
    """The version that the name of a folder stands for; None when it is no version (`07`, `0`, `.writing-1f`)."""
    return int(name) if _VERSION.fullmatch(name) else None


def _source(fields: Fields) -> dict[str, str]:
    source = fields.texts("source")
    if not source.get("kind"):
        fields.refuse("source", "an object of strings with the key 'kind'")
    for value in source.values():
        if re.match(r"[/\\~]|[A-Za-z]:[/\\]|file:", value) or ".." in re.split(r"[/\\]", value):
            fields.refuse("source", "names without absolute paths or '..'")
    return source


def _specs(fields: Fields, key: str) -> tuple[TensorSpec, ...]:
    items = fields.items(key)
    specs = tuple(TensorSpec.from_dict(item, f"{fields.what}, {key}[{at}],") for at, item in enumerate(items))
    if not specs or len({spec.name for spec in specs}) != len(specs):
        fields.refuse(key, "at least one tensor, each name once")
    if key == "outputs" and any(spec.name == "labels" for spec in specs):
        fields.refuse(key, f"outputs of another name than 'labels', which {TRUTH} has for the true classes")
    return specs


def _labels(fields: Fields) -> tuple[str, ...] | None:
    if fields.values["labels"] is None:
        return None
    labels = fields.items("labels")
    for label in labels or [None]:
        if not isinstance(label, str) or not label or len(label) > 1000 or not label.isprintable():
            fields.refuse("labels", "null or a list of printable texts, one a class")
    return tuple(labels)


def _preprocessing(fields: Fields) -> Preprocessing | None:
    value = fields.values["preprocessing"]
    return None if value is None else Preprocessing.from_dict(value, f"{fields.what}, preprocessing,")


def _objects(fields: Fields, key: str) -> tuple[Mapping[str, Any], ...]:
    items = fields.items(key)
    if not all(isinstance(item, Mapping) for item in items):
        fields.refuse(key, "a list of objects")
    return tuple(items)


def _hashes(fields: Fields, key: str) -> dict[str, str]:
    hashes = fields.texts(key)
    for name, digest in hashes.items():
        if not name or not _SHA256.fullmatch(digest):
            fields.refuse(key, "names with sha256 hashes, 64 lower-case hex digits each")
    return hashes


def _parameters(fields: Fields) -> tuple[Parameter, ...]:
    items = fields.items("parameters") if "parameters" in fields.values else ()
    found = tuple(Parameter.from_dict(item, f"{fields.what}, parameters[{at}],") for at, item in enumerate(items))
    if len({parameter.name for parameter in found}) != len(found):
        raise BundleError(f"{fields.what} has a parameter twice; expected each name once; build the bundle again")
    return found


def _files(fields: Fields) -> dict[str, str]:
    files = _hashes(fields, "files")
    if len(files) > MAX_FILES:
        raise BundleError(
            f"{fields.what} lists {len(files)} files; expected at most {MAX_FILES}; build the bundle again"
        )
    for path in files:
        if path not in REQUIRED_FILES and path not in OPTIONAL_FILES and not _GOLDEN_FILE.fullmatch(path):
            raise BundleError(
                f"{fields.what} lists the file {path!r:.120}, which is outside the schema; expected the files of a"
                " bundle; build the bundle again"
            )
    for path in REQUIRED_FILES:
        if path not in files:
            raise BundleError(
                f"{fields.what} has no {path} among its files; expected every file of a bundle; build it again"
            )
    return files


def _created(fields: Fields) -> str:
    value = fields.text("created")
    if not _CREATED.fullmatch(value):
        fields.refuse("created", "a time in UTC as YYYY-MM-DDTHH:MM:SSZ")
    return value


def _check_labels(manifest: Manifest, fields: Fields) -> None:
    """Labels name the classes along the last axis of the first output, where that holds scores of classes."""
    shape = manifest.outputs[0].shape
    if manifest.labels is None or manifest.output_kind == "raw":
        return
    if not shape or shape[-1] not in (-1, len(manifest.labels)):
        raise BundleError(
            f"{fields.what} has {len(manifest.labels)} labels for the output {manifest.outputs[0].name!r} of"
            f" shape {list(shape)}; expected one label a class; correct the labels and build the bundle again"
        )


def _check_preprocessing(manifest: Manifest, fields: Fields) -> None:
    wanted = manifest.preprocessing
    if wanted is None:
        return
    first, *others = manifest.inputs
    picture = (-1, wanted.channels, wanted.height, wanted.width)
    fits = len(first.shape) == 4 and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(first.shape, picture, strict=True)
    )
    if others or not fits:
        raise BundleError(
            f"{fields.what} has preprocessing to the shape {list(picture)} for the input {first.name!r} of shape"
            f" {list(first.shape)}; expected one input of that shape; correct the preprocessing and build again"
        )
