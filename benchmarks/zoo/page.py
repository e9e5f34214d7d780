"""docs/zoo.md, written from the results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from zoo.doors import MOVES
from zoo.files import is_right
from zoo.peers import PEERS

TOOLS = ("default export", "torch.fx fuse", *PEERS)
_NAMES = {"default": "torch's default export", "hooks": "class hooks"}
Found = Mapping[str, Any]


def render(results: Found, latency: Found | None) -> str:
    """The page. results: fold_zoo.json; latency: fold_zoo_latency.json, or None while nothing has been measured."""
    networks = {name: found for name, found in results["networks"].items() if "failed" not in found["prepare"]}
    parts = [_HEAD.format(count=len(networks), **_where(results))]
    parts += [_summary(networks), _FOLDING, _table(_FOLDING_HEAD, map(_folding_row, networks.items()))]
    parts += [_PEERS, _table(("network", "norms", "bnfold", *TOOLS), map(_peers_row, networks.items()))]
    parts += [_REASONS, _table(("network", "outcome", "reason", "default", "all"), _reason_rows(networks))]
    if latency is not None and latency["networks"]:
        parts += [_LATENCY.format(**_where(latency), rounds=_rounds(latency)), _latency_summary(latency["networks"])]
        parts += [_table(_LATENCY_HEAD, _latency_rows(latency["networks"]))]
        tools = ("bnfold", *PEERS)
        parts += [_SECONDS, _table(("network", *tools), _seconds_rows(latency["networks"], tools))]
    return "\n\n".join(parts) + "\n"


_HEAD = """# The zoo

Written by `{command}`; not edited by hand.

{count} networks from timm, torchvision and `benchmarks/zoo/definitions.py`, in training form where they have one, with
random weights and random statistics: gamma of both signs, means, variances and beta far from their defaults, and
activations of size one (`benchmarks/zoo/statistics.py`). Outputs are compared on two images, of our own small networks
on eight. n = 1: one seed.

{cpu}, {cores} cores; {versions}."""

_FOLDING = """## What bnfold folds

Norms that are left, through the door of `torch.nn.Module` and through that of ONNX (from an export in which every norm
is still a BatchNormalization), with the default moves and with `moves="all"`; `2 + 1r` is two kept and one reduced.
*float64*: the largest difference between the folded and the unfolded network, both computed in float64, relative to the
largest output, over both doors and both sets of moves. *float32*: how far the folded network in float32 is from the
float64 truth, in the mean square, divided by the same of the unfolded one; the worst of the same four."""

_PEERS = """## What others fold

Norms that are left by each tool, and by bnfold with its default moves through ONNX. The ONNX tools are given the same
unfolded file. **wrong**: what comes out no longer computes the network. *fails*: it raises, crashes, or writes a model
that ONNX Runtime refuses; for torch.fx mostly that it cannot trace the network. `onnxruntime` are its basic
optimisations, saved as a model."""

_REASONS = """## What is left, and why

Through the door of ONNX; [folding.md](folding.md) explains the reasons."""

_SECONDS = """## Seconds to fold

Of the same run: from the bytes of a model to the bytes of the folded one on one thread, in turn, the quickest of three
(of one where a turn of all takes more than 20 s), after a first run on a tiny model. The peers do more than fold;
bnfold does only that."""

_LATENCY = """## Latency

`{command}`; {cpu}, {cores} cores.

