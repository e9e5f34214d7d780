"""Tensors of a ModelProto that are held once they are read, because asking a message for its data copies them."""

from __future__ import annotations

import onnx_ir as ir


class _Held:
    def __init__(self, tensor: ir.TensorProtocol) -> None:
        self.tensor = tensor
        self._read: ir.TensorProtocol | None = None

    def __call__(self) -> ir.TensorProtocol:
        if self._read is None:
            self._read = ir.Tensor(self.tensor.numpy(), dtype=self.tensor.dtype, name=self.tensor.name)
        return self._read

    def let_go(self) -> None:
        self._read = None


def held(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """The tensor, of which the first reading is kept."""
    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(_Held(tensor), tensor.dtype, shape, name=tensor.name, doc_string=tensor.doc_string)


def let_go(tensor: ir.TensorProtocol | None) -> None:
    """Drop what is held of a tensor; it is read again when it is used again."""
    if isinstance(tensor, ir.LazyTensor) and isinstance(tensor.raw, _Held):
        tensor.raw.let_go()


def stored(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol:
    """The tensor under one that is held, which can be written without being read; any other as it is."""
    if tensor is None:
        raise ValueError("expected a tensor")
    return tensor.raw.tensor if isinstance(tensor, ir.LazyTensor) and isinstance(tensor.raw, _Held) else tensor
