"""Wrong folds of the networks in parity_moves, one way or several for each kind of edit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from parity_mutants import replace, tensor

from bnfold.parity.mutants import specimens as moves

Array = np.ndarray[Any, np.dtype[Any]]
Model = onnx.ModelProto
Mutate = Callable[[Model, Model], None]  # reference, folded: the second is changed


def affine(reference: Model, name: str) -> tuple[Array, Array]:
    """Scale and shift of a norm, in float64."""
    gamma, beta, mean, variance = (
        tensor(reference, f"{name}.{part}").astype(np.float64) for part in ("gamma", "beta", "mean", "variance")
    )
    scale = gamma / np.sqrt(variance + float(np.float32(1e-4)))
    return scale, beta - scale * mean


def wide(model: Model, name: str) -> Array:
    return tensor(model, name).astype(np.float64)


def put(folded: Model, name: str, values: Array) -> None:
    replace(folded, name, lambda old: np.broadcast_to(values, old.shape).astype(old.dtype))


def _scale_on_the_output_axis(reference: Model, folded: Model) -> None:
    scale, _ = affine(reference, "bn")
    put(folded, "conv.weight.folded", wide(reference, "conv.weight") * scale[:, None, None, None])


def _shift_lost(reference: Model, folded: Model) -> None:
    put(folded, "conv.bias.folded", wide(reference, "conv.bias"))


def _shift_summed_over_channels_only(reference: Model, folded: Model) -> None:
    """A dense layer behind a flatten has nine inputs of each channel; here the shift of only one of them counts."""
    scale, shift = affine(reference, "bn2")
    weight = wide(reference, "fc.weight").reshape(5, 4, 9)
    inner = wide(reference, "fc.bias") + weight[:, :, 0] @ affine(reference, "bn")[1]
    put(folded, "fc.bias.folded", scale * inner + shift)


def _flattened_in_the_other_order(reference: Model, folded: Model) -> None:
    """Channel i % 4 instead of i // 9."""
    scale, inputs = affine(reference, "bn2")[0], np.tile(affine(reference, "bn")[0], 9)
    put(folded, "fc.weight.folded", scale[:, None] * wide(reference, "fc.weight") * inputs)


def _slice_of_the_other_branch(reference: Model, folded: Model) -> None:
    """The second branch of a concatenation takes the first channels of the norm."""
    scale, _ = affine(reference, "bn")
    put(folded, "two.weight.folded", wide(reference, "two.weight") * scale[:5, None, None, None])


def _channels_of_a_slice_swapped(reference: Model, folded: Model) -> None:
    del reference
    for name in ("two.weight.folded", "two.bias.folded"):
        replace(folded, name, lambda old: old[[1, 0, 2, 3, 4]])


def _shift_into_both_branches(reference: Model, folded: Model) -> None:
    scale, shift = affine(reference, "bn")
    for name in ("one", "two"):
        put(folded, f"{name}.bias.folded", scale * wide(reference, f"{name}.bias") + shift)


def _kernels(reference: Model) -> tuple[Array, Array, Array]:
    """The three kernels of parallel_branches, each in the shape of the large one."""
    three = wide(reference, "three.weight") * affine(reference, "bn3")[0][:, None, None, None]
    one, alone = np.zeros((4, 4, 3, 3)), np.zeros((4, 4, 3, 3))
    one[:, :, 1, 1] = wide(reference, "one.weight")[:, :, 0, 0] * affine(reference, "bn1")[0][:, None]
    alone[range(4), range(4), 1, 1] = affine(reference, "bn0")[0]
    return three, one, alone


def _branch_lost(reference: Model, folded: Model) -> None:
    three, _, alone = _kernels(reference)
    put(folded, "three.weight.folded", three + alone)


def _identity_branch_lost(reference: Model, folded: Model) -> None:
    three, one, _ = _kernels(reference)
    put(folded, "three.weight.folded", three + one)


def _kernel_one_place_off(reference: Model, folded: Model) -> None:
    three, one, alone = _kernels(reference)
    put(folded, "three.weight.folded", three + np.roll(one, 1, axis=3) + alone)


