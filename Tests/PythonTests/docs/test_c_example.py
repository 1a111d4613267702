"""The C example of the package trains, is killed, and goes on; a stand-in is its GPU."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from stand_in import LIBRARY

import pccheck

SOURCE = ROOT / "Sources/CPCCheck/examples/train_cuda.c"
BYTE_COUNT = 8 << 20


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("example") / "train_cuda"
    pc = {**os.environ, "PKG_CONFIG_PATH": str(ROOT / "build/lib/pkgconfig")}
    flags = subprocess.check_output(
        ["pkg-config", "--cflags", "--libs", "pccheck"], env=pc, text=True
    )
    toolkit = ROOT / "Tests/Support/FakeCUDA/include/toolkit"
    subprocess.run(
        ["cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{toolkit}", str(SOURCE),
         *shlex.split(flags), str(LIBRARY), "-o", str(made)], check=True,
    )  # fmt: skip
    return made


def run(program: Path, *arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    places = f"{ROOT / 'build/lib'}:{LIBRARY.parent}"
    return subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "LD_LIBRARY_PATH": places, **settings},
    )  # fmt: skip


def test_it_trains_and_goes_on(program: Path, path: Path) -> None:
    first = run(program, path, 5)
    assert first.stdout == "starts at step 0\nstep 4 is durable\n", first.stderr
    # Copies that are late: every byte is of the step, although the next one was queued at once.
    again = run(program, path, 9, FAKECUDA_DELAY_US="500:3000")
    assert again.stdout == "starts at step 5\nstep 8 is durable\n", again.stderr
    for info in pccheck.checkpoints(path):
        weights = pccheck.load(path, step=info.step)["weights"]
        assert weights.size == BYTE_COUNT and set(weights.tobytes()) == {info.step}
    # Nothing is left to do, and the weights come back.
    assert run(program, path, 9).stdout == "starts at step 9\n"


def test_what_goes_wrong_is_said(program: Path, path: Path) -> None:
    assert run(program).returncode == 2
    path.write_bytes(b"no checkpoint file" * 1000)
    refused = run(program, path, 1)
    assert refused.returncode == 1 and refused.stderr.startswith(f"error: {path}: ")
    path.unlink()
    failed = run(program, path, 3, FAKECUDA_FAIL="copy:700:1:sticky")
    assert failed.returncode == 1 and "an illegal memory access" in failed.stderr
