"""Tests and measures PCcheck on a machine with an NVIDIA GPU, in less than four minutes.

    run.py WHEEL [--folder FOLDER] [--seconds 230]

It builds and fetches nothing: WHEEL is what `make wheel` built, perhaps elsewhere, and torch is the
machine's own. Everything is written to FOLDER, which should be on the disk to measure. The last
thing that it prints is one table. The exit status is 1 when a test failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def unpacked(wheel: Path, folder: Path) -> Path:
    """The package of a wheel, importable without an installation."""
    target = folder / "package"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(target)], check=True)
    for program in (target / "pccheck").glob("**/bin/*"):
        program.chmod(0o755)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--seconds", type=float, default=230)
    given = parser.parse_args()
    ends = time.monotonic() + given.seconds
    folder = Path(tempfile.mkdtemp(prefix="pccheck-gpu-", dir=given.folder))
    try:
        package = unpacked(given.wheel.resolve(), folder)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(HERE)])}
        # One process for each part: an error of the device stays with its process.
        results = []
        for part in ("gpu_tests.py", "gpu_measures.py"):
            left = ends - time.monotonic()
            command = [sys.executable, str(HERE / part), str(folder), str(max(left, 1))]
            results.append(subprocess.run(command, env=environment).returncode)
        return max(results)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