def _branch_counted_twice(reference: Model, folded: Model) -> None:
    three, one, alone = _kernels(reference)
    put(folded, "three.weight.folded", three + 2 * one + alone)


def _pixel_shuffle_in_the_other_mode(reference: Model, folded: Model) -> None:
    """Channel c of the norm at k * 3 + c (DCR) instead of c * 4 + k (CRD)."""
    scale, shift = (np.tile(part, 4) for part in affine(reference, "bn"))
    put(folded, "conv.weight.folded", wide(reference, "conv.weight") * scale[:, None, None, None])
    put(folded, "conv.bias.folded", wide(reference, "conv.bias") * scale + shift)


def _constant_channel_not_set(reference: Model, folded: Model) -> None:
    del reference
    replace(folded, "one.bias.folded", lambda old: np.where(np.arange(5) == 4, 0, old).astype(old.dtype))


def _constant_channel_scaled(reference: Model, folded: Model) -> None:
    """The weights of the constant channel with the norm's scale on them as well."""
    scale, shift = affine(reference, "bn")
    extra = np.einsum("oikl,i->okl", wide(reference, "two.weight"), shift * scale)

    def change(old: Array) -> Array:
        return np.concatenate([old[:, :4], extra[:, None].astype(old.dtype)], axis=1)

    replace(folded, "two.weight.folded", change)


def _border_ignored(reference: Model, folded: Model) -> None:
    """The constant map of a convolution without padding, as if every tap met data."""
    _, shift = affine(reference, "bn")
    every = np.einsum("oikl,i->o", wide(reference, "conv.weight"), shift)
    put(folded, "conv.constant.folded", every[None, :, None, None])


def _map_transposed(reference: Model, folded: Model) -> None:
    del reference
    replace(folded, "conv.constant.folded", lambda old: old[:, :, ::-1, ::-1].copy())


def _shift_through_padding(reference: Model, folded: Model) -> None:
    """The whole norm in weight and bias of a convolution with padding, and nothing left of it."""
    scale, shift = affine(reference, "bn")
    weight = wide(reference, "conv.weight")
    put(folded, "conv.weight.folded", weight * scale[None, :, None, None])
    put(folded, "conv.bias.folded", wide(reference, "conv.bias") + np.einsum("oikl,i->o", weight, shift))
    _without_addition(folded)


def _addition_lost(reference: Model, folded: Model) -> None:
    del reference
    _without_addition(folded)


def _without_addition(folded: Model) -> None:
    graph = folded.graph
    (addition,) = [node for node in graph.node if node.op_type == "Add"]
    for node in graph.node:
        node.input[:] = [addition.input[0] if name == addition.output[0] else name for name in node.input]
    stored = [item for item in graph.initializer if item.name in addition.input]
    graph.node.remove(addition)
    for item in stored:
        graph.initializer.remove(item)


def _addition_not_divided(reference: Model, folded: Model) -> None:
    """The shift that stays before the scale must be divided by it."""
    put(folded, "bn.shift.folded", affine(reference, "bn")[1][:, None, None])


def _one_ulp(name: str) -> Mutate:
    def mutate(reference: Model, folded: Model) -> None:
        del reference

        def change(old: Array) -> Array:
            changed = old.copy()
            changed.reshape(-1)[-1] = np.nextafter(changed.reshape(-1)[-1], np.array(np.inf, old.dtype))
            return changed

        replace(folded, name, change)

    return mutate


def _slope_not_inverted(reference: Model, folded: Model) -> None:
    del reference
    replace(folded, "conv.slope.folded", lambda old: np.full_like(old, 0.1))


def _leaky_relu_left(reference: Model, folded: Model) -> None:
    del reference
    graph = folded.graph
    (node,) = [node for node in graph.node if node.op_type == "PRelu"]
    (stored,) = [item for item in graph.initializer if item.name in node.input]
    plain = helper.make_node("LeakyRelu", [node.input[0]], node.output, name=node.name, alpha=0.1)
    node.CopyFrom(plain)
    graph.initializer.remove(stored)


def _slopes_of_the_wrong_sign(reference: Model, folded: Model) -> None:
    """A negative scale also swaps which side of zero is scaled by the slope."""
    scale, _ = affine(reference, "bn")
    put(folded, "conv.weight.folded", wide(reference, "conv.weight") * scale[:, None, None, None])
    put(folded, "conv.bias.folded", wide(reference, "conv.bias") * scale)


