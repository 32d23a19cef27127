"""Nodes: an ONNX graph under construction."""

from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper


class Nodes:
    """Nodes and constant tensors; each node has the name of its first output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, NDArray[Any]] = {}

    def constant(self, name: str, array: NDArray[Any]) -> str:
        self.tensors[name] = array
        return name

    def node(self, operator: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def split(self, tensor: str, sizes: str, outputs: list[str], axis: int) -> None:
        self.nodes.append(helper.make_node("Split", [tensor, sizes], outputs, name=outputs[0], axis=axis))
