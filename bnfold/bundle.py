"""The deployment bundle, `<name>/<version>/`: everything that a server needs, hashed, written whole or not at all.

    manifest.py        the schema of manifest.json      goldens.py   golden vectors, safetensors
    bundle_reader.py   checks everything, then gives    modelfile.py what may stand in an ONNX file
    bundle_writer.py   writes beside, proves, renames   sidecar.py   models above 2 GB

No file of a bundle is a pickle and nothing in it is executed. docs/bundle.md has the schema.
"""

from __future__ import annotations

from bnfold.bundle_reader import Bundle, inspect_bundle, list_versions, load_bundle
from bnfold.bundle_writer import BundleDraft, next_version, parse_destination, write_bundle
from bnfold.goldens import Golden, hash_tensor
from bnfold.manifest import Manifest, TensorSpec
from bnfold.modelfile import tensor_specs
from bnfold.preprocessing import Preprocessing

__all__ = [
    "Bundle",
    "BundleDraft",
    "Golden",
    "Manifest",
    "Preprocessing",
    "TensorSpec",
    "hash_tensor",
    "inspect_bundle",
    "list_versions",
    "load_bundle",
    "next_version",
    "parse_destination",
    "tensor_specs",
    "write_bundle",
]
