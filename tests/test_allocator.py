import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

HELD = """
from pathlib import Path
import torch
from s2wrap.allocator import keep_freed_memory

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def use():
    [torch.ones(2**22) for _ in range(16)]  # 16 MB each, freed at once
    return held()

before = held()
keep_freed_memory()
after = use()
for _ in range(4):  # aligned blocks leave gaps, which further uses fill
    use()
settled = held()
print(after - before, use() - settled)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_freed_memory_is_kept_and_used_again():
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    run = subprocess.run([sys.executable, "-c", HELD], env=environment, capture_output=True, text=True, check=True)
    kept, more = map(int, run.stdout.split())
    assert kept > 200e6
    assert more < 50e6
