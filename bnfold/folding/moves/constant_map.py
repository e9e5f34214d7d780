"""The shift of a norm that meets zero padding becomes a constant map behind the convolution.

Algebra: `conv(a * x + b; W) = conv(x; W * a) + M`, where `M[o, p]` sums `W[o, i, k] * b[i]` over the taps k that meet
data at output position p: all of them inside, fewer at the border.
Condition: the convolution is the norm's only reader and the spatial sizes are fixed; the map has no more than
LARGEST elements. For a transposed convolution with groups = 1 likewise.
Source: linearity; ONNX Conv-11 and ConvTranspose-11 for which taps meet data. It costs an addition, so it is no
default.
"""

from __future__ import annotations

from bnfold.folding.absorb import behind_problem, commit, meets_zeros
from bnfold.folding.affine import AffineMap, is_zero, vector
from bnfold.folding.bench import Bench, LinearState, NormState
from bnfold.folding.carriers import Window
from bnfold.folding.downstream import downstream
from bnfold.folding.edits import AddConstant
from bnfold.folding.expressions import ZERO, Expr, Given, Op, Total, mul, view
from bnfold.folding.facts import Linear, Reason
from bnfold.folding.moves.linear_to_norm import obstacle
from bnfold.folding.weights import over_inputs

LARGEST = 1 << 20  # elements of a map: 4 MiB in float32


def constant_map(bench: Bench) -> bool:
    """Fold the norms that are left into padded convolutions of fixed size behind them; True when anything moved."""
    changed = False
    for state in reversed(bench.live_norms()):
        target = _reader(bench, state)
        if target is None or state.map is None or target.linear.output in bench.sealed:
            continue
        shift = vector(state.map.shift, target.linear.axis or 0, target.weights.in_channels)
        made = border_map(bench, target, shift)
        found = downstream(bench, state, AffineMap(state.map.scale, ZERO))
        if made is None or isinstance(found, Reason):
            continue
        taken = (*state.taken, state.norm)
        commit(bench, state.norm, found, is_gone=True, is_right_behind=False)
        if not found.linears:  # a scale of one changes nothing
            target.norms += taken
            target.behind = None
            bench.fate[state.norm.id] = [target.linear.id]
        bench.add_constant(AddConstant(target.linear.output, made, target.linear, tuple(taken)))
        bench.sealed.add(target.linear.output)
        bench.reduced[state.norm.id] = [target.linear.id]
        changed = True
    return changed


def _reader(bench: Bench, state: NormState) -> LinearState | None:
    """The convolution with zero padding that alone reads the norm."""
    norm = state.norm
    if not norm.is_norm or obstacle(state) is not None or state.map is None or is_zero(state.map.shift):
        return None
    readers = bench.readers(norm.output)
    node = bench.graph.by_id.get(readers[0][0]) if len(readers) == 1 else None
    if not isinstance(node, Linear) or node.axis is None or not state.map.axes <= {node.axis}:
        return None
    target = bench.linears[node.id]
    is_fit = meets_zeros(target) and behind_problem(target, AffineMap(ZERO, ZERO)) is None
    return target if is_fit and (not node.is_transposed or node.groups == 1) else None


def border_map(bench: Bench, target: LinearState, shift: Expr) -> Expr | None:
    """What a convolution makes of a constant in each input channel, position by position: (1, O, *size), or None.

    shift: (I,) or (). Bias aside.
    """
    linear, w = target.linear, target.weights
    window = w.window
    before, after = (bench.shapes.get(value) for value in (bench.input_of(linear), linear.output))
    if window is None or window.pads is None or before is None or after is None or linear.axis != 1:
        return None
    sizes_in = [size for size in before[2:] if isinstance(size, int)]
    sizes_out = [size for size in after[2:] if isinstance(size, int)]
    spatial = len(window.kernel)
    if len(sizes_in) != spatial or len(sizes_out) != spatial:
        return None
    count = w.channels
    for size in sizes_out:
        count *= size
    if count > LARGEST:
        return None
    product = mul(w.weight, over_inputs(w, shift))
    summed = Total(product, (1,) if w.out_first else (0,))
    part: Expr = view(summed, (w.channels, *window.kernel))
    for axis in range(spatial):
        mask = _mask(window, axis, sizes_in[axis], sizes_out[axis], transposed=linear.is_transposed)
        shape = part.shape
        left, right = shape[: axis + 1], shape[axis + 2 :]
        kernel, size = shape[axis + 1], sizes_out[axis]
        apart = view(part, (*left, kernel, 1, *right))
        masked = Op("mul", (apart, view(mask, (*(1 for _ in left), kernel, size, *(1 for _ in right)))))
        part = view(Total(masked, (len(left),)), (*left, size, *right))
    return view(part, (1, *part.shape))


def _mask(window: Window, axis: int, before: int, after: int, *, transposed: bool) -> Given:
    """1 where tap k meets data at output position p, else 0: (K, after)."""
    begin = (window.pads or ())[axis][0]
    stride, dilation = window.stride[axis], window.dilation[axis]

    def meets(k: int, p: int) -> bool:
        if transposed:  # p = q * stride - begin + k * dilation
            q, rest = divmod(p + begin - k * dilation, stride)
            return rest == 0 and 0 <= q < before
        return 0 <= p * stride - begin + k * dilation < before

    kernel = window.kernel[axis]
    values = tuple(float(meets(k, p)) for k in range(kernel) for p in range(after))
    return Given(values, (kernel, after))
