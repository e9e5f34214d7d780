"""The deployment bundle, `<name>/<version>/`: all that a server needs, hashed, written whole or not at all.

    reader.py      checks everything, then gives it out    manifest.py     the schema of manifest.json
    writer.py      writes, proves, publishes               goldens.py      golden vectors
    modelfile.py   what may stand in an ONNX file          tensorfile.py   safetensors, the hash of a tensor
    sidecar.py     models above 2 GB                       parameters.py   where each parameter went

No file of a bundle is a pickle. docs/bundle.md has the schema.
"""

from __future__ import annotations

from bnfold.bundle.goldens import Golden
from bnfold.bundle.manifest import Manifest, TensorSpec
from bnfold.bundle.modelfile import tensor_specs
from bnfold.bundle.parameters import Parameter, SourceParameter, trace_parameters
from bnfold.bundle.reader import Bundle, inspect_bundle, list_versions, load_bundle
from bnfold.bundle.tensorfile import hash_tensor
from bnfold.bundle.writer import (
    BundleDraft,
    check_destination,
    next_version,
    parse_destination,
    write_bundle,
)
from bnfold.preprocessing import Preprocessing

__all__ = [
    "Bundle",
    "BundleDraft",
    "Golden",
    "Manifest",
    "Parameter",
    "Preprocessing",
    "SourceParameter",
    "TensorSpec",
    "check_destination",
    "hash_tensor",
    "inspect_bundle",
    "list_versions",
    "load_bundle",
    "next_version",
    "parse_destination",
    "tensor_specs",
    "trace_parameters",
    "write_bundle",
]
