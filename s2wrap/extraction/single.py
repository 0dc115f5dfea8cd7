"""A single file of features, kept in memory until all are computed: for few pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s2wrap.extraction.picture import START, Failure, Row
from s2wrap.extraction.tensors import write_tensors
from s2wrap.files import disk_errors, whole_file


class SingleFile:
    """The rows of a single file, written whole or not at all; it has the interface of `Store`, but cannot resume."""

    def __init__(self, path: Path, draft: Path, description: Mapping[str, Any]):
        self.path, self.draft, self.description = path, draft, description
        self.encoded: list[Row] = []
        self.failures: list[Failure] = []
        self.folder, self.mark = path.absolute().parent, START

    @property
    def rows(self) -> int:
        """Number of pictures with features."""
        return len(self.encoded)

    @property
    def failed(self) -> int:
        """Number of pictures that could not be read."""
        return len(self.failures)

    def add(self, item: Row | Failure) -> None:
        """Add the next picture."""
        if isinstance(item, Row):
            self.encoded.append(item)
        else:
            self.failures.append(item)

    def commit(self, *, finished: bool = False) -> None:
        """Write the file if the run is finished and has features."""
        if finished and self.encoded:
            with disk_errors(self.path):
                write_tensors(self.encoded, self.description, self.draft)

    def copy_failures(self, path: Path) -> None:
        """Write the failures to a file as JSON lines, whole or not at all."""
        lines = [json.dumps({"path": failure.name, "reason": failure.reason}) + "\n" for failure in self.failures]
        with whole_file(path) as draft, disk_errors(path):
            draft.write_text("".join(lines))
