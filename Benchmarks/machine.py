"""What the machine is, and how fast fio writes on it: the limit that everything is held against."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

#: Block size and queue depth; the best of them is the limit.
FIO_SETTINGS = (("1M", 4), ("4M", 4), ("4M", 16))
_PACKAGES = ("torch", "safetensors", "tensorstore", "numpy", "matplotlib")


def describe(directory: Path) -> dict[str, Any]:
    """The head of a report."""
    return {
        "kernel": platform.release(),
        "processor": _processor(),
        "core_count": os.cpu_count(),
        "memory_byte_count": _memory("MemTotal"),
        "file_system": _file_system(directory),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "fio": fio_version(),
    }


def fio_version() -> str | None:
    """None when it is not installed."""
    if shutil.which("fio") is None:
        return None
    result = subprocess.run(["fio", "--version"], capture_output=True, text=True)
    return result.stdout.strip() or None


def fio_rate(path: Path, byte_count: int, block: str, depth: int) -> float | None:
    """MB/s of an O_DIRECT write over a written file, fsync included; None when fio fails."""
    result = subprocess.run(
        [
            "fio", "--name=limit", f"--filename={path}", "--rw=write", f"--bs={block}",
            f"--iodepth={depth}", "--ioengine=libaio", "--direct=1", f"--size={byte_count}",
            "--overwrite=1", "--end_fsync=1", "--output-format=json",
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    if result.returncode != 0:
        return None
    # Warnings may come before the object.
    job = json.loads(result.stdout[result.stdout.index("{") :])["jobs"][0]
    # Its time has the last fsync in it.
    rate: float = job["write"]["bw_bytes"] / 1e6
    return rate


def available_memory_byte_count() -> int:
    """Memory that is available without swapping."""
    return _memory("MemAvailable")


def _memory(field: str) -> int:
    match = re.search(field + r":\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return int(match[1]) * 1024 if match else 0


def _processor() -> str:
    match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return match[1] if match else platform.machine()


def _file_system(directory: Path) -> str:
    """Type of the file system that holds a directory."""
    directory = directory.resolve()
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, name, *_ = line.split()
        point = point.replace("\\040", " ")
        if (directory / "x").is_relative_to(point) and len(point) >= len(best):
            best, kind = point, name
    return kind


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
