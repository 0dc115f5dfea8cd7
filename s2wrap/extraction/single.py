"""A single file of features, kept in memory until all are computed: for few pictures."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from s2wrap.extraction.picture import START, Failure, Row
from s2wrap.extraction.tensors import write_tensors
from s2wrap.files import disk_errors


class SingleFile:
    """The rows of a single file, written whole or not at all; it has the interface of `Store`, but cannot resume."""

    def __init__(self, path: Path, draft: Path, description: Mapping[str, object]):
        self.path, self.draft, self.description = path, draft, description
        self.encoded: list[Row] = []
        self.failures: dict[str, Failure] = {}
        self.folder, self.mark, self.last = path.absolute().parent, START, None

    @property
    def rows(self) -> int:
        """Number of pictures with features."""
        return len(self.encoded)

    @property
    def failed(self) -> int:
        """Number of pictures that could not be read."""
        return len(self.failures)

    @property
    def again(self) -> dict[str, bool]:
        """Pictures that could not be read, and may be later; no run was before this one."""
        return {name: False for name, failure in self.failures.items() if failure.again}

    def add(self, item: Row | Failure) -> None:
        """Add the next picture, or one that is tried again."""
        self.failures.pop(item.name, None)
        if isinstance(item, Row):
            self.encoded.append(replace(item, mark=START))
        else:
            self.failures[item.name] = item
        self.mark = item.mark

    def commit(self, *, finished: bool = False) -> None:
        """Write the file if the run is finished and has features."""
        if finished and self.encoded:
            with disk_errors(self.path):
                write_tensors(self.encoded, self.description, self.draft)

    def unread(self) -> list[dict[str, Any]]:
        """The failures: path, reason, and whether they may be read at another time."""
        return [{"path": each.name, "reason": each.reason, "try_again": each.again} for each in self.failures.values()]
