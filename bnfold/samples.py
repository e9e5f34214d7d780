"""Samples that a person gives for goldens and decisions: a .npz file, a folder of images, or arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bnfold.bundle.manifest import TensorSpec
from bnfold.bundle.tensorfile import find_dtype
from bnfold.errors import DataError
from bnfold.preprocessing import Preprocessing, decode_image

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

MAX_BYTES = 2**31  # of the arrays of one .npz, as its headers declare them
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
_LABELS = ("labels", "y")


@dataclass(frozen=True, eq=False)
class Samples:
    """inputs: by input name, (N, ...), in the dtypes of the network; labels: (N,) int64 or None."""

    inputs: Mapping[str, Array]
    labels: Array | None

    def __len__(self) -> int:
        """The number of samples."""
        return len(next(iter(self.inputs.values())))

    def rows(self, part: slice) -> Samples:
        """Some of the samples."""
        labels = None if self.labels is None else self.labels[part]
        return Samples({name: array[part] for name, array in self.inputs.items()}, labels)


def load_samples(
    data: Path | str | tuple[Any, Any],
    specs: Sequence[TensorSpec],
    *,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] | None = None,
    is_labelled: bool = True,
) -> Samples:
    """Read samples for a network with these inputs.

    data: an .npz with an array for each input (a network with one input may call it `x`, `inputs` or `data`) and
    optionally `labels` or `y`; a folder of images, or of one folder of images a class, named by label or by number
    (`preprocessing` says how an image becomes the input); or a pair of arrays, the second one None or labels.
    is_labelled: whether the labels are read; otherwise any folders and labels will do, and none are given.

    Raises DataError for what does not fit the inputs.
    """
    classes = None if labels is None else len(labels)
    if not isinstance(data, str | Path):
        return checked(_pair(data, specs), specs, "data", classes)
    path = Path(data)
    if not path.exists():
        raise DataError(f"{path} is not there; expected an .npz file or a folder of images; correct the path")
    if path.is_dir():
        return checked(_folder(path, specs, preprocessing, labels, is_labelled), specs, str(path), classes)
    if path.suffix != ".npz":
        raise DataError(f"{path} is no data set that is known; expected an .npz file or a folder of images")
    return checked(_archive(path, specs, is_labelled), specs, str(path), classes)


def read_labels(labels: Sequence[str] | Path | str) -> tuple[str, ...]:
    """Labels as given, or out of a file with one a line. Raises DataError for a file that cannot be read."""
    if not isinstance(labels, Path | str):
        return tuple(labels)
    try:
        lines = Path(labels).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(
            f"the labels {labels} cannot be read ({problem}); expected a text file with one label a line"
        ) from None
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise DataError(f"the labels {labels} are empty; expected one label a line")
    return found


def checked(samples: Samples, specs: Sequence[TensorSpec], what: str, classes: int | None = None) -> Samples:
    """The samples in the dtypes of the specs. Raises DataError unless they fit shapes, dtypes and one another.

    classes: how many there are, None where that is not known.
    """
    fitted: dict[str, Array] = {}
    for spec in specs:
        array = samples.inputs[spec.name]
        if not spec.shape:
            raise DataError(f"input '{spec.name}' is a single number, expected a batch; export it as a constant")
        # Axis 0 counts the samples, whatever batch size the network has.
        fits = array.ndim == len(spec.shape) and all(
            size in (found, -1) for found, size in zip(array.shape[1:], spec.shape[1:], strict=True)
        )
        if not fits or not array.size:
            raise DataError(
                f"{what}: the samples for input '{spec.name}' have shape {list(array.shape)}, "
                f"expected {['N', *spec.shape[1:]]}".replace("'N'", "N")
            )
        if array.dtype.kind not in "fiub":
            raise DataError(f"{what}: the samples for input '{spec.name}' have dtype {array.dtype}, expected numbers")
        fitted[spec.name] = _cast(array, spec, what)
    counts = {len(array) for array in fitted.values()} | (set() if samples.labels is None else {len(samples.labels)})
    if len(counts) != 1:
        rows = [f"{len(array)} samples of '{name}'" for name, array in fitted.items()]
        rows += [] if samples.labels is None else [f"{len(samples.labels)} labels"]
        raise DataError(f"{what} has {' and '.join(rows)}, expected the same number of each")
    for label in () if samples.labels is None else np.unique(samples.labels).tolist():
        if label < 0 or (classes is not None and label >= classes):
            most = "" if classes is None else f" to {classes - 1}"
            raise DataError(f"{what} has the label {label}, expected class numbers from 0{most}")
    return Samples(fitted, samples.labels)


def _cast(array: Array, spec: TensorSpec, what: str) -> Array:
    """The values in the dtype of an input. Only floats may be rounded: a class or pixel of 0.7 is no 0."""
    target = find_dtype(spec.dtype)
    if not np.isfinite(array).all():
        found = "NaN or infinite values, expected finite ones"
    elif target.kind in "iub" and array.dtype.kind == "f" and (array != np.trunc(array)).any():
        found = f"a value that is no whole number, expected {spec.dtype}"
    elif not _in_range(array, target):
        found = f"values beyond the range of {spec.dtype}"
    else:
        return array.astype(target)
    raise DataError(f"{what}: the samples for input '{spec.name}' have {found}")


def _in_range(array: Array, target: np.dtype[Any]) -> bool:
    low, high = array.min().item(), array.max().item()
    if target.kind in "iu":
        return int(np.iinfo(target).min) <= int(low) and int(high) <= int(np.iinfo(target).max)
    if target.kind == "b":
        return bool(low >= 0 and high <= 1)
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.array([low, high], np.float64).astype(target).astype(np.float64)).all())


def _pair(data: Any, specs: Sequence[TensorSpec]) -> Samples:
    if not isinstance(data, tuple) or len(data) != 2:
        raise DataError(f"data is a {type(data).__name__}, expected a path or a pair of arrays: inputs, labels or None")
    if len(specs) != 1:
        names = [spec.name for spec in specs]
        raise DataError(f"a pair of arrays is for a network with one input, this one has {names}; give an .npz file")
    try:
        array = np.asarray(data[0])
    except ValueError:
        raise DataError("the inputs of data are rows of different lengths, expected one array") from None
    return Samples({specs[0].name: array}, _as_labels(data[1], "labels"))


def unpack(path: Path, most: int, remedy: str) -> dict[str, Any]:
    """The arrays of an .npz of at most `most` bytes unpacked, no pickled objects.

    remedy: for one that has more, with {} for its bytes. A name may stand for something else than an array.
    Raises DataError for what is no such file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
        if declared > most:
            raise DataError(f"{path} unpacks to {declared} bytes, expected at most {most}; {remedy.format(declared)}")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except DataError:
        raise
    except Exception as problem:  # zipfile and numpy raise nearly any type on hostile bytes
        first = next(iter(str(problem).splitlines()), type(problem).__name__)
        raise DataError(
            f"{path} is no .npz file that can be read ({first:.200}); expected one as numpy.savez writes it, of "
            "numbers and without pickled objects; write it again"
        ) from None