def _norms_composed_in_the_other_order(reference: Model, folded: Model) -> None:
    (scale, shift), (outer, more) = affine(reference, "one"), affine(reference, "two")
    put(folded, "one.shift.folded", scale * more + shift)
    put(folded, "one.scale.folded", scale * outer)


def _epsilon_in_what_is_left(reference: Model, folded: Model) -> None:
    """A BatchNormalization whose epsilon is forgotten has 1e-5."""
    del reference
    (node,) = [node for node in folded.graph.node if node.op_type == "BatchNormalization"]
    for attribute in node.attribute:
        if attribute.name == "epsilon":
            attribute.f = 1e-5


# The network, the wrong fold of it, and whether it is gross: seen in the outputs too, not only in the numbers.
MUTANTS: dict[str, tuple[moves.Make, Mutate, bool]] = {
    "forward: scale on the output axis": (moves.norm_before_convolution, _scale_on_the_output_axis, True),
    "forward: shift lost": (moves.norm_before_convolution, _shift_lost, True),
    "forward: one bias one ulp up": (moves.norm_before_convolution, _one_ulp("conv.bias.folded"), False),
    "flatten: shift of one place in nine": (moves.norm_before_dense, _shift_summed_over_channels_only, True),
    "flatten: channels in the other order": (moves.norm_before_dense, _flattened_in_the_other_order, True),
    "concat: slice of the other branch": (moves.concatenation, _slice_of_the_other_branch, True),
    "concat: channels of a slice swapped": (moves.concatenation, _channels_of_a_slice_swapped, True),
    "residual: shift in both branches": (moves.residual, _shift_into_both_branches, True),
    "merge: 1x1 branch lost": (moves.parallel_branches, _branch_lost, True),
    "merge: identity branch lost": (moves.parallel_branches, _identity_branch_lost, True),
    "merge: kernel one place off": (moves.parallel_branches, _kernel_one_place_off, True),
    "merge: branch counted twice": (moves.parallel_branches, _branch_counted_twice, True),
    "merge: one weight one ulp up": (moves.parallel_branches, _one_ulp("three.weight.folded"), False),
    "pixel shuffle: the other mode": (moves.pixel_shuffle, _pixel_shuffle_in_the_other_mode, True),
    "ones channel: not set": (moves.channel_through_padding, _constant_channel_not_set, True),
    "ones channel: scaled": (moves.channel_through_padding, _constant_channel_scaled, True),
    "constant map: border ignored": (moves.map_behind_padding, _border_ignored, True),
    "constant map: turned over": (moves.map_behind_padding, _map_transposed, True),
    "constant map: one ulp up": (moves.map_behind_padding, _one_ulp("conv.constant.folded"), False),
    "leftover: shift through padding": (moves.shift_left_over, _shift_through_padding, True),
    "leftover: addition lost": (moves.shift_left_over, _addition_lost, True),
    "leftover: not divided by the scale": (moves.shift_left_over, _addition_not_divided, True),
    "leftover: one ulp up": (moves.shift_left_over, _one_ulp("bn.shift.folded"), False),
    "slope: not inverted": (moves.slope_for_each_channel, _slope_not_inverted, True),
    "slope: LeakyRelu left": (moves.slope_for_each_channel, _leaky_relu_left, True),
    "slope: weights not scaled by it": (moves.slope_for_each_channel, _slopes_of_the_wrong_sign, True),
    "slope: one ulp up": (moves.slope_for_each_channel, _one_ulp("conv.slope.folded"), False),
    "norms: composed in the other order": (moves.norm_into_norm, _norms_composed_in_the_other_order, True),
    "norms: epsilon of what is left": (moves.norm_into_norm, _epsilon_in_what_is_left, True),
}


def mutant(name: str, reference: Model, folded: Model) -> Model:
    """The folded model with a fault."""
    changed = onnx.ModelProto()
    changed.CopyFrom(folded)
    MUTANTS[name][1](reference, changed)
    return changed


def stored(model: Model) -> dict[str, Array]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
