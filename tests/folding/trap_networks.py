"""Networks at both sides of each condition of a fold: one where it holds, one where it just does not.

Each has the outcomes that its norms must have, in graph order. Statistics are far from their defaults; gamma is of
both signs in each norm, unless the condition asks for a positive one, and never zero, which would hide a channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import helper
from onnx_networks import DOUBLE, Builder, built

Outcomes = list[tuple[str, str]]
FOLDED: Outcomes = [("folded", "")]


@dataclass(frozen=True)
class Network:
    """A network, what it must come to, and the arguments of the fold."""

    name: str
    build: Callable[[Builder], Any]
    wanted: Outcomes
    given: dict[str, Any] = field(default_factory=dict)
    bound: float = 1e-10

    def model(self) -> Any:
        return built(self.build, DOUBLE)


NETWORKS: dict[str, Network] = {}


def add(name: str, build: Callable[[Builder], Any], *wanted: str, bound: float = 1e-10, **given: Any) -> None:
    """wanted: for each norm "folded", "reduced CODE", or the code of the reason why it is kept ("refused CODE")."""
    rows: Outcomes = []
    for row in wanted or ("folded",):
        outcome, _, code = row.rpartition(" ")
        rows.append(("folded", "") if row == "folded" else (outcome or "kept", code))
    assert name not in NETWORKS, name
    NETWORKS[name] = Network(name, build, rows, given, bound)


def bn(b: Builder, x: str, channels: int, *, positive: bool = False, shift: bool = True, **given: Any) -> str:
    gamma, beta, mean, variance = statistics(b, channels, positive=positive)
    if not shift:
        beta, mean = np.zeros(channels), np.zeros(channels)
    given.setdefault("epsilon", 1e-3)
    return b.node("BatchNormalization", x, *(b.const(part) for part in (gamma, beta, mean, variance)), **given)


def statistics(b: Builder, channels: int, *, positive: bool = False) -> list[Any]:
    size = b.values(channels, positive=True)
    sign = 1.0 if positive else np.where(np.arange(channels) % 2, -1.0, 1.0)
    rest = [b.values(channels) + 0.4375, b.values(channels) - 0.5625, b.values(channels, positive=True)]
    return [size * sign, *rest]


def conv(b: Builder, x: str, i: int = 3, o: int = 4, k: int = 3, **given: Any) -> str:
    return b.conv(x, (i, o), (k,), **given)


def x3(b: Builder, channels: int = 3, size: int = 7) -> str:
    return b.input(2, channels, size)


def behind(step: Callable[[Builder, str], str], *, positive: bool = False, shift: bool = True) -> Any:
    """Conv, then a step that keeps 4 channels, then a norm."""
    return lambda b: bn(b, step(b, conv(b, x3(b))), 4, positive=positive, shift=shift)


def before(step: Callable[[Builder, str], str], *, positive: bool = False, shift: bool = True) -> Any:
    """A norm of the input with 4 channels, then a step that keeps them, then a convolution."""
    return lambda b: conv(b, step(b, bn(b, x3(b, 4), 4, positive=positive, shift=shift)), 4, 3)


def op(name: str, **attributes: Any) -> Callable[[Builder, str], str]:
    return lambda b, x: b.node(name, x, **attributes)


def as_it_is(_b: Builder, x: str) -> str:
    return x


def ints(b: Builder, *values: int) -> str:
    return b.const(np.array(values, np.int64))


# ------------------------------------------------------------------------------------- a linear, then a norm

add("a convolution takes in the norm behind it", behind(as_it_is))
add(
    "a dense layer takes in a norm of its own axis",
    lambda b: bn(b, b.node("MatMul", b.input(5, 4), b.const(b.values(4, 4))), 4),
)
add(
    "a norm on another axis of the same size is kept",
    lambda b: bn(b, b.node("MatMul", b.input(2, 4, 3), b.const(b.values(3, 4))), 4),
    "AXIS_MISMATCH",
)
add(
    "a transposition carries the axis of a dense layer to that of a norm",
    lambda b: bn(
        b, b.node("Transpose", b.node("MatMul", b.input(2, 4, 3), b.const(b.values(3, 4))), perm=[0, 2, 1]), 4
    ),
)
add(
    "a transposition takes the axis away",
    behind(lambda b, x: b.node("Transpose", conv(b, x, 4, 5, 2), perm=[0, 2, 1])),
    "AXIS_MISMATCH",
)
add(
    "a reshape that keeps the last axis passes",
    lambda b: bn(b, b.node("Reshape", b.node("MatMul", b.input(2, 3, 5), b.const(b.values(5, 4))), ints(b, -1, 4)), 4),
)
add(
    "a reshape that mixes channels with places does not pass",
    lambda b: bn(b, b.node("Reshape", conv(b, x3(b, 3, 6), 3, 6), ints(b, 2, 4, 6)), 4),
    "AXIS_MISMATCH",
)
add(
    "a grouped transposed convolution takes in the norm behind it",
    lambda b: bn(b, b.node("ConvTranspose", x3(b, 4), b.const(b.values(4, 3, 3)), b.const(b.values(6)), group=2), 6),
)
add(
    "a transposed convolution with as many inputs as outputs takes in the norm behind it",
    lambda b: bn(b, b.node("ConvTranspose", x3(b, 4), b.const(b.values(4, 4, 3)), strides=[2]), 4),
)
add(
    "a Gemm with alpha, beta and transposed weight takes in the norm behind it",
    lambda b: bn(
        b,
        b.node("Gemm", b.input(5, 3), b.const(b.values(4, 3)), b.const(b.values(4)), alpha=-0.5, beta=0.75, transB=1),
        4,
    ),
)
add("an eps of zero is a value", lambda b: bn(b, conv(b, x3(b)), 4, epsilon=0.0))
add(
    "a convolution without a bias, with an empty optional input, takes in the norm",
    lambda b: bn(b, b.node("Conv", x3(b), b.const(b.values(4, 3, 3)), ""), 4),
)
add(
    "nodes without names are ordinary",
    lambda b: bn(b, b.node("Conv", x3(b), b.const(b.values(4, 3, 3)), name=""), 4, name=""),
)


def colliding(b: Builder) -> str:
    """Names that a folder would like to give to what it makes."""
    weight = b.const(b.values(4, 3, 3), "w")
    y = b.node("Conv", x3(b), weight)
    for name in ("w_bias", "w_folded", "w_folded_1", "w_1", "conv_bias", "w.folded", "w_bn", "w_bnfold"):
        b.const(b.values(4, 3, 3), name)
    return bn(b, y, 4)


add("names that are taken already are not given again", colliding)
add(
    "the elementwise factor over the last axis, as long as the channels, is kept",
    lambda b: b.node(
        "Add",
        b.node("Mul", b.conv(b.input(2, 3, 6, 6), (3, 4), (3, 3)), b.const(b.values(1, 1, 1, 4))),
        b.const(b.values(1, 1, 1, 4)),
    ),
    "AXIS_MISMATCH",
)
add(
    "the elementwise factor over the channels is folded",
    lambda b: b.node(
        "Add",
        b.node("Mul", b.conv(b.input(2, 3, 6, 6), (3, 4), (3, 3)), b.const(b.values(1, 4, 1, 1))),
        b.const(b.values(1, 4, 1, 1)),
    ),
)


# ------------------------------------------------------------------------------------- a norm, then a linear

add("a convolution without padding takes in the norm before it", before(as_it_is))
add("a grouped convolution takes in the norm before it", lambda b: conv(b, bn(b, x3(b, 4), 4), 4, 6, group=2))
add("a shift that meets zero padding is kept", lambda b: conv(b, bn(b, x3(b, 4), 4), 4, 3, pads=[1, 1]), "PAD_SHIFT")
add(
    "padding at one end alone meets the shift as well",
    lambda b: conv(b, bn(b, x3(b, 4), 4), 4, 3, pads=[0, 1]),
    "PAD_SHIFT",
)
add(
    "padding that is chosen at run time meets the shift",
    lambda b: conv(b, bn(b, b.input(2, 4, "L"), 4), 4, 3, auto_pad="SAME_UPPER", strides=[2]),
    "PAD_SHIFT",
)
add("a scale alone passes zero padding", lambda b: conv(b, bn(b, x3(b, 4), 4, shift=False), 4, 3, pads=[1, 1]))


def transposed(b: Builder, x: str, kernel: int, o: int = 3, **given: Any) -> str:
    return b.node("ConvTranspose", x, b.const(b.values(4, o, kernel)), **given)


add(
    "a transposed convolution meets the shift at its borders",
    lambda b: transposed(b, bn(b, x3(b, 4), 4), 3),
    "PAD_SHIFT",
)
add("a pointwise transposed convolution takes in the shift", lambda b: transposed(b, bn(b, x3(b, 4), 4), 1))
add(
    "a pointwise transposed convolution with stride does not",
    lambda b: transposed(b, bn(b, x3(b, 4), 4), 1, strides=[2]),
    "PAD_SHIFT",
)
add("a transposed convolution takes in a scale before it", lambda b: transposed(b, bn(b, x3(b, 4), 4, shift=False), 3))
add(
    "a dense layer takes in the norm before it through a flatten",
    lambda b: b.node("Gemm", b.node("Flatten", bn(b, x3(b, 3, 4), 3)), b.const(b.values(12, 5)), b.const(b.values(5))),
)
add(
    "a dense layer over another axis than the norm does not",
    lambda b: b.node("MatMul", bn(b, b.input(2, 4, 4), 4), b.const(b.values(4, 3))),
    "AXIS_MISMATCH",
)


def padded(b: Builder, activation: str = "", size: Any = 7, **given: Any) -> str:
    y = conv(b, b.input(2, 3, size), 3, 4)
    y = b.node(activation, y) if activation else b.node("Relu", y)
    return conv(b, bn(b, y, 4), 4, 5, pads=[2, 1], **given)


ALL = {"moves": "all"}
for activation in ("Relu", "Elu", "HardSwish"):
    add(
        f"a channel of ones carries a shift past padding, behind {activation}",
        lambda b, a=activation: padded(b, a),
        **ALL,
    )  # type: ignore[misc]
add(
    "a channel of ones carries a shift past stride and dilation", lambda b: padded(b, strides=[2], dilations=[2]), **ALL
)
add(
    "a channel of ones does not go into a grouped convolution",
    lambda b: conv(b, bn(b, b.node("Relu", conv(b, x3(b))), 4), 4, 4, pads=[1, 1], group=2),
    "reduced PAD_SHIFT",
    **ALL,
)


def ones_with_reader(b: Builder) -> tuple[str, str]:
    y = b.node("Relu", conv(b, x3(b)))
    return conv(b, bn(b, y, 4), 4, 5, pads=[1, 1]), y


add("a channel of ones is not added where somebody else would see it", ones_with_reader, "reduced OTHER_READER", **ALL)
add(
    "a channel of ones does not pass a function without a fixed point",
    lambda b: padded(b, "Tanh"),
    "reduced PAD_SHIFT",
    **ALL,
)
add(
    "a shift stays as an addition where no size is known",
    lambda b: conv(b, bn(b, b.input(2, 4, "L"), 4), 4, 3, pads=[4, 4]),
    "reduced PAD_SHIFT",
    **ALL,
)


def zero_scale(b: Builder) -> str:
    gamma, *rest = statistics(b, 4)
    gamma[1] = 0.0
    parts = [b.const(part) for part in (gamma, *rest)]
    y = b.node("BatchNormalization", b.input(2, 4, "L"), *parts, epsilon=1e-3)
    return conv(b, y, 4, 3, pads=[4, 4])


add("a scale of zero cannot be divided out of a shift", zero_scale, "PAD_SHIFT", **ALL)
add(
    "a constant map carries a shift past padding",
    lambda b: conv(b, bn(b, x3(b, 4), 4), 4, 3, pads=[1, 2], strides=[2]),
    "reduced PAD_SHIFT",
    **ALL,
)
add(
    "a constant map carries a shift past a transposed convolution",
    lambda b: transposed(b, bn(b, x3(b, 4), 4), 3, strides=[2], pads=[1, 0], output_padding=[1]),
    "reduced PAD_SHIFT",
    **ALL,
)

# ------------------------------------------------------------------------------------- what stands between


def concat(b: Builder, second: Callable[[Builder, str], str], axis: int = 1, channels: int = 6) -> str:
    x = x3(b)
    return bn(b, b.node("Concat", conv(b, x, 3, 4), second(b, x), axis=axis), channels)


add("each branch of a concatenation takes its slices", lambda b: concat(b, lambda b, x: conv(b, x, 3, 2)))
add(
    "a branch that cannot keeps the whole concatenation",
    lambda b: concat(b, lambda b, x: b.node("Tanh", conv(b, x, 3, 2))),
    "NO_LINEAR_BEFORE",
)
add("a concatenation of places takes the same map twice", lambda b: concat(b, lambda b, x: conv(b, x, 3, 4), 2, 4))


def residual(b: Builder, other: Callable[[Builder, str, str], str], **given: Any) -> str:
    x = x3(b)
    y = conv(b, x)
    return bn(b, b.node("Add", y, other(b, x, y)), 4, **given)


add(
    "a residual sum scales both branches and shifts one",
    lambda b: residual(b, lambda b, x, _y: b.node("Identity", conv(b, b.node("Tanh", x)))),
)
add("a sum of a value with itself is scaled once", lambda b: residual(b, lambda _b, _x, y: y))
add(
    "a sum that is broadcast over channels is kept",
    lambda b: residual(b, lambda b, x, _y: conv(b, b.node("Tanh", x), 3, 1)),
    "BROADCAST_SUM",
)
add(
    "a sum with a branch that cannot is kept",
    lambda b: residual(b, lambda b, x, _y: b.node("Tanh", conv(b, x))),
    "NO_LINEAR_BEFORE",
)
add(
    "a difference turns the shift of its second branch",
    lambda b: bn(b, b.node("Sub", conv(b, (x := x3(b))), conv(b, b.node("Tanh", x))), 4),
)
add(
    "a sum of norms of one scale goes forward only where the scales are one",
    lambda b: conv(b, b.node("Add", bn(b, (x := x3(b, 4)), 4), b.node("Tanh", x)), 4, 3),
    "OTHER_READER",
)

POOL = {"kernel_shape": [3], "pads": [1, 1]}
add("an average that leaves padding out passes", behind(op("AveragePool", **POOL)))
add(
    "an average that counts padding keeps the shift",
    behind(op("AveragePool", count_include_pad=1, **POOL)),
    "COUNTED_PADDING",
)
add(
    "an average that counts padding passes a scale", behind(op("AveragePool", count_include_pad=1, **POOL), shift=False)
)
add(
    "an average that counts padding where there is none passes",
    behind(op("AveragePool", count_include_pad=1, kernel_shape=[3])),
)
add(
    "an average with a last window beyond the border passes",
    behind(op("AveragePool", kernel_shape=[2], strides=[2], ceil_mode=1)),
)
add("a global average passes", behind(op("GlobalAveragePool")))
add("a global average passes forward", lambda b: conv(b, b.node("GlobalAveragePool", bn(b, x3(b, 4), 4)), 4, 3, 1))
add(
    "a mean over the channels passes what is one map for all of them",
    lambda b: bn(b, b.node("ReduceMean", conv(b, x3(b)), axes=[1], keepdims=1), 1),
)
add(
    "a mean over the channels does not pass another map",
    lambda b: b.node(
        "MatMul", b.node("ReduceMean", bn(b, b.input(2, 5, 4), 5), axes=[1], keepdims=0), b.const(b.values(4, 3))
    ),
    "AXIS_MISMATCH",
)


def planes(step: Callable[[Builder, str], str], *, positive: bool = False) -> Any:
    return lambda b: bn(b, step(b, b.conv(b.input(2, 3, 6, 6), (3, 4), (3, 3))), 4, positive=positive)


add("a maximum passes positive scales", planes(op("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), positive=True))
add(
    "a maximum keeps negative scales",
    planes(op("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])),
    "NEGATIVE_SCALE_THROUGH_MAXPOOL",
)
add("a maximum passes positive scales forward", before(op("MaxPool", kernel_shape=[2]), positive=True))


def indices(b: Builder) -> tuple[str, str]:
    b.nodes.append(helper.make_node("MaxPool", [conv(b, x3(b))], ["m", "i"], kernel_shape=[2]))
    b.outputs["i"] = 7
    return bn(b, "m", 4, positive=True), "i"


add("a maximum whose places are read passes nothing", indices, "OTHER_READER")
add("a rectifier passes a positive scale", behind(op("Relu"), positive=True, shift=False))
add("a rectifier keeps a negative scale", behind(op("Relu"), shift=False), "NEGATIVE_SCALE_THROUGH_ACTIVATION")
add("a rectifier keeps a shift", behind(op("Relu"), positive=True), "NONLINEAR")
add("a leaky rectifier passes a positive scale", behind(op("LeakyRelu", alpha=0.25), positive=True, shift=False))
add("a leaky rectifier turns with a negative scale", behind(op("LeakyRelu", alpha=0.25), shift=False), **ALL)
add("a function that is not homogeneous passes nothing", behind(op("Elu"), positive=True, shift=False), "NONLINEAR")


def resize(mode: str, transform: str = "half_pixel", outside: float = 0.0) -> Callable[[Builder, str], str]:
    def step(b: Builder, x: str) -> str:
        if transform != "tf_crop_and_resize":
            return b.node("Resize", x, "", "", ints(b, 2, 4, 9), mode=mode, coordinate_transformation_mode=transform)
        b.opset = 18  # a crop of some axes alone
        roi = b.const(np.array([-0.5, 1.5]))
        given = {"coordinate_transformation_mode": transform, "extrapolation_value": outside, "axes": [2]}
        return b.node("Resize", x, roi, "", ints(b, 9), mode=mode, **given)

    return step


add("nearest upsampling passes", behind(resize("nearest", "asymmetric")))
add("linear upsampling passes", behind(resize("linear")))
add("linear upsampling with aligned corners passes", behind(resize("linear", "align_corners")))
add("cubic upsampling passes", behind(resize("cubic")), bound=1e-6)  # the evaluator has its coefficients in float32
CROP = "tf_crop_and_resize"
add("a crop with points outside keeps the shift", behind(resize("linear", CROP)), "EXTRAPOLATION")
add("a crop with zeros outside passes a scale", behind(resize("linear", CROP), shift=False))
add(
    "a crop with another number outside keeps a scale",
    behind(resize("linear", CROP, 2.0), shift=False),
    "EXTRAPOLATION",
)


def pad(mode: str, value: float = 0.0, *where: int) -> Callable[[Builder, str], str]:
    places = where or (0, 0, 1, 0, 0, 2)
    return lambda b, x: b.node("Pad", x, ints(b, *places), b.const(np.asarray(value)), mode=mode)


for mode in ("reflect", "edge"):
    add(f"a border of mode {mode} passes", behind(pad(mode)))
add("a border of zeros passes a scale", behind(pad("constant"), shift=False))
add("a border of zeros keeps a shift", behind(pad("constant")), "PAD_VALUE")
add("a border of another number keeps a scale", behind(pad("constant", 1.5), shift=False), "PAD_VALUE")
add(
    "a border of channels does not pass",
    lambda b: bn(b, pad("edge", 0.0, 0, 1, 0, 0, 1, 0)(b, conv(b, x3(b))), 6),
    "AXIS_MISMATCH",
)


def shuffled(mode: str) -> Any:
    def build(b: Builder) -> str:
        y = b.conv(b.input(2, 3, 4, 4), (3, 12), (3, 3))
        return bn(b, b.node("DepthToSpace", y, blocksize=2, mode=mode), 3)

    return build


def unshuffled(equal: bool) -> Any:
    """Towards channels: backward, a norm over 12 channels is one over 3 where they are equal in blocks."""

    def build(b: Builder) -> str:
        y = b.node("SpaceToDepth", b.conv(b.input(2, 3, 6, 6), (3, 3), (3, 3)), blocksize=2)
        parts = [np.tile(part[:3], 4) if equal else part for part in statistics(b, 12)]
        return b.node("BatchNormalization", y, *(b.const(part) for part in parts), epsilon=1e-3)

    return build


add("pixel shuffle by columns first repeats the map", shuffled("CRD"))
add("pixel shuffle by depth first repeats the map", shuffled("DCR"))
add("pixel unshuffle passes a map that is equal in blocks", unshuffled(True))
add("pixel unshuffle keeps a map that is not", unshuffled(False), "AXIS_MISMATCH")
add(
    "channels in another order carry the map with them",
    behind(lambda b, x: b.node("Gather", x, ints(b, 2, 0, 3, 1), axis=1)),
)
add(
    "a channel that is taken twice is kept",
    behind(lambda b, x: b.node("Gather", x, ints(b, 2, 0, 2, 1), axis=1)),
    "OTHER_READER",
)


def split(both: bool) -> Any:
    def build(b: Builder) -> tuple[str, str]:
        b.nodes.append(helper.make_node("Split", [conv(b, x3(b)), ints(b, 1, 3)], ["p", "q"], axis=1))
        return bn(b, "p", 1), bn(b, "q", 3) if both else b.node("Tanh", "q")

    return build


add("a split takes a map for one part alone", split(False))
add("a split takes maps for both parts", split(True), "folded", "folded")

# ------------------------------------------------------------------------------------- several readers, sharing


def second_reader(b: Builder) -> tuple[str, str]:
    y = conv(b, x3(b))
    return bn(b, y, 4), b.node("Tanh", y)


def output_reader(b: Builder) -> tuple[str, str]:
    y = conv(b, x3(b))
    return bn(b, y, 4), y


def two_norms(b: Builder) -> tuple[str, str]:
    y = conv(b, x3(b))
    return bn(b, y, 4), bn(b, y, 4)


def one_norm_twice(same: bool) -> Any:
    """One set of statistics, two uses: of one value, or of two."""

    def build(b: Builder) -> tuple[str, str]:
        x = x3(b)
        y, z = conv(b, x), conv(b, b.node("Tanh", x))
        parts = [b.const(part) for part in statistics(b, 4)]
        uses = [b.node("BatchNormalization", v, *parts, epsilon=1e-3) for v in (y, y if same else z)]
        outputs = [b.node("Tanh", uses[0]), b.node("Sin", uses[1])]
        return outputs[0], outputs[1]

    return build


def tied(norms: int) -> Any:
    """One weight, two convolutions; a norm behind the first, or one behind each."""

    def build(b: Builder) -> tuple[str, str]:
        x, weight = x3(b), b.const(b.values(4, 3, 3))
        y, z = b.node("Conv", x, weight), b.node("Conv", b.node("Tanh", x), weight)
        return bn(b, y, 4), bn(b, z, 4) if norms == 2 else b.node("Tanh", z)

    return build


def reads_norm_and_more(b: Builder) -> str:
    y = bn(b, x3(b, 4), 4)
    return b.node(
        "Add",
        b.node("GlobalAveragePool", conv(b, y, 4, 3)),
        b.node("Tanh", b.node("GlobalAveragePool", conv(b, y, 4, 3, 2))),
    )


add("another reader of a linear keeps the norm", second_reader, "OTHER_READER")
add("a graph output is a reader", output_reader, "OTHER_READER")
add("two norms of one linear are both kept", two_norms, "OTHER_READER", "OTHER_READER")
add("a linear whose weight another one reads keeps its norm", tied(1), "COSTS_MORE")
add("two linears of one weight keep norms that differ", tied(2), "COSTS_MORE", "COSTS_MORE")
add("a shared weight is copied where that is allowed", tied(2), "folded", "folded", **ALL)
add("one norm for two linears goes into both", one_norm_twice(False), "folded", "folded")
add("a norm with two linears behind it goes into both", reads_norm_and_more)
add(
    "a norm with an output behind it is kept", lambda b: (conv(b, y := bn(b, x3(b, 4), 4), 4, 3), y), "NO_LINEAR_BEFORE"
)
add(
    "a norm with an opaque reader is kept",
    lambda b: (conv(b, y := bn(b, x3(b, 4), 4), 4, 3), b.node("Tanh", y)),
    "NO_LINEAR_BEFORE",
)
add("two norms in a row are taken in one by one", lambda b: bn(b, bn(b, conv(b, x3(b)), 4), 4), "folded", "folded")
add(
    "a norm that is kept by name takes nothing in",
    lambda b: bn(b, bn(b, conv(b, x3(b)), 4, name="held"), 4),
    "KEEP_ASKED",
    "NO_LINEAR_BEFORE",
    keep=["held"],
)

# ------------------------------------------------------------------------------------- branches


def branches(host: dict[str, Any], guest: dict[str, Any], *, skip: str = "", minus: bool = False) -> Any:
    """Two convolutions of 4 channels and, perhaps, a norm or the bare input, summed."""

    def build(b: Builder) -> str:
        x = x3(b, 4, 9)
        y, z = bn(b, conv(b, x, 4, 4, **host), 4), bn(b, conv(b, x, 4, 4, **guest), 4)
        y = b.node("Sub" if minus else "Add", y, z)
        return y if not skip else b.node("Add", y, bn(b, x, 4) if skip == "norm" else x)

    return build


SAME = {"pads": [1, 1]}
TWO = ("folded", "folded")
add("a small kernel is embedded in a large one", branches(SAME, {"k": 1}), *TWO)
add(
    "a dilated kernel is embedded in a dense one",
    branches({"k": 5, "pads": [2, 2]}, {"pads": [2, 2], "dilations": [2]}),
    *TWO,
)
add(
    "a kernel beside the window of the other is left",
    branches({"k": 3, "pads": [2, 0]}, {"k": 3, "pads": [0, 2]}),
    *TWO,
)
add("a difference of branches is merged with its sign", branches(SAME, {"k": 1}, minus=True), *TWO)
add("a grouped kernel becomes block-diagonal", branches(SAME, {"k": 3, "pads": [1, 1], "group": 2}), *TWO)
add("an identity norm becomes a kernel of one tap", branches(SAME, {"k": 1}, skip="norm"), *TWO, "folded")
add("a bare skip becomes a kernel of one tap", branches(SAME, {"k": 1}, skip="bare"), *TWO)


def different_maps(b: Builder) -> tuple[str, str]:
    """A linear whose two readers lead to norms through a sum: each wants another map."""
    x = x3(b)
    y = conv(b, x)
    parts = b.node("Concat", y, y, axis=1)
    return bn(b, parts, 8)


def three(b: Builder) -> str:
    """A sum of three in which two branches might be merged."""
    x = x3(b, 4, 9)
    return b.node("Sum", bn(b, conv(b, x, 4, 4, **SAME), 4), bn(b, conv(b, x, 4, 4, 1), 4), b.node("Tanh", x))


def unknown_channels(b: Builder) -> str:
    x = b.input(2, "C", 7)
    return b.node("Add", bn(b, conv(b, x, 2, 2, 1), 2), bn(b, x, 2))


def subtracted(b: Builder) -> str:
    """`bn(x) - conv(x)`: without the first there is no sum to stand for, as the second has a minus sign."""
    x = x3(b, 4)
    return b.node("Sub", bn(b, x, 4), bn(b, conv(b, x, 4, 4, 1), 4))


def held_identity(b: Builder) -> str:
    x = x3(b, 4)
    return b.node("Add", bn(b, conv(b, x, 4, 4, 1), 4), bn(b, x, 4, name="held"))


def skip_of_another_size(b: Builder) -> str:
    x = x3(b, 1)
    return b.node("Add", bn(b, conv(b, x, 1, 4, 1), 4), x)


def two_axes(b: Builder) -> str:
    x = x3(b, 4, 4)
    chain = b.node("Add", b.node("Mul", x, b.const(b.values(4) + 0.5)), b.const(b.values(4)))
    return b.node("Add", bn(b, x, 4), chain)


def stepwise(b: Builder) -> tuple[str, str]:
    y = b.node("Mul", conv(b, x3(b)), b.const(b.values(4, 1) + 0.5))
    return b.node("Add", y, b.const(b.values(4, 1))), b.node("Tanh", y)


def with_variance(value: float) -> Any:
    def build(b: Builder) -> str:
        gamma, beta, mean, variance = statistics(b, 4)
        variance[2] = value
        parts = [b.const(part) for part in (gamma, beta, mean, variance)]
        return b.node("BatchNormalization", conv(b, x3(b)), *parts, epsilon=1.0)

    return build


def huge(b: Builder) -> str:
    """A weight that overflows when it is folded, though no value ever does."""
    gamma, beta, mean, variance = statistics(b, 4)
    weight = b.const(b.values(4, 3, 3) * 1e300)
    parts = [b.const(part) for part in (gamma * 1e20, beta, mean, variance)]
    return b.node(
        "BatchNormalization",
        b.node("Conv", b.node("Mul", x3(b), b.const(np.asarray(1e-310))), weight),
        *parts,
        epsilon=0.0,
    )


add("readers that want different maps of one value keep their norms", different_maps, "OTHER_READER")
add("sums of three are not taken apart", three, *TWO)
add("branches of an unknown number of channels are not merged", unknown_channels, "folded", "BROADCAST_SUM")
add("a branch that is taken away is not what stays", subtracted, "OTHER_READER", "folded")
add("an identity norm that is kept by name is not merged", held_identity, "folded", "KEEP_ASKED", keep=["held"])
add("a skip of another size is not merged", skip_of_another_size)
add("norms over different axes are not merged", two_axes, "OTHER_READER", "OTHER_READER")
add("steps that somebody else reads are not composed", stepwise)
add("a negative variance is refused", with_variance(-0.5), "refused NEGATIVE_VARIANCE")
add("a fold beyond the range of its dtype is kept", huge, "OVERFLOW")
add(
    "channels in another order go forward with their map",
    before(lambda b, x: b.node("Gather", x, ints(b, 2, 0, 3, 1), axis=1)),
)
add(
    "a shift that only a subtrahend can take is turned",
    lambda b: bn(b, b.node("Sub", b.node("Relu", conv(b, (x := x3(b)))), conv(b, b.node("Tanh", x))), 4, positive=True),
)


def one_weight_overridden(b: Builder) -> str:
    """A caller may give another weight."""
    weight = b.const(b.values(4, 3, 3), "w")
    b.input(4, 3, 3, name="w")
    return bn(b, b.node("Conv", x3(b), weight), 4)


def computed(b: Builder) -> str:
    return bn(b, b.node("Conv", x3(b), b.node("Tanh", b.input(4, 3, 3, name="w"))), 4)


def both_ways(b: Builder) -> tuple[str, str]:
    """One conv, `BN(y) + y`: the skip is a reader, and its sum one map."""
    y = conv(b, x3(b, 4), 4, 4)
    return b.node("Add", bn(b, y, 4), y)  # type: ignore[return-value]


add("a weight that a caller may override is kept", one_weight_overridden, "OVERRIDABLE_WEIGHT")
add("a weight that is computed is kept", computed, "COMPUTED_WEIGHT")
add("a norm beside its own input is one map with it", both_ways)
