"""The exception tree.

    BnfoldError            anything that the user of bnfold can put right
    ├── FoldError          a network that cannot be read, traced or folded
    ├── ExportError        a network that cannot be written as ONNX, or whose ONNX is not equal to it
    ├── ParityError        a folded network that does not agree with its reference
    ├── BundleError        a deployment bundle that is damaged, unsafe or already there
    ├── ServerError        a server that gave no answer, or an error
    └── DataError          recipes, checkpoints, data sets, images and tensors given by the user

Each message is one sentence that names the object, what was found, what was expected, and what to do. The
command line prints it and ends with exit code 2; the server answers with it. What other code raised is told in
such a sentence by its first line.
"""

from __future__ import annotations

_LONGEST = 300


class BnfoldError(Exception):
    """Anything that the user of bnfold can put right."""


class FoldError(BnfoldError):
    """A network that cannot be read, traced or folded."""


class ExportError(BnfoldError):
    """A network that cannot be written as ONNX, or whose ONNX is not equal to it."""


class ParityError(BnfoldError):
    """A folded network that does not agree with its reference."""


class BundleError(BnfoldError):
    """A deployment bundle that is damaged, unsafe or already there."""


class DataError(BnfoldError):
    """A recipe, checkpoint, data set, image or tensor given by the user that cannot be used."""


class ServerError(BnfoldError):
    """A server that gave no answer, or an error. status: of HTTP, 0 when there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def first_line(problem: BaseException | None) -> str:
    """The first line of what an error of other code says, up to 300 characters; its type where it says nothing."""
    try:
        text = str(problem)
    except Exception:  # an error of somebody's own need not be able to say what it is
        text = ""
    lines = (line.strip()[:_LONGEST].rstrip(" .:") for line in text.splitlines())
    return next(filter(None, lines), type(problem).__name__)


def said(problem: BaseException | None) -> str:
    """The type of an error of other code, and the first line of what it says."""
    kind, line = type(problem).__name__, first_line(problem)
    return kind if line == kind else f"{kind}: {line}"
