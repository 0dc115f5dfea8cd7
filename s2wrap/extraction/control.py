"""What a store says of itself, in the folder STORE.s2wrap beside it: tools that read a folder of features see no more.

`store.json` says what made the features and how many are committed, and is replaced as a whole. `failures.jsonl`
(pictures that could not be read) and `files.jsonl` (what was written: bytes, SHA-256) only grow; what lies beyond their
committed length is of no account. However a run ends, the next one starts from `store.json`.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from s2wrap.errors import S2WrapError, first_line
from s2wrap.extraction.picture import START, Mark
from s2wrap.files import disk_errors, whole_file

SUFFIX = ".s2wrap"


@dataclass(frozen=True)
class State:
    """The committed state of a store.

    Attributes:
        made_by: what made the features; the same for all of them.
        rows: number of pictures whose features are written.
        failed: number of pictures that could not be read.
        failure_bytes: committed length of `failures.jsonl`.
        file_bytes: committed length of `files.jsonl`.
        mark: the position of the last picture counted.
        finished: whether all pictures of the sources are done.
    """

    made_by: dict[str, Any]
    rows: int = 0
    failed: int = 0
    failure_bytes: int = 0
    file_bytes: int = 0
    mark: Mark = field(default=START)
    finished: bool = False


def control_folder(store: Path) -> Path:
    """The folder beside a store, or beside what it is a link to, that says how far it is."""
    target = store.resolve()
    return target.with_name(target.name + SUFFIX)


def read_state(store: Path) -> State | None:
    """The committed state of a store; None if there is none.

    Raises:
        S2WrapError: it is damaged.
    """
    path = control_folder(store) / "store.json"
    try:
        return from_json(State, json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError, OSError) as error:
        raise _damaged(path, first_line(error)) from error


def write_state(store: Path, state: State) -> None:
    """Replace the committed state of a store."""
    write_control(store, "store.json", asdict(state))


def write_control(store: Path, name: str, content: dict[str, Any]) -> None:
    """Write a small JSON file beside a store, whole or not at all."""
    path = control_folder(store) / name
    with whole_file(path) as draft, disk_errors(path):
        draft.write_text(json.dumps(content, indent=1))


class Log:
    """A file of JSON lines that only grows; lines beyond its committed length, which a killed run wrote, are cut off.

    Args:
        path: the file, which is made if it is missing.
        length: its committed length in bytes.

    Raises:
        S2WrapError: it is shorter than that, or damaged.
    """

    def __init__(self, path: Path, length: int):
        self.path = path
        list(read_log(path, length))
        with disk_errors(path):
            path.touch()
            os.truncate(path, length)
            self.stream = path.open("ab")

    def add(self, **entry: object) -> None:
        """Write a line, which counts once its length is committed."""
        with disk_errors(self.path):
            self.stream.write(json.dumps(entry).encode() + b"\n")

    def flush(self) -> int:
        """Write all lines to the disk; the result is the length to be committed."""
        with disk_errors(self.path):
            self.stream.flush()
            os.fsync(self.stream.fileno())
            return self.stream.tell()


def read_log(path: Path, length: int) -> Iterator[dict[str, Any]]:
    """The entries of a log up to its committed length.

    Raises:
        S2WrapError: it is shorter than that, or damaged.
    """
    if length == 0:
        return
    try:
        with path.open("rb") as stream:
            while stream.tell() < length:
                entry = json.loads(stream.readline())
                if not isinstance(entry, dict) or stream.tell() > length:
                    raise ValueError("a line is not as it was written")
                yield entry
    except (ValueError, RecursionError, OSError) as error:
        raise _damaged(path, first_line(error)) from error


def from_json(kind: Any, value: Any, name: str = "") -> Any:
    """A dataclass of plain fields from what JSON gave, with every type checked. Raises ValueError."""
    if is_dataclass(kind):
        expected = [each.name for each in fields(kind)]
        if not isinstance(value, dict) or sorted(value) != sorted(expected):
            raise ValueError(f"{name or 'it'} must have {', '.join(expected)}")
        return kind(**{each.name: from_json(each.type, value[each.name], each.name) for each in fields(kind)})  # type: ignore[operator] (a class)
    plain = getattr(kind, "__origin__", kind)
    if type(value) is not plain or (plain is int and value < 0):
        raise ValueError(f"{name} is {str(value)[:40]!r}, and must be {plain.__name__}")
    return value


def _damaged(path: Path, why: str) -> S2WrapError:
    return S2WrapError(
        f"{path} is damaged ({why}); bring it back, choose another --output, or add --overwrite to begin anew"
    )
