"""What it would take to fold a norm that is not folded, by reason code: one phrase for a person."""

from __future__ import annotations

from collections.abc import Mapping

_EXPORT = "the network exported in eval mode, with stored statistics"

REMEDIES: Mapping[str, str] = {
    "AXIS_MISMATCH": "a norm over the channels of the linear layer",
    "AXIS_UNKNOWN": "a known rank: fixed or inferable shapes in the source",
    "BIAS_SHAPE": "a bias with one number for each channel",
    "BROADCAST_SUM": "terms of equal shape in the sum",
    "COMPUTED_STATISTICS": "statistics stored as constants",
    "COMPUTED_WEIGHT": "weights stored as constants",
    "COSTS_MORE": "a move that costs at run time (--moves all)",
    "COUNTED_PADDING": "a mean that leaves padding out (count_include_pad=False), without a divisor of its own",
    "DTYPE": "weights of one floating-point dtype",
    "EXTRAPOLATION": "a resize that does not read beyond its data",
    "GRAPH_OUTPUT": "a linear layer before it, with nothing nonlinear between",
    "INSIDE_FUNCTION": "the function inlined",
    "INSIDE_SUBGRAPH": "the branch or loop resolved when the network is exported",
    "KEEP_ASKED": "to leave it out of --keep",
    "MALFORMED": "parameters of one length",
    "MOVE_NOT_CHOSEN": "--moves default, or the name of the move",
    "NEGATIVE_SCALE_THROUGH_ACTIVATION": "scales (gamma) that are positive in every channel",
    "NEGATIVE_SCALE_THROUGH_MAXPOOL": "scales (gamma) from 0 in every channel, or the norm before the pooling",
    "NONLINEAR": "a linear layer on its own side of the nonlinear operator",
    "NON_FINITE_WEIGHT": "finite weights",
    "NO_LINEAR_BEFORE": "a linear layer before or behind it, with nothing but what an affine map passes between",
    "NO_LINEAR_BEHIND": "a linear layer before or behind it, with nothing but what an affine map passes between",
    "OTHER_READER": "every other reader to take the same map, or to read something else",
    "OVERFLOW": "a wider dtype, or smaller scales (a larger eps or variance)",
    "OVERRIDABLE_WEIGHT": "the parameter taken off the inputs of the graph",
    "PAD_SHIFT": "a convolution without zero padding, or with its padding before the norm",
    "PAD_VALUE": "a border of zeros, or one that repeats the data",
    "PER_ACTIVATION": "a norm with one mean and variance for each channel",
    "RESHAPE_UNPROVEN": "a reshape with known sizes that keeps the channel axis whole",
    "NEGATIVE_VARIANCE": "a variance from 0: check the checkpoint",
    "NON_FINITE_FOLD": "variance plus eps above 0 in every channel",
    "NON_FINITE_STATISTICS": "finite statistics: check the checkpoint",
    "NO_RUNNING_STATS": "running statistics (track_running_stats=True)",
    "TRAINING_MODE": _EXPORT,
}


def remedy(code: str) -> str:
    """What it would take, by the code of a reason; '' where nothing is known to help."""
    return REMEDIES.get(code, "")
