"""Attributes of ONNX nodes by name, and whether a node has none but those that its operator has in its opset."""

from __future__ import annotations

import functools

import onnx
import onnx_ir as ir


def is_understood(node: ir.Node, opset: int, names: tuple[str, ...]) -> bool:
    """True when each attribute is one of `names`, and the operator has it in this opset, with this type."""
    schema = _schema(node.op_type, opset)
    if schema is None:
        return False
    return all(
        not attribute.is_ref() and name in names and schema.get(name) == attribute.type.name
        for name, attribute in node.attributes.items()
    )


@functools.lru_cache(maxsize=4096)
def _schema(op_type: str, opset: int) -> dict[str, str] | None:
    """The types of an operator's attributes, None for an operator or an opset that is not known."""
    if not 7 <= opset <= onnx.defs.onnx_opset_version():
        return None
    try:
        found = onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError:
        return None
    return (
        None
        if found.deprecated
        else {name: str(given.type).rpartition(".")[2] for name, given in found.attributes.items()}
    )


def integer(node: ir.Node, name: str, default: int) -> int:
    """An attribute that is an integer."""
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_int()


def number(node: ir.Node, name: str, default: float) -> float:
    """An attribute that is a float."""
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_float()


def text(node: ir.Node, name: str, default: str) -> str:
    """An attribute that is a string."""
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_string()


def integers(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """An attribute that is a list of integers, None where it is left out."""
    attribute = node.attributes.get(name)
    return None if attribute is None or attribute.is_ref() else tuple(attribute.as_ints())


def numbers(node: ir.Node, name: str) -> tuple[float, ...] | None:
    """An attribute that is a list of floats, None where it is left out."""
    attribute = node.attributes.get(name)
    return None if attribute is None or attribute.is_ref() else tuple(attribute.as_floats())