def _archive(path: Path, specs: Sequence[TensorSpec], is_labelled: bool) -> Samples:
    arrays = unpack(path, MAX_BYTES, "give fewer samples")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path}: '{name}' is no array; expected arrays as numpy.savez writes them")
    named = [name for name in _LABELS if is_labelled and name in arrays]
    labels = _as_labels(arrays[named[0]], f"{path}: {named[0]}") if named else None
    if len(specs) == 1 and specs[0].name not in arrays:
        alias = next((name for name in ("x", "inputs", "data") if name in arrays), None)
        if alias is not None:
            arrays[specs[0].name] = arrays[alias]
    missing = [spec.name for spec in specs if spec.name not in arrays]
    if missing:
        raise DataError(
            f"{path} has the arrays {sorted(arrays)}, expected one called '{missing[0]}', as the input of the network, "
            "with samples preprocessed as it takes them; rename it or add it"
        )
    return Samples({spec.name: arrays[spec.name] for spec in specs}, labels)


def _as_labels(values: Any, what: str) -> Array | None:
    if values is None:
        return None
    labels = np.asarray(values)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{what} has dtype {labels.dtype} and shape {list(labels.shape)}, expected integers (N,)")
    return labels.astype(np.int64)


def _folder(
    path: Path,
    specs: Sequence[TensorSpec],
    preprocessing: Preprocessing | None,
    labels: Sequence[str] | None,
    is_labelled: bool,
) -> Samples:
    if preprocessing is None or len(specs) != 1:
        raise DataError(
            f"{path} is a folder of images, and nothing says how an image becomes the input of this network; expected "
            "preprocessing (a bundle's, a checkpoint's, or fold-and-export --preprocessing) and one input; "
            "give an .npz file"
        )
    files = sorted(item for item in path.rglob("*") if item.suffix.lower() in IMAGES and item.is_file())
    if not files:
        raise DataError(f"{path} has no image in it; expected files ending in {', '.join(IMAGES)}")
    images = [_image(item, preprocessing) for item in files]
    classes = None
    if is_labelled and all(item.parent != path for item in files):
        classes = np.asarray([_class_of(item, path, labels) for item in files], np.int64)
    return Samples({specs[0].name: np.stack(images)}, classes)


def _image(path: Path, preprocessing: Preprocessing) -> Array:
    try:
        return decode_image(path.read_bytes(), preprocessing)
    except (DataError, OSError) as problem:
        raise DataError(f"{path}: {problem}") from None


def _class_of(item: Path, root: Path, labels: Sequence[str] | None) -> int:
    name = item.relative_to(root).parts[0]
    if labels is not None and name in labels:
        return list(labels).index(name)
    if name.isdecimal():
        return int(name)
    raise DataError(f"{root}: the folder '{name}' is no class; expected one of the labels, or a class number")
