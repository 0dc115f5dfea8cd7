"""How large the code is, and how far one walks in it from a name to features.

Lines and `Any`s of the product (s2wrap and export), and the functions of s2wrap that run from `load` to the features of
one picture: how many different ones, in how many files, and how many calls.

    python benchmarks/code_size.py
"""

import re
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent


def size() -> dict[str, int]:
    """Lines, files and `Any`s of the product."""
    files = [*(ROOT / "s2wrap").rglob("*.py"), *(ROOT / "export").rglob("*.py")]
    texts = [file.read_text() for file in dict.fromkeys(file.resolve() for file in files)]
    return {
        "product lines": sum(text.count("\n") for text in texts),
        "files": len(texts),
        "longest file, lines": max(text.count("\n") for text in texts),
        "'Any' in the product": sum(len(re.findall(r"\bAny\b", text)) for text in texts),
    }


def walk() -> dict[str, int]:
    """The functions of s2wrap that run from a name to the features of one picture."""
    import s2wrap

    calls: Counter[tuple[str, str]] = Counter()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and Path(frame.f_code.co_filename).is_relative_to(ROOT / "s2wrap"):
            calls[frame.f_code.co_filename, frame.f_code.co_qualname] += 1

    picture = torch.zeros(1, 3, 320, 320)
    s2wrap.load("timm:test_vit@1,2,3", pretrained=False)(picture)  # imports
    found = {}
    sys.setprofile(note)
    model = s2wrap.load("timm:test_vit@1,2,3", pretrained=False)
    sys.setprofile(None)
    found["load: functions"], found["load: calls"] = len(calls), calls.total()
    calls.clear()
    sys.setprofile(note)
    model(picture)
    sys.setprofile(None)
    found["a call: functions"], found["a call: calls"] = len(calls), calls.total()
    found["a call: files"] = len({file for file, _ in calls})
    return found


if __name__ == "__main__":
    table = Table("of the code", "count")
    for name, count in (size() | walk()).items():
        table.add_row(name, f"{count:,}")
    Console().print(table)
