"""The pytest plugin: the fixture `parity`, and --bnfold-report. The suite is imported when a test uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bnfold.testing import ParityProof

_SENT = "bnfold_proofs"  # under which a worker of pytest-xdist hands its proofs to the process that started it
_PROOFS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The one option."""
    parser.getgroup("bnfold").addoption(
        "--bnfold-report",
        metavar="FILE",
        help="write what the fixture `parity` proved to FILE: .html, .json, or .xml (JUnit)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Raises UsageError for a file of another kind before any test runs."""
    config.stash[_PROOFS] = []
    path = config.getoption("bnfold_report")
    if path:
        from bnfold.errors import BnfoldError
        from bnfold.testing.gathering import check_path

        try:
            check_path(path)
        except BnfoldError as problem:
            raise pytest.UsageError(str(problem)) from None


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Callable[..., ParityProof]:
    """`bnfold.testing.assert_parity`, whose proofs go into the report of --bnfold-report."""
    from bnfold.errors import BnfoldError
    from bnfold.testing.asserting import prove_parity
    from bnfold.testing.gathering import pack
    from bnfold.testing.proof import ParityFailure

    proofs, wanted = request.config.stash[_PROOFS], request.config.getoption("bnfold_report")

    def check(model: Any, folded: Any, inputs: Any, **options: Any) -> ParityProof:
        __tracebackhide__ = True
        try:
            proof = prove_parity(model, folded, inputs, **options)
        except BnfoldError as problem:  # a sentence about the arguments: how it came about need not be shown
            raise problem.with_traceback(None)  # noqa: B904 (the same one)
        if wanted:
            proofs.append(pack(options.get("name") or request.node.nodeid, proof))
        if proof.holds is not True:
            raise ParityFailure(proof)
        return proof

    return check


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands on what it has."""
    config = session.config
    sent = getattr(config, "workeroutput", None)
    if sent is not None:
        sent[_SENT] = config.stash[_PROOFS]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:  # noqa: ARG001 - the hook's own names
    """What a worker of pytest-xdist has handed on."""
    node.config.stash[_PROOFS].extend(getattr(node, "workeroutput", {}).get(_SENT, ()))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Write the report, and say where it is. It comes after the workers of pytest-xdist are down."""
    path = config.getoption("bnfold_report")
    if not path or hasattr(config, "workeroutput"):
        return
    proofs = config.stash[_PROOFS]
    if not proofs:
        terminalreporter.write_line(f"bnfold: no test used the fixture `parity`; {path} is not written")
        return
    from bnfold.errors import BnfoldError
    from bnfold.testing.gathering import write

    try:
        write(sorted(proofs), path)
    except BnfoldError as problem:
        raise pytest.UsageError(str(problem)) from None
    terminalreporter.write_line(f"bnfold: {len(proofs)} proof{'s' * (len(proofs) > 1)} in {path}")
