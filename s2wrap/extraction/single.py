"""One file of features, kept in memory until it is written: for few pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s2wrap.extraction.picture import START, Failure, Row
from s2wrap.extraction.tensors import write_tensors
from s2wrap.files import disk_errors, whole_file


class SingleFile:
    """Rows for one file; what `Store` is for a folder, without going on: it is written whole or not at all."""

    def __init__(self, path: Path, draft: Path, description: Mapping[str, Any]):
        self.path, self.draft, self.description = path, draft, description
        self.kept: list[Row] = []
        self.failures: list[Failure] = []
        self.folder, self.mark = path.absolute().parent, START

    @property
    def rows(self) -> int:
        """Pictures whose features are kept."""
        return len(self.kept)

    @property
    def failed(self) -> int:
        """Pictures that could not be read."""
        return len(self.failures)

    def add(self, item: Row | Failure) -> None:
        """Keep the next picture."""
        if isinstance(item, Row):
            self.kept.append(item)
        else:
            self.failures.append(item)

    def commit(self, *, finished: bool = False) -> None:
        """Write the file, once all pictures are there."""
        if finished and self.kept:
            with disk_errors(self.path):
                write_tensors(self.kept, self.description, self.draft)

    def copy_failures(self, path: Path) -> None:
        """Write the list of the failures to a file, whole or not at all."""
        lines = [json.dumps({"path": failure.name, "reason": failure.reason}) + "\n" for failure in self.failures]
        with whole_file(path) as draft, disk_errors(path):
            draft.write_text("".join(lines))
