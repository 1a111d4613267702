"""The benchmark runs at tiny sizes, and its tables say what its rows say."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from stand_in import LIBRARY

from Benchmarks import engine, machine
from Benchmarks.peers import PEERS
from Benchmarks.report import durable_figures, loop_figures, markdown
from Benchmarks.runs import Plan
from Benchmarks.states import model_state

pytest.importorskip("matplotlib")
TOOL = ROOT / "build" / "bin" / "pccheck"


def run_worker(peer: str, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """The answer of a worker."""
    missing = PEERS[peer].missing()
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed; `make bench` installs it")
    result = subprocess.run(
        [
            sys.executable, "-m", "Benchmarks.worker", *arguments, "--peer", peer,
            "--directory", str(tmp_path / "files"),
        ],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


@pytest.mark.parametrize("peer", PEERS)
def test_a_durable_save_of_every_peer(peer: str, tmp_path: Path) -> None:
    answer = run_worker(peer, tmp_path, "durable", "--bytes", "2000000", "--state", "model")
    (row,) = answer["saves"]
    assert answer["tensor_count"] >= 200 and 1e6 < answer["byte_count"] <= 2e6
    assert row["durable_seconds"] > 0 and row["blocked_milliseconds"] > 0
    assert row["call_milliseconds"] <= row["blocked_milliseconds"]
    assert row["blocked_milliseconds"] <= 1e3 * row["durable_seconds"]
    expected = answer["byte_count"] / 1e6 / row["durable_seconds"]
    assert math.isclose(row["megabytes_per_second"], expected)
    # Nothing but our own file is left.
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == (["run.pcc"] if peer.startswith("pccheck") else [])


@pytest.mark.parametrize("peer", ["pccheck", "dcp-async", "torch-save"])
def test_a_loop(peer: str, tmp_path: Path) -> None:
    answer = run_worker(
        peer, tmp_path, "loop", "--bytes", "1000000", "--interval", "2", "--steps", "6"
    )
    assert answer["saved_count"] == 3
    assert answer["durable_count"] <= 3 and (peer != "torch-save" or answer["durable_count"] == 3)
    assert answer["plain_step_seconds"] >= 0.05 and answer["step_seconds"] >= 0.05
    assert math.isclose(
        answer["slowdown"], answer["step_seconds"] / answer["plain_step_seconds"]
    )


@pytest.mark.parametrize("peer", ["pccheck", "safetensors"])
def test_real_training(peer: str, tmp_path: Path) -> None:
    answer = run_worker(
        peer, tmp_path, "training", "--bytes", "2000000", "--interval", "2", "--steps", "6"
    )
    assert answer["tensor_count"] >= 200 and 1e6 < answer["byte_count"] <= 2.1e6
    assert answer["saved_count"] == 3 and answer["durable_count"] >= 1
    assert 0 < answer["plain_step_seconds"] and 0 < answer["step_seconds"]


def test_the_state_has_no_odd_values() -> None:
    state = model_state(3_000_000)
    assert len(state) == 444
    for name, tensor in state.items():
        assert torch.isfinite(tensor).all(), name
    assert sum(tensor.nbytes for tensor in state.values()) <= 3_000_000
    # Neither a device nor a file system can make it smaller.
    largest = max(state.values(), key=lambda tensor: tensor.nbytes)
    assert largest.unique().numel() > 0.99 * largest.numel()


def test_everything_in_one_run(tmp_path: Path) -> None:
    output = tmp_path / "output"
    command = [
        sys.executable, "-m", "Benchmarks", "--quick", "--directory", str(tmp_path / "disk"),
        "--output", str(output), "--peer", "pccheck", "safetensors", "--bytes", "2000000",
        "--loop-bytes", "1000000", "--tool", TOOL,
    ]  # fmt: skip
    # A stand-in is the GPU.
    environment = {**os.environ, "LD_LIBRARY_PATH": str(LIBRARY.parent)}
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert "left" in result.stderr and "done in" in result.stderr
    results = json.loads((output / "results.json").read_text())
    assert results["schema_version"] == 1
    assert {row["peer"] for row in results["durable"]} == {"pccheck", "safetensors"}
    for part in ("loop", "training"):
        assert {row["peer"] for row in results[part]} == {"pccheck", "safetensors"}
    assert "safetensors" not in results["skipped"]
    text = (output / "results.md").read_text()
    assert "safetensors + fsync" in text and "every 5" in text
    assert "Slowdown of real training on these cores" in text
    assert "| 2 MiB | Fake CUDA device 0 |" in text
    for name in ("durable.png", "cost.png", "loop.png", "sweep.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    if machine.fio_version() is not None and "fio" not in results["skipped"]:
        assert len(results["fio"]) == len(machine.FIO_SETTINGS)
    assert list((tmp_path / "disk").iterdir()) == []
    # Drawing again needs no measuring.
    again = tmp_path / "again"
    command = [
        sys.executable, "-m", "Benchmarks", "--plot", str(output / "results.json"),
        "--output", str(again),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    assert (again / "results.md").read_text() == text


def test_what_is_not_there_is_left_out_visibly(tmp_path: Path) -> None:
    """Without fio on PATH, and with a peer that fails."""
    broken = tmp_path / "broken"
    (broken / "safetensors").mkdir(parents=True)
    (broken / "safetensors" / "__init__.py").write_text("raise ImportError('it is broken')\n")
    environment = {**os.environ, "PATH": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(broken), environment.get("PYTHONPATH", "")]
    )
    command = [
        sys.executable, "-m", "Benchmarks", "--quick", "--directory", str(tmp_path / "disk"),
        "--output", str(tmp_path / "output"), "--peer", "pccheck", "safetensors", "--bytes",
        "2000000", "--loop-bytes", "1000000",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "left out: fio: not installed" in result.stderr
    assert "left out: safetensors: it failed: ImportError: it is broken" in result.stderr
    text = (tmp_path / "output" / "results.md").read_text()
    assert "- safetensors: it failed: ImportError: it is broken" in text


def test_too_little_space_is_said_beforehand() -> None:
    plan = Plan(1 << 30, {"flat": 1}, 1 << 20, 1, {1: 2}, 1)
    assert plan.lacks(1 << 40, 1 << 40) is None
    assert "disk space" in (plan.lacks(1 << 30, 1 << 40) or "")
    assert "memory" in (plan.lacks(1 << 40, 1 << 30) or "")


def test_ratios_are_of_one_round() -> None:
    def row(peer: str, number: int, rate: float) -> dict[str, Any]:
        return {
            "peer": peer, "state": "flat", "round": number, "megabytes_per_second": rate,
            "blocked_milliseconds": 1, "call_milliseconds": 1, "cpu_seconds": 1,
            "extra_byte_count": 50, "byte_count": 100, "tensor_count": 1,
        }  # fmt: skip

    results: dict[str, Any] = {
        "peers": {"pccheck": "pccheck", "other": "another"},
        "fio": [
            {"state": "flat", "round": number, "setting": setting, "megabytes_per_second": rate}
            for number, setting, rate in [(1, "a", 100), (1, "b", 200), (2, "a", 1000)]
        ],
        # The second round is ten times as quick for everybody.
        "durable": [
            row("pccheck", 1, 180), row("pccheck", 2, 900), row("other", 1, 90),
            row("other", 2, 450),
        ],
        "loop": [
            {"peer": "other", "interval": 5, "slowdown": slowdown, "drain_seconds": 0,
             "durable_count": 1, "saved_count": 2, "byte_count": 1 << 20,
             "plain_step_seconds": 0.05, "tensor_count": 3}
            for slowdown in (1.0, 1.5, 9.0)
        ],
        "skipped": {}, "tool": {}, "time": "",
        "machine": {
            "core_count": 2, "processor": "", "memory_byte_count": 1, "file_system": "",
            "kernel": "", "python": "", "packages": {}, "fio": None,
        },
    }  # fmt: skip
    ours, other = durable_figures(results, "flat")
    assert (ours["peer"], ours["of_fio"], other["of_fio"]) == ("pccheck", 0.9, 0.45)
    assert other["we_are"] == 2 and other["memory"] == 0.5
    (loop,) = loop_figures(results)
    assert loop["intervals"][5]["slowdown"] == 1.5
    assert loop["intervals"][5]["durable_share"] == 0.5
    assert "1.500 (50%)" in markdown(results)


def test_real_weights(tmp_path: Path) -> None:
    from Benchmarks.weights import train_and_write

    safetensors = pytest.importorskip("safetensors.torch")
    example = ROOT / "Sources" / "Python" / "examples" / "train_gpt.py"
    report = train_and_write(example, tmp_path, 12)
    assert report["last_loss"] < report["first_loss"]
    single, half = (safetensors.load_file(path) for path in report["files"])
    assert single.keys() == half.keys()
    assert {tensor.dtype for tensor in single.values()} == {torch.float32}
    assert {tensor.dtype for tensor in half.values()} == {torch.bfloat16}
    assert sum(name.endswith(".exp_avg_sq") for name in single) > 20
    # Real weights shrink by planes, in either type.
    for path in report["files"]:
        group = engine.codecs(Path(path), tmp_path, 1)
        ratios = {row["codec"]: row["ratio"] for row in group["codecs"]}
        assert ratios["none"] <= 1 and ratios["planes-zstd"] > 1.05, ratios
        assert all(row["durable"] for row in group["codecs"])
        assert [bool(row["compress"]) for row in group["codecs"]] == [False, True, True]
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_sweep(tmp_path: Path) -> None:
    shown: list[str] = []
    rows = engine.sweep(TOOL, tmp_path, 1 << 20, 4 << 20, 1, shown.append)
    count = Counter(row["axis"] for row in rows)
    assert count == {
        "size": 1, "in-flight": 6, "writer-workers": 6, "chunk": 5, "backend": 4, "codec": 3
    }  # fmt: skip
    assert len(shown) == len(rows) and list(tmp_path.iterdir()) == []
    for row in rows:
        if row["skipped"] is None:
            assert all(row[key][0] > 0 for key in ("durable", "plain", "sustained")), row
        else:
            assert row["axis"] == "backend", row
    with pytest.raises(RuntimeError, match="none"):
        engine.sweep(TOOL, tmp_path / "none", 1 << 20, 4 << 20, 1, shown.append)


def test_kinds_of_state(tmp_path: Path) -> None:
    result = subprocess.run(
        [
            sys.executable, "-m", "Benchmarks.kinds", "--directory", str(tmp_path), "--bytes",
            str(13 << 20), "--rounds", "1", "--saves", "2", "--kind", "state_dict", "torch.save",
        ],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = [line.split("|")[1].strip() for line in result.stdout.splitlines() if "MiB |" in line]
    assert rows == ["state_dict", "state_dict", "torch.save"]
    assert "memcpy " in result.stdout and not list(tmp_path.iterdir())
