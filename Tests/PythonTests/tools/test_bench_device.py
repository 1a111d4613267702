"""`pccheck bench --only device`, over the stand-in for NVIDIA's driver. No time is judged."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from stand_in import LIBRARY

TOOL = Path(__file__).resolve().parents[3] / "build" / "bin" / "pccheck"


def bench(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOL, "bench", "--directory", folder, "--only", "device", "--size", "4MiB",
         "--rounds", "2", "--fio-settings", "none", *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_every_figure_is_there_and_nothing_is_left(tmp_path: Path) -> None:
    done = bench(tmp_path, "--json", LD_LIBRARY_PATH=str(LIBRARY.parent))
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    (entry,) = report["device"]
    assert report["durable"] is None and entry["byte_count"] == 4 << 20
    assert entry["unpinned_reason"] is None and "Fake" in entry["model"]
    for key in (
        "to_pool_megabytes_per_second", "plain_megabytes_per_second", "ratio_to_plain",
        "durable_megabytes_per_second", "queued_milliseconds", "load_megabytes_per_second",
    ):  # fmt: skip
        assert len(entry[key]["values"]) == 2 and entry[key]["median"] > 0, key
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_device_ends_it(tmp_path: Path) -> None:
    done = bench(
        tmp_path, LD_LIBRARY_PATH=str(LIBRARY.parent), FAKECUDA_FAIL="copy:700:3:sticky"
    )
    assert done.returncode == 8
    assert "cuda:0" in done.stderr and "ILLEGAL_ADDRESS" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_driver_it_says_what_is_missing(tmp_path: Path) -> None:
    done = bench(tmp_path, LD_LIBRARY_PATH="")
    assert done.returncode == 8 and "libcuda.so.1" in done.stderr, done.stderr
