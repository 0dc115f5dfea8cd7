import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DEMOS = Path(__file__).parent.parent / "demos"


@pytest.mark.usefixtures("has_samples")
def test_first_look_writes_a_picture_with_something_in_every_panel(tmp_path):
    output = tmp_path / "look.png"
    subprocess.run([sys.executable, DEMOS / "first_look.py", "--output", output], check=True, capture_output=True)
    picture = np.asarray(Image.open(output).convert("RGB")).astype(float)
    assert output.stat().st_size < 1_000_000
    height, width = picture.shape[:2]
    for row in range(3):
        for col in range(5):
            top, left = int((0.12 + 0.31 * row) * height), int((0.04 + 0.2 * col) * width)
            assert picture[top : top + height // 8, left : left + width // 8].std() > 5


@pytest.mark.usefixtures("has_samples")
def test_seamless_writes_a_picture_with_a_title_and_something_in_every_panel(tmp_path):
    output = tmp_path / "seamless.png"
    command = [sys.executable, DEMOS / "seamless.py", "--photos", "1", "--output", output]
    subprocess.run(command, check=True, capture_output=True)
    picture = np.asarray(Image.open(output).convert("RGB")).astype(float)
    height, width = picture.shape[:2]
    for col in range(7):
        left = int((0.01 + 0.1435 * col) * width)
        panel = picture[int(0.4 * height) : int(0.8 * height), left : left + width // 10]
        assert panel.std() > 5
        title = picture[int(0.12 * height) : int(0.26 * height), left : left + width // 10]
        assert title.std() > 5
