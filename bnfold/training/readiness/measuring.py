"""The numbers of each norm that tell whether a network will fold and deploy well.

They come from three sides: the planner says what becomes of the norm, the folded weights what is stored, and samples
that training never saw what flows through.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from bnfold.errors import BnfoldError
from bnfold.training.data import Array
from bnfold.training.statistics import Moments, measure, norms_of
from bnfold.training.trends import DEAD, eps_of

if TYPE_CHECKING:
    from bnfold.folding.edits import SetWeights
    from bnfold.folding.report import NormOutcome
    from bnfold.reference import Inspection

_MOST_IMAGES = 1024
_MOST_VALUES = 1 << 23  # of all images together: 55 of 224 x 224 in colour, which still give plenty a channel
_BATCH = 64


@dataclass(frozen=True)
class NormReadiness:
    """One norm. None: not known, as it has no running statistics of its own or was not called.

    outcome: what the fold will make of it, `folded`, `reduced`, `kept`, `refused`, or "" where the network could not be
    traced; detail: why. smallest_variance: of running_var. max_scale: the largest |a| of `y = a * x + b`.
    amplification: the rounding bound of the linear that takes the norm in, over the roundoff and the root mean square
    of what the norm gives: so many roundoffs may a folded output be off by, against its usual size, at worst.
    half_largest: the largest number that half precision would have to hold around it; half_where: which one.
    mean_shift: |mean seen - running_mean| / sqrt(running_var + eps), the root mean square over the channels.
    variance_factor: e to the root mean square of ln((variance seen + eps) / (running_var + eps)); 1 where they agree.
    worst_*: of the worst channel. values: of each channel, that were seen. dead: channels that give very nearly the
    same number for every sample.
    """

    name: str
    kind: str
    channels: int | None
    outcome: str
    detail: str
    smallest_variance: float | None = None
    max_scale: float | None = None
    amplification: float | None = None
    half_largest: float | None = None
    half_where: str = ""
    mean_shift: float | None = None
    worst_mean_shift: float | None = None
    variance_factor: float | None = None
    worst_variance_factor: float | None = None
    values: int = 0
    dead: tuple[int, ...] = ()


@dataclass(frozen=True)
class Readiness:
    """All norms, in the order of the network. images: how many samples were measured. untraced: why the fold could not
    be foreseen, empty where it could.
    """

    norms: tuple[NormReadiness, ...]
    images: int
    untraced: str = ""


@dataclass
class _Flow:
    """What a module took in and gave: the largest sizes, and the moments of its output where it is a norm."""

    largest_input: float = 0.0
    largest_output: float = 0.0
    output: Moments | None = None

    def see(self, inputs: tuple[Any, ...], y: Any) -> None:
        x = inputs[0] if inputs else None
        if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
            return
        self.largest_input = _larger(self.largest_input, x)
        self.largest_output = _larger(self.largest_output, y)
        if self.output is not None:
            self.output.add(y)


def measure_readiness(module: nn.Module, images: Array) -> Readiness:
    """Measure a trained network. images: (N, C, H, W) float32 as it takes them; at most 1,024 are used, evenly spaced.

    The module is left as it was found.
    """
    inputs = torch.from_numpy(np.array(measured_part(images)))
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        plan, untraced = _foreseen(module, inputs)
        edits = _edits(plan)
        norms = norms_of(module)
        watched = set(norms) | {edit.linear.name for edit in edits.values()}
        with _flows(module, watched, norms) as flows:
            seen = measure(module, [inputs[at : at + _BATCH] for at in range(0, len(inputs), _BATCH)], "eval")
    finally:
        for part, training in modes:
            part.training = training
    outcomes = {row.name: row for row in plan.report.norms} if plan is not None else {}
    rows = [
        _measured(name, norm, seen[name], flows, outcomes.get(name), edits.get(name)) for name, norm in norms.items()
    ]
    others = [_unmeasured(row) for name, row in outcomes.items() if name not in norms]
    return Readiness((*rows, *others), len(inputs), untraced)


def measured_part(images: Array) -> Array:
    """Those of the images that are measured: at most 1,024, fewer of large ones, evenly spaced."""
    count = min(len(images), max(1, min(_MOST_IMAGES, _MOST_VALUES // max(1, images[:1].size))))
    return images[np.linspace(0, len(images) - 1, count).astype(np.int64)]


def _foreseen(module: nn.Module, inputs: torch.Tensor) -> tuple[Inspection | None, str]:
    """What the fold would do, or why that cannot be told."""
    from bnfold.reference import inspect

    try:
        return inspect(module, example_inputs=(torch.zeros(2, *inputs.shape[1:]),)), ""
    except BnfoldError as problem:
        return None, str(problem)


def _edits(plan: Inspection | None) -> Mapping[str, SetWeights]:
    """The linear with its new weights, by the name of each norm that it takes in."""
    from bnfold.folding.edits import SetWeights

    edits = plan.plan.edits if plan is not None else ()
    return {norm.name: edit for edit in edits if isinstance(edit, SetWeights) for norm in edit.norms}


@contextlib.contextmanager
def _flows(module: nn.Module, watched: set[str], norms: Mapping[str, nn.Module]) -> Iterator[Mapping[str, _Flow]]:
    """What flows through the modules of these names, while the module is called."""
    flows: dict[str, _Flow] = {}
    with contextlib.ExitStack() as stack:
        for name, part in module.named_modules():
            if name in watched:
                flow = flows[name] = _Flow(output=Moments() if name in norms else None)
                handle = part.register_forward_hook(lambda _, inputs, y, flow=flow: flow.see(inputs, y))
                stack.callback(handle.remove)
        yield flows


def _measured(
    name: str,
    norm: Any,
    seen: Moments,
    flows: Mapping[str, _Flow],
    outcome: NormOutcome | None,
    edit: SetWeights | None,
) -> NormReadiness:
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    eps = eps_of(norm)
    flow = flows[name]
    numbers = outcome.numbers if outcome is not None else None
    largest, where = _half(flow, edit)
    gap = _gap(mean, variance, seen, eps) if seen.count > 1 else {}
    given = flow.output if flow.output is not None and flow.output.count > 1 else None
    return NormReadiness(
        name=name,
        kind=type(norm).__name__,
        channels=len(mean),
        outcome=outcome.outcome if outcome is not None else "",
        detail=outcome.detail if outcome is not None else "" if seen.count else "the network does not call it",
        smallest_variance=float(variance.min()),
        max_scale=numbers.max_scale if numbers is not None else None,
        amplification=_amplification(name, edit, flows, given) if edit is not None else None,
        half_largest=largest,
        half_where=where,
        **gap,
        values=seen.count,
        dead=() if given is None else tuple(torch.nonzero(given.variance().sqrt() < DEAD).flatten().tolist()),
    )


def _unmeasured(row: NormOutcome) -> NormReadiness:
    scale = row.numbers.max_scale if row.numbers is not None else None
    return NormReadiness(row.name, row.kind, None, row.outcome, row.detail, max_scale=scale)


def _gap(mean: torch.Tensor, variance: torch.Tensor, seen: Moments, eps: float) -> dict[str, float]:
    """How far what was seen is from what is stored, in the units in which the norm sees it."""
    shift = (seen.mean - mean).abs() / (variance + eps).sqrt()
    ratio = ((seen.variance() + eps) / (variance + eps)).log().abs()
    return {
        "mean_shift": float(shift.square().mean().sqrt()),
        "worst_mean_shift": float(shift.max()),
        "variance_factor": float(ratio.square().mean().sqrt().exp()),
        "worst_variance_factor": float(ratio.max().exp()),
    }


def _half(flow: _Flow, edit: SetWeights | None) -> tuple[float, str]:
    """The largest number around a norm, and which one it is; the first of those that are not finite."""
    numbers = [(flow.largest_input, "what it takes in"), (flow.largest_output, "what it gives")]
    if edit is not None:
        numbers.append((_largest(edit.weight_values()), f"the folded weight of '{edit.linear.name}'"))
        bias = edit.bias_values()
        numbers.append((_largest(bias) if bias is not None else 0.0, f"the folded bias of '{edit.linear.name}'"))
    return max(numbers, key=lambda one: one[0] if math.isfinite(one[0]) else math.inf)


def _amplification(name: str, edit: SetWeights, flows: Mapping[str, _Flow], given: Moments | None) -> float | None:
    """Only of a norm that is the last behind its linear: then what it gives is what the folded linear gives."""
    from bnfold.folding.numbers import error_bounds

    linear = flows.get(edit.linear.name)
    if given is None or linear is None or not edit.behind or edit.behind[-1].name != name:
        return None
    if not math.isfinite(linear.largest_input):
        return None
    size = float((given.squares / given.count + given.mean.square()).mean().sqrt())
    roundoff = torch.finfo(getattr(torch, edit.weight_dtype)).eps / 2
    bound = error_bounds([edit], linear.largest_input)[0].largest
    return bound / (roundoff * size) if size > 0 else None


def _largest(values: Array) -> float:
    return float(np.abs(values.astype(np.float64)).max(initial=0.0))


def _larger(so_far: float, values: torch.Tensor) -> float:
    """The largest size; NaN stays, as nothing is larger."""
    found = float(values.abs().max()) if values.numel() else 0.0
    return found if math.isnan(found) or found > so_far else so_far
