"""Weights that an ONNX file keeps in other files."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from s2wrap.errors import MissingExtraError, S2WrapError


def weights_beside(file: Path) -> list[PurePosixPath]:
    """The files that an ONNX graph keeps its weights in, by the names that it asks for, relative to its own folder.

    Raises:
        MissingExtraError: onnx is not installed.
        S2WrapError: a damaged graph; weights that are missing, or that lie outside the graph's folder.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "export") from error
    try:
        graph = onnx.load(file, load_external_data=False).graph
    except Exception as error:  # protobuf's errors have no common class
        raise S2WrapError(f"{file} is no ONNX file, or damaged") from error
    names = sorted({location for tensor in _tensors(graph) if (location := _location(tensor))})
    paths = [PurePosixPath(name) for name in names]
    for path in paths:
        if path.is_absolute() or ".." in path.parts or "\\" in str(path):
            raise S2WrapError(f"{file} keeps weights in {path}, outside its own folder; save them beside it")
        if not (file.parent / path).is_file():
            raise S2WrapError(f"{file} keeps weights in {path}, which is not beside it; copy that file there too")
    return paths


def _tensors(graph: Any) -> Iterator[Any]:
    """Every constant tensor of an ONNX graph, of its nodes and of the graphs in them."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for attribute in (each for node in graph.node for each in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _location(tensor: Any) -> str:
    """The file that a tensor's values lie in; empty where they lie in the graph."""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
