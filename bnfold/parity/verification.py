"""`verify` and `prove`: the parity suite on a bundle."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bnfold.bundle import Bundle, inspect_bundle
from bnfold.errors import BnfoldError, ParityError
from bnfold.parity.evidence import Evidence
from bnfold.parity.report import PROOF, ParityReport, Status, TierResult
from bnfold.parity.request import Request
from bnfold.parity.tiers import CHECKS
from bnfold.parity.tiers.decisions import NO_DECISION
from bnfold.remote import check_address
from bnfold.samples import load_samples

TIERS = tuple(CHECKS)
DEFAULT = tuple(tier for tier in TIERS if tier != "T6")  # which puts the suite to the test, not the bundle
BUDGET = (
    "the run had a budget of {:g} s: {} looked at everything at least once, and at fewer inputs, maybe, than without "
    "a budget"
)
_SHOWN = 3  # findings that the message of a failed proof quotes


def verify(
    bundle: Bundle | Path | str,
    *,
    tiers: Sequence[str] | None = None,
    data: Path | str | tuple[Any, Any] | None = None,
    url: str | None = None,
    seconds: float = math.inf,
    progress: Callable[[str], None] | None = None,
) -> ParityReport:
    """Run the parity suite on a bundle.

    tiers: names out of TIERS, large or small letters; all but T6 by default. data: samples to decide on instead of the
    golden vectors, an .npz file, a folder of images, or a pair of arrays (inputs, labels or None). url: of a server
    that runs the bundle. seconds: a budget of time; the tiers that sample stop early when it is spent, never before
    every tensor, site and output was looked at once. progress: told what is being done.

    A changed file is a finding, and the rest is checked all the same. Raises BundleError for a bundle that cannot be
    read, DataError for data that do not fit, ParityError for a tier that is not known, and for data or a url that no
    chosen tier asks for, BnfoldError for a url that is no address.
    """
    chosen = _chosen(tiers)
    for what, given, users in (("url", url, ("T5",)), ("data", data, ("T4", "T5"))):
        if given is not None and not set(users) & set(chosen):
            asked = f"{what} was given, and the tiers {', '.join(chosen)}"
            raise ParityError(f"{asked}; expected {' or '.join(users)} with it; add that tier, or leave {what} out")
    if url is not None:
        check_address(url)
    found, problems = inspect_bundle(bundle.path if isinstance(bundle, Bundle) else bundle)
    samples = None
    if data is not None:
        manifest = found.manifest
        samples = load_samples(data, manifest.inputs, preprocessing=manifest.preprocessing, labels=manifest.labels)
    request = Request(problems, samples, url, seconds, progress or (lambda _: None))
    return examine(found, chosen, request, asked=tiers is not None)


def prove(bundle: Bundle) -> dict[str, Any]:
    """The proof that goes into a bundle while it is written, without a version: the document of parity.json.

    Raises ParityError when parity does not hold, or cannot be told.
    """
    report = examine(bundle, (*PROOF, "T4"), Request(), version=None)
    if report.holds is not True:
        findings = report.findings or (report.verdict(),)
        more = f" (and {len(findings) - _SHOWN} more findings)" if len(findings) > _SHOWN else ""
        shown = "; ".join(findings[:_SHOWN])
        raise ParityError(f"the folded model of '{bundle.manifest.name}' cannot be proven: {shown}{more}")
    return report.to_dict()


def examine(
    bundle: Bundle,
    tiers: Sequence[str],
    request: Request,
    *,
    asked: bool = False,
    version: int | None = -1,
) -> ParityReport:
    """Run tiers on a bundle that has been read. version: None leaves it out, -1 takes the manifest's.

    asked: the tiers were named one by one, so that one which does not apply is run, and says so.
    """
    evidence = Evidence(bundle)
    notes: list[str] = []
    if "T4" in tiers and evidence.decided is None and not asked:
        tiers = [tier for tier in tiers if tier != "T4"]
        notes.append(NO_DECISION)
    results = []
    for tier in tiers:
        request.say(f"{tier}: {CHECKS[tier][0]}")
        begun = time.monotonic()
        found = _run(tier, evidence, request)
        results.append(found if version is None else replace(found, seconds=time.monotonic() - begun))
    sampling = [tier for tier in ("T2", "T3h", "T5") if tier in tiers]
    if sampling and math.isfinite(request.seconds):
        notes.append(BUDGET.format(request.seconds, ", ".join(sampling)))
    environment = dict(_environment(evidence))
    if version is not None:  # the proof in a bundle has the date of its manifest
        environment["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    number = bundle.manifest.version if version == -1 else version
    return ParityReport(bundle.manifest.name, number, tuple(results), environment, tuple(notes))


def _run(tier: str, evidence: Evidence, request: Request) -> TierResult:
    """What stops T0 or T1, which need no data, is a fault of the bundle; what stops another leaves it open."""
    title, check = CHECKS[tier]
    try:
        return check(evidence, request)
    except BnfoldError as problem:
        status: Status = "fails" if tier in ("T0", "T1") else "cannot tell"
        return TierResult(tier, title, status, "could not be carried out", {}, (str(problem),))


def _chosen(tiers: Sequence[str] | None) -> Sequence[str]:
    if tiers is None:
        return DEFAULT
    spelt = {name.casefold(): name for name in TIERS}
    given = [tiers] if isinstance(tiers, str) else list(tiers)
    names = [spelt.get(name.casefold()) for name in given]
    if not names or None in names:
        found = f"tier '{given[names.index(None)]}' is not known" if names else "no tier was named"
        raise ParityError(f"{found}; choose out of {', '.join(TIERS)}")
    return [name for name in TIERS if name in names]


def _environment(evidence: Evidence) -> Iterator[tuple[str, Any]]:
    for package in ("bnfold", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu"):
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    yield "python", platform.python_version()
    yield "machine", platform.machine()
    yield "device", evidence.device
    yield "threads", evidence.threads
