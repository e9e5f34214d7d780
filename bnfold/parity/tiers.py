"""The tiers that `bnfold verify` runs on a bundle, one function each: evidence in, verdict out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import numpy as np
import onnx

from bnfold.bundle import hash_tensor
from bnfold.folding import algebra
from bnfold.folding.facts import Norm
from bnfold.folding.statistics import statistics_of, tensors_of
from bnfold.parity.decisions import decide
from bnfold.parity.evidence import Evidence
from bnfold.parity.local import SiteResult, check_sites
from bnfold.parity.oracle import run_float64
from bnfold.parity.report import Status, TierResult
from bnfold.parity.triangle import TRUTH_ROUNDING, compare, corner, worst_corner
from bnfold.samples import Samples

_LOCAL_ROWS = 32  # of each golden vector: a site's bound needs no more to show a gross fault
_NO_BOUND = "measured, not bounded: no local bound is derived for this move yet"
_DEAD = 1e-12  # |gamma| below which a channel says the same whatever comes in


def files(evidence: Evidence, problems: tuple[str, ...]) -> TierResult:
    """T0: every file has its hash, and nothing in the norms to be ashamed of before the proof starts."""
    plan = evidence.plan
    rows = {row.name: row.outcome for row in evidence.report.norms}
    refused = plan.report.refused
    faults = [
        f"norm '{row.name}': {row.detail}, but fold.json does not call it refused"
        for row in refused
        if rows.get(row.name) != "refused"
    ]
    warnings = [warning for norm in plan.norms if norm.refusal is None for warning in _warnings(norm)]
    status: Status = "fails" if problems or faults else "holds"
    checked = len(evidence.bundle.manifest.files)
    headline = f"{checked} files as hashed" if not problems else f"{len(problems)} of {checked} files changed"
    headline += f"; {len(plan.norms)} norms, " + (f"{len(refused)} refused" if refused else "each of them sound")
    summary = {"files": checked, "changed": len(problems), "norms": len(plan.norms), "refused": len(refused)}
    return TierResult("T0", "files and preflight", status, headline, summary, (*problems, *faults, *warnings))


def _warnings(norm: Norm) -> Iterator[str]:
    statistics = statistics_of(norm)
    if statistics is None:
        return
    parts = (statistics.gamma, statistics.mean, statistics.variance)
    gamma, mean, variance = (algebra.evaluate(part).hi for part in parts)
    dead = int(np.sum(np.abs(gamma) < _DEAD))
    if dead:
        yield f"norm '{norm.name}' has {dead} dead channel(s): gamma is zero, or as good as"
    if np.all(mean == 0) and np.all(variance == 1):
        yield f"norm '{norm.name}' has mean 0 and variance 1 in every channel: was it ever trained?"


def certificate(evidence: Evidence) -> TierResult:
    """T1: the weight certificate."""
    found = evidence.certificate
    findings = list(found.findings())
    findings += [*_fold_map(evidence), *_counts(evidence)]
    status: Status = "fails" if findings else "holds"
    elements = sum(tensor.distances.elements for tensor in found.tensors)
    wrong = [tensor for tensor in found.tensors if not tensor.nearest]
    headline = f"{len(found.tensors)} folded tensors, {elements:,} values, "
    headline += f"{len(wrong)} tensors wrong; " if wrong else "each the nearest; "
    headline += f"worst {found.worst_ulp:.4f} ulp" if found.worst_ulp < 10 else f"worst {found.worst_ulp:,.4g} ulp"
    headline += "; the graph is not the fold of the reference" if found.structure else ""
    summary = {
        "tensors": len(found.tensors), "elements": elements, "wrong_tensors": len(wrong),
        "worst_ulp": found.worst_ulp, "structure_differences": len(found.structure),
    }  # fmt: skip
    return TierResult(
        "T1", "weight certificate", status, headline, summary, tuple(findings), tuple(found.to_dict()["tensors"])
    )


def _fold_map(evidence: Evidence) -> list[str]:
    expected = evidence.expectation.fold_map
    stored = [dict(entry) for entry in evidence.bundle.manifest.fold_map]
    if json.dumps(stored, sort_keys=True) == json.dumps(list(expected), sort_keys=True):
        return []
    return ["the fold map of manifest.json is not that of a fold of reference.onnx; expected one entry a folded tensor"]


def _counts(evidence: Evidence) -> list[str]:
    stored, expected = evidence.bundle.fold_report().get("counts"), dict(evidence.report.counts)
    if stored == expected:
        return []
    return [f"the counts of fold.json are {stored!r:.120}; expected those of its rows, {expected}"]


def local(evidence: Evidence) -> TierResult:
    """T2: the local bound, site by site, on the first rows of every golden vector."""
    free = all(spec.shape[:1] == (-1,) for spec in evidence.bundle.manifest.inputs)
    rows = slice(0, _LOCAL_ROWS if free else None)
    batches = [{name: array[rows] for name, array in golden.inputs.items()} for golden in evidence.goldens]
    found = check_sites(
        evidence.reference, evidence.folded, evidence.expectation.sites, batches, threads=evidence.threads
    )
    others = tuple(SiteResult(label, (), "", 0, note=_NO_BOUND) for label in evidence.expectation.others)
    bad = [site for site in found if site.bad]
    unbounded = [site for site in found if site.problem]
    status: Status = "fails" if bad else "cannot tell" if unbounded else "holds"
    worst = max((site.worst_ratio for site in found), default=0.0)
    headline = f"{len(found)} sites, worst difference {worst:.2g} times its rounding bound"
    headline += f"; {len(bad)} sites beyond it" if bad else ""
    headline += f"; {len(unbounded)} sites not bounded" if unbounded else ""
    headline += f"; {len(others)} other edits measured by T3, not bounded" if others else ""
    summary = {
        "sites": len(found), "bad_sites": len(bad), "unbounded_sites": len(unbounded), "unbounded_edits": len(others),
        "worst_ratio": worst,
    }  # fmt: skip
    findings = tuple(site.sentence() for site in found if not site.holds)
    details = tuple(dataclasses.asdict(site) for site in (*found, *others))
    return TierResult("T2", "local bound", status, headline, summary, findings, details)


def triangle(evidence: Evidence) -> TierResult:
    """T3: the oracle triangle, for what the models answer now and for the stored outputs."""
    corners = evidence.corners
    stored = compare(
        [golden.truth for golden in evidence.goldens],
        evidence.unfolded_answers,
        [golden.outputs for golden in evidence.goldens],
    )
    findings = [found.sentence() for found in corners if not found.holds]
    findings += [f"the stored outputs: {found.sentence()}" for found in stored if not found.holds]
    every = (*corners, *stored)
    wrong = any(not found.holds and not found.doubt for found in every)
    status: Status = "fails" if wrong else "cannot tell" if any(found.doubt for found in every) else "holds"
    worst = worst_corner(corners)
    headline = (
        f"from the float64 truth: folded {worst.folded_rms:.2g}, unfolded {worst.unfolded_rms:.2g} "
        f"({worst.ratio:.2f} times; at most {worst.factor:g})"
    )
    summary = {
        "unfolded_error": worst.unfolded_error, "folded_error": worst.folded_error, "unfolded_rms": worst.unfolded_rms,
        "folded_rms": worst.folded_rms, "ratio": worst.ratio, "factor": worst.factor,
        "goldens": len(evidence.goldens), "elements": worst.elements,
    }  # fmt: skip
    details = tuple(dataclasses.asdict(found) for found in corners)
    return TierResult("T3", "oracle triangle", status, headline, summary, tuple(findings), details)


def source(evidence: Evidence) -> TierResult:
    """T3b: reference.onnx is the source, and the stored truth is what it computes in float64."""
    findings = [*_tensors(evidence), *_statistics(evidence)]
    worst = 0.0
    truth = [run_float64(evidence.reference_proto, golden.inputs) for golden in evidence.goldens]
    for found in evidence.corners:
        stored = [golden.truth[found.output] for golden in evidence.goldens]
        apart = corner(found.output, [again[found.output] for again in truth], stored, stored)
        # A truth must be much nearer to the real one than the errors that are measured by it.
        limit = max(found.unfolded_error / 10, TRUTH_ROUNDING * apart.scale)
        if apart.problem or apart.doubt or not apart.folded_error <= limit:
            what = apart.problem or f"differs by {apart.folded_error:.3g} from a float64 run of reference.onnx"
            findings.append(f"the stored truth of output '{found.output}' {what}; expected at most {limit:.3g}")
        worst = max(worst, apart.folded_error)
    status: Status = "fails" if findings else "holds"
    count = len(evidence.bundle.manifest.source_tensors)
    headline = f"{len(findings)} differences from the source" if findings else f"{count} source tensors as recorded"
    headline += f"; stored truth {worst:.2g} from a float64 run"
    summary = {"source_tensors": count, "truth_difference": worst}
    return TierResult("T3b", "reference", status, headline, summary, tuple(findings))


def _tensors(evidence: Evidence) -> Iterator[str]:
    recorded = evidence.bundle.manifest.source_tensors
    found = {
        tensor.name: hash_tensor(onnx.numpy_helper.to_array(tensor))
        for tensor in evidence.reference_proto.graph.initializer
    }
    for name in sorted(recorded.keys() | found.keys()):
        if name not in found:
            yield f"source tensor '{name}' is recorded in manifest.json, but reference.onnx does not have it"
        elif name not in recorded:
            yield f"tensor '{name}' of reference.onnx is not among the source tensors of manifest.json"
        elif recorded[name] != found[name]:
            yield f"tensor '{name}' of reference.onnx is not the source's: its hash differs from manifest.json"


def _statistics(evidence: Evidence) -> Iterator[str]:
    stored = evidence.bundle.statistics()
    norms = {norm.name: norm for norm in evidence.plan.norms}
    for name, quantities in stored.items():
        if name not in norms:
            yield f"statistics.safetensors has a norm '{name}', which reference.onnx does not"
            continue
        wanted = {quantity: np.asarray(array) for quantity, array in tensors_of(norms[name]).items()}
        for quantity in sorted(wanted.keys() | quantities.keys()):
            if quantity not in quantities:
                yield f"statistics.safetensors has no '{name}.{quantity}', which reference.onnx has"
            elif quantity not in wanted or hash_tensor(wanted[quantity]) != hash_tensor(quantities[quantity]):
                yield f"statistics.safetensors: '{name}.{quantity}' is not that of reference.onnx"
    for row in evidence.report.norms:
        if row.outcome == "folded" and row.name not in stored:
            yield f"statistics.safetensors has no statistics of the folded norm '{row.name}'"


def decisions(evidence: Evidence, samples: Samples | None = None) -> TierResult:
    """T4: the same answers, on samples that were given, else on the goldens with labels, else on all goldens."""
    if samples is None:
        labelled = [at for at, golden in enumerate(evidence.goldens) if golden.labels is not None]
        found = evidence.decisions(labelled or range(len(evidence.goldens)))
        where = "held-out samples" if labelled else "golden vectors"
    else:
        name = evidence.decided or ""
        found = decide(
            evidence.run_rows(evidence.reference_session, samples.inputs, name),
            evidence.run_rows(evidence.folded_session, samples.inputs, name),
            samples.labels,
            noise=evidence.noise,
            truth=lambda rows: run_float64(
                evidence.reference_proto, {key: array[rows] for key, array in samples.inputs.items()}
            )[name],
        )
        where = "samples given"
    same = found.rows - len(found.disagreements)
    headline = f"same top-1 on {same} of {found.rows} {where} ({100 * found.agreement:.6g}%)"
    if found.folded_accuracy is not None and found.unfolded_accuracy is not None:
        accuracies = found.folded_accuracy, found.unfolded_accuracy
        headline += "; {:.2%} right folded, {:.2%} unfolded".format(*accuracies)
    summary = {
        "rows": found.rows, "agreement": found.agreement, "disagreements": len(found.disagreements),
        "excused": found.excused, "ties": found.ties, "smallest_margin": found.smallest_margin,
        "median_margin": found.median_margin, "largest_difference": found.largest_difference,
        "unfolded_accuracy": found.unfolded_accuracy, "folded_accuracy": found.folded_accuracy,
        "disagreement_rate_below": found.rate_bound,
    }  # fmt: skip
    status: Status = "holds" if found.holds else "fails"
    return TierResult("T4", "decisions", status, headline, summary, found.sentences())
