"""`make demo` writes its output and stops the service."""

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]


def test_the_demo_writes_the_files_it_lists(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "48 frames of 854x480" in " ".join(done.stdout.split())
    listed = [Path(word) for word in done.stdout.split() if word.startswith("out/")]
    assert len(listed) == 5
    assert all((tmp_path / path).exists() for path in listed)
    with Image.open(tmp_path / "out" / "strip.png") as strip:
        assert strip.width > 4 * strip.height
    (masks,) = (path for path in listed if path.name == "masks")
    assert len(list((tmp_path / masks).rglob("*.png"))) == 48
