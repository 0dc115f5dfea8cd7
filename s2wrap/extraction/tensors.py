"""Maps and prefix tokens as .safetensors or .npz: a single file, or a folder of part files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s2wrap.extraction.picture import Arrays, Row
from s2wrap.extraction.writer import PartWriter


class TensorWriter(PartWriter):
    """Part files in the layout of `write_tensors`."""

    ending = ".safetensors"

    def write_part(self, rows: Sequence[Row], path: Path) -> None:
        """Write rows to a part file."""
        write_tensors(rows, self.description, path)

    def read_part(self, path: Path) -> list[Row]:
        """The rows of a part file."""
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        names, sizes = json.loads(metadata["files"]), json.loads(metadata["image_hw"])
        numbered = any("/" in name for name in arrays)
        rows = []
        for number, (name, (height, width)) in enumerate(zip(names, sizes, strict=True)):
            prefix = f"{number}/"
            if numbered:
                of_row = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
            else:
                of_row = {key: array[number] for key, array in arrays.items()}
            rows.append(Row(name, height, width, of_row))
        return rows

    def read_metadata(self, path: Path) -> dict[str, str]:
        """The description in a part file."""
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            return file.metadata()


def write_tensors(rows: Sequence[Row], description: Mapping[str, object], path: Path) -> None:
    """Write rows to one file, in the format of its suffix.

    It holds `spatial` (pictures, channels, rows, columns) and `prefix` (pictures, tokens, channels); for a pyramid,
    one of each per scale, numbered. If the shapes differ between pictures, each picture has arrays of its own:
    `0/spatial`, `0/prefix`, `1/spatial`, … The file also holds `files` (names), `image_hw` (height and width in pixels)
    and the description.

    Raises:
        OSError: the disk is full or read-only.
    """
    names, sizes = [row.name for row in rows], [[row.height, row.width] for row in rows]
    arrays = _stack([row.arrays for row in rows])
    if path.suffix == ".npz":
        texts = {key: np.array(_text(value)) for key, value in description.items()}
        content: dict[str, Any] = {name: array.numpy() for name, array in arrays.items()} | texts
        np.savez(path, **content, files=np.array(names), image_hw=np.array(sizes))
        return
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    texts = {"files": json.dumps(names), "image_hw": json.dumps(sizes)}
    texts |= {key: _text(value) for key, value in description.items()}
    try:
        save_file({name: array.contiguous() for name, array in arrays.items()}, path, texts)
    except SafetensorError as error:  # such as a full disk
        raise OSError(str(error)) from error


def _stack(rows: list[Arrays]) -> Arrays:
    """The arrays of all pictures, stacked by name; or with numbered names if their shapes differ."""
    if all(row[name].shape == rows[0][name].shape for row in rows for name in rows[0]):
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {f"{number}/{name}": tensor for number, row in enumerate(rows) for name, tensor in row.items()}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