Median milliseconds of one image in ONNX Runtime with all its optimisations, and the ratio of ours (default moves, from
the plain ONNX export) to the fastest of the peers' files, to torch's default export, and to the default export after
the class hooks of the library (RepVGG, MobileOne, ...) have run. Runs alternate; a ratio is the median over {rounds}
rounds, in brackets its quartiles. `=` marks files that come to the same operators on the same sizes once ONNX Runtime
has optimised them: what differs from 1 there is noise."""

_FOLDING_HEAD = ("network", "norms", "module", "module, all", "ONNX", "ONNX, all", "float64", "float32")
_LATENCY_HEAD = ("network", "threads", "ms", "best peer", "to best peer", "to default export", "to class hooks")


def _where(document: Found) -> dict[str, Any]:
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return {
        "command": document["command"],
        "cpu": document["hardware"]["cpu"],
        "cores": document["hardware"]["cores"],
        "versions": versions,
    }


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _four(found: Found) -> Iterator[tuple[str, str, Found]]:
    """Door, moves and what was found of a network, for every fold that did not fail."""
    for door in ("module", "onnx"):
        for moves in MOVES:
            one = (found[door] or {}).get(moves)
            if one is not None:
                yield door, moves, one


def left(one: Found) -> int:
    """Norms of which something is left."""
    return sum(one[outcome] for outcome in ("kept", "reduced", "refused"))


def _left(found: Found, door: str, moves: str) -> str:
    if found[door] is None:
        return ""
    one = found[door].get(moves)
    if one is None:
        return "*fails*"
    stays = one["kept"] + one["refused"]
    return f"{stays} + {one['reduced']}r" if one["reduced"] else str(stays)


def worst_difference(found: Found) -> float:
    """The largest float64 difference over doors and moves."""
    return max((one["float64_difference"] for _, _, one in _four(found)), default=float("nan"))


def worst_ratio(found: Found, measure: str = "rms") -> float:
    """The largest ratio of float32 errors, folded over unfolded."""
    unfolded = {"module": found["prepare"]["torch_float32_error"], "onnx": (found["onnx"] or {}).get("float32_error")}
    ratios = [one["float32_error"][measure] / unfolded[door][measure] for door, _, one in _four(found)]
    return max(ratios, default=float("nan"))


def _folding_row(item: tuple[str, Found]) -> tuple[str, ...]:
    name, found = item
    cells = [_left(found, door, moves) for door in ("module", "onnx") for moves in MOVES]
    numbers = (f"{worst_difference(found):.0e}", f"{worst_ratio(found):.2f}")
    return (name, str(found["prepare"]["norms"]), *cells, *numbers)


def _tool(found: Found, tool: str) -> Found:
    result = found["prepare"].get(tool) if tool in found["prepare"] else found["peers"].get(tool)
    return result or {}


def _peers_row(item: tuple[str, Found]) -> tuple[str, ...]:
    name, found = item
    return (name, str(found["prepare"]["norms"]), _left(found, "onnx", "default"), *(_verdict(found, t) for t in TOOLS))


def _verdict(found: Found, tool: str) -> str:
    result = _tool(found, tool)
    if "left" not in result or "error" not in result:
        return "*fails*" if "failed" in result else ""
    unfolded = (found["onnx"] or {}).get("float32_error") or found["prepare"]["torch_float32_error"]
    return str(result["left"]) if is_right(result, unfolded) else f"**wrong** ({result['left']})"


def _reason_rows(networks: Found) -> Iterator[tuple[str, ...]]:
    for name, found in networks.items():
        counts = [(found["onnx"] or {}).get(moves, {}).get("reasons", {}) for moves in MOVES]
        for key in dict.fromkeys((*counts[0], *counts[1])):
            outcome, _, reason = key.partition(": ")
            yield (name, outcome, f"`{reason}`", *(str(one.get(key, 0)) for one in counts))


def _seconds_rows(networks: Found, tools: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for name, found in networks.items():
        seconds = found["fold_seconds"]
        yield (name, *(f"{seconds[tool]:.3f}" if tool in seconds else "" for tool in tools))


def _summary(networks: Found) -> str:
    total = sum(found["prepare"]["norms"] for found in networks.values())
    lines = [f"Together they have {total} norms in {len(networks)} networks."]
    for moves in MOVES:
        stays = {
            door: [left(one) for found in networks.values() for d, m, one in _four(found) if (d, m) == (door, moves)]
            for door in ("module", "onnx")
        }
        module, onnx = (sum(counts) for counts in stays.values())
        clean = min(sum(count == 0 for count in counts) for counts in stays.values())
        lines.append(
            f'bnfold, `moves="{moves}"`: none left in {clean}; '
            f"left in all {module} through `torch.nn.Module` and {onnx} through ONNX."
        )
    differences = [worst_difference(found) for found in networks.values()]
    ratios = [worst_ratio(found) for found in networks.values()]
    lines.append(
        f"The largest float64 difference is {max(differences):.0e}, the largest float32 ratio {max(ratios):.2f}."
    )
    for tool in TOOLS:
        verdicts = [_verdict(found, tool) for found in networks.values()]
        counts = {
            "none left in": sum(verdict == "0" for verdict in verdicts),
            "wrong in": sum("wrong" in verdict for verdict in verdicts),
            "fails on": sum("fails" in verdict for verdict in verdicts),
        }
        lines.append(f"{tool}: " + ", ".join(f"{told} {count}" for told, count in counts.items()) + ".")
    return "\n".join(f"- {line}" for line in lines)


def _rounds(latency: Found) -> int:
    return int(min(one["rounds"] for found in latency["networks"].values() for one in found["threads"].values()))


def _latency_rows(networks: Found) -> Iterator[tuple[str, ...]]:
    for name, found in networks.items():
        for threads, one in found["threads"].items():
            ratios = (_ratio(one, rival) for rival in (one["best_peer"], "default", "hooks"))
            peer = _NAMES.get(one["best_peer"], one["best_peer"])
            yield (name, threads, f"{one['median_ms']['ours_default']:.2f}", peer, *ratios)


def _ratio(one: Found, rival: str) -> str:
    if rival not in one["ratio"]:
        return ""
    ratio = one["ratio"][rival]
    same = " =" if rival in one["same_graph"] else ""
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f}){same}"


def _latency_summary(networks: Found) -> str:
    lines = []
    for threads in dict.fromkeys(key for found in networks.values() for key in found["threads"]):
        ones = {name: found["threads"][threads] for name, found in networks.items() if threads in found["threads"]}
        ratios = {name: one["ratio"][one["best_peer"]]["median"] for name, one in ones.items()}
        same = {name for name, one in ones.items() if one["best_peer"] in one["same_graph"]}
        worst = max(ratios, key=lambda name: ratios[name])
        faster = sorted((ratio, name) for name, ratio in ratios.items() if ratio < 0.99 and name not in same)
        told = ", ".join(f"{name} {ratio:.2f}" for ratio, name in faster) or "none"
        lines.append(
            f"{threads} thread{'s' * (threads != '1')}: at worst {ratios[worst]:.2f} of the best peer ({worst}); "
            f"{len(same)} of {len(ratios)} come to the same graph; faster: {told}."
        )
    return "\n".join(f"- {line}" for line in lines)
