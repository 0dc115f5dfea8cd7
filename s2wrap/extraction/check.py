"""Whether stores and files of features are whole: everything is read."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from s2wrap.errors import S2WrapError, first_line
from s2wrap.extraction.addresses import is_remote
from s2wrap.extraction.control import control_folder, read_state
from s2wrap.extraction.encode import not_finite
from s2wrap.extraction.maps import is_scene
from s2wrap.extraction.opening import open
from s2wrap.extraction.reader import BATCH, FeatureStore
from s2wrap.extraction.store import find_damage, read_failures

MOST = 20
"""The most damages that are told of a store."""


@dataclass(frozen=True)
class Checked:
    """What a store or file of features holds, and what is wrong with it.

    Attributes:
        store: its path.
        rows: number of pictures with features; of the map of a scene, of rows of windows that are done.
        failed: number of pictures that could not be read; 0 for a single file, which does not keep them.
        try_again: how many of those the next run of the same command tries again.
        finished: whether all pictures of the sources were done.
        counted: what `rows` counts: "pictures" or "rows of windows".
        damage: what is not as it was written, in words; empty for a whole store.
    """

    store: str
    rows: int
    failed: int
    try_again: int
    finished: bool
    counted: str
    damage: list[str]

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def check(path: str | Path, *, tell: Callable[[int, int], object] = lambda done, total: None) -> Checked:
    """Read a whole store or file of features, and compare it with what was written.

    Of a local store, the SHA-256 of every file is compared; then all features are read, and must be finite. A store
    on a server, and a single file, has no such list, and is read.

    Args:
        path: as for `s2wrap.open`.
        tell: called with the number of pictures that were read, and of all.

    Raises:
        S2WrapError: there is no such store, or what it says of itself is damaged.
    """
    address = str(path)
    folder = Path(address)
    state = read_state(folder) if not is_remote(address) and folder.is_dir() else None
    if not is_remote(address) and folder.is_dir() and state is None:
        raise S2WrapError(f"{control_folder(folder) / 'store.json'} is missing, which says what {address} holds")
    damage: list[str] = []
    rows, failures = 0, {}
    if state is not None:
        damage = list(find_damage(folder, state, whole=True))
        rows, failures = state.rows, read_failures(folder, state)
    scene = state is not None and is_scene(folder)
    if not scene:
        try:
            store = open(address)
        except S2WrapError as error:
            if state is None:
                raise
            damage.append(str(error))
        else:
            rows = len(store)
            damage += _unreadable(store, tell)
    again = sum(failure["try_again"] for failure in failures.values())
    finished = state.finished if state else True
    counted = "rows of windows" if scene else "pictures"
    return Checked(address, rows, len(failures), again, finished, counted, damage[:MOST])


def _unreadable(store: FeatureStore, tell: Callable[[int, int], object]) -> list[str]:
    """What of the features cannot be read, or is not finite."""
    damage: list[str] = []
    for first in range(0, len(store), BATCH):
        end = min(first + BATCH, len(store))
        try:
            for name, arrays in zip(store.paths[first:end], store.rows(first, end), strict=True):
                if reason := not_finite(arrays):
                    damage.append(f"{name}: {reason}")
        except Exception as error:  # each library raises error types of its own
            damage.append(f"pictures {first} to {end - 1} cannot be read ({first_line(error)})")
        tell(end, len(store))
    return damage
