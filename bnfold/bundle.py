"""The deployment bundle, `<name>/<version>/`: all that a server needs, hashed, written whole or not at all.

    bundle_reader.py   checks everything, then gives it out    manifest.py     the schema of manifest.json
    bundle_writer.py   writes, proves, publishes               documents.py    strict JSON
    modelfile.py       what may stand in an ONNX file          goldens.py      golden vectors
    sidecar.py         models above 2 GB                       tensorfile.py   safetensors, the hash of a tensor
    rename.py          a rename that replaces nothing

No file of a bundle is a pickle. docs/bundle.md has the schema.
"""

from __future__ import annotations

from bnfold.bundle_reader import Bundle, inspect_bundle, list_versions, load_bundle
from bnfold.bundle_writer import (
    BundleDraft,
    check_destination,
    next_version,
    parse_destination,
    write_bundle,
)
from bnfold.goldens import Golden
from bnfold.manifest import Manifest, TensorSpec
from bnfold.modelfile import tensor_specs
from bnfold.preprocessing import Preprocessing
from bnfold.tensorfile import hash_tensor

__all__ = [
    "Bundle",
    "BundleDraft",
    "Golden",
    "Manifest",
    "Preprocessing",
    "TensorSpec",
    "check_destination",
    "hash_tensor",
    "inspect_bundle",
    "list_versions",
    "load_bundle",
    "next_version",
    "parse_destination",
    "tensor_specs",
    "write_bundle",
]
