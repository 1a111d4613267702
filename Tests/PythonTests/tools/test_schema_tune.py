"""pccheck tune: its JSON keeps to its schema, and it measures this machine."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from pccheck_commands import TOOL, Command

tune = Command("tune")
JOB = ["--state", "10GB", "--step-seconds", "0.5", "--mtbf-seconds", "20000"]

PROFILE: dict[str, Any] = {
    "processor_count": 8,
    "device": [
        {
            "write_byte_count": 1 << 20,
            "queue_depth": depth,
            "other_bytes_per_second": 0,
            "bytes_per_second": [rate * 1e8, rate * 1.1e8, rate * 1.2e8],
        }
        for depth, rate in [(1, 5), (2, 8), (4, 10)]
    ],
    "flush_seconds": [0.002, 0.003, 0.02],
    "block_seconds": [0.002, 0.003, 0.02],
    "commit_seconds": [0.005, 0.007, 0.04],
    "memory_bytes_per_second": [35e9, 40e9, 42e9],
    "digest_bytes_per_second": [9e9, 10e9, 10e9],
    "call_seconds": [2e-4, 3e-4, 4e-4],
    "codecs": [
        {
            "codec": "planes-zstd",
            "bytes_per_second": [4e8, 5e8, 5e8],
            "compression_ratio": 1.4,
        }
    ],
}


def test_schema_is_strict() -> None:
    tune.check_schema()


def test_a_recommendation(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(PROFILE))
    job = ["--profile", path, *JOB]
    document = tune(*job)
    assert document["overhead"]["value"] <= document["budget"]
    assert len(document["changes"]) == 7
    assert document == tune(*job)
    # Less disk than two states, of which a state twice as large needs four.
    small = tune(*job, "--disk", "21GB", "--in-flight", 1)
    change = {change["cause"]: change for change in small["changes"]}["twice_the_state"]
    assert change["setting"] is None and change["goodput"] is None


# -- the probe


def blocks_read() -> int:
    """Of 512 bytes, by programs that ended: getrusage(2)."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock


def probe(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [TOOL, "tune", *JOB, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("load", [0, 40_000_000])
def test_what_was_measured_is_what_is_read(tmp_path: Path, load: int) -> None:
    (tmp_path / "measured").mkdir()
    path, job = tmp_path / "node.json", [*JOB, "--other-load", load]
    before, began = blocks_read(), time.monotonic()
    run = probe(
        "--directory", tmp_path / "measured", "--save-profile", path, "--json",
        "--other-load", load,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    if load:
        elapsed = time.monotonic() - began
        assert (blocks_read() - before) * 512 > 0.3 * load * elapsed, "it reads meanwhile"
    assert not list((tmp_path / "measured").iterdir()), "its files are removed"
    document = json.loads(run.stdout)
    again = tune(*job, "--profile", path)
    assert {**document, "notes": []} == again and again["notes"] == []
    profile = json.loads(path.read_text())
    assert {point["other_bytes_per_second"] for point in profile["device"]} == {load}
    assert profile["processor_count"] == os.cpu_count()
    points = {(p["write_byte_count"], p["queue_depth"]) for p in profile["device"]}
    assert {(1 << 20, 1), (1 << 20, 4), (4 << 20, 2), (16 << 20, 1)} <= points
    for point in profile["device"]:
        assert len(point["bytes_per_second"]) >= 3 and min(point["bytes_per_second"]) > 1e6
    # One thread that also digests moves no more than all of memory.
    memory = statistics.median(profile["memory_bytes_per_second"])
    assert 2 * statistics.median(profile["digest_bytes_per_second"]) <= 1.5 * memory
    assert statistics.median(profile["commit_seconds"]) > min(profile["block_seconds"])
    for writer in profile["writer"]:
        assert 1e6 < statistics.median(writer["bytes_per_second"]) <= memory
    assert [writer["writer_worker_count"] for writer in profile["writer"]] == [1, 3]
    for codec in profile["codecs"]:
        assert 1 <= codec["compression_ratio"] < 2, "weights compress little"


@pytest.mark.parametrize("load", ["0", "1"])
def test_a_probe_that_is_interrupted_leaves_nothing(tmp_path: Path, load: str) -> None:
    """Also one whose reads are a second apart."""
    command = [TOOL, "tune", *JOB, "--directory", tmp_path, "--save-profile", tmp_path / "p.json",
               "--other-load", load]  # fmt: skip
    with subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        while not list(tmp_path.glob(".pccheck-bench-*-tune")):
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=60) == 32
        assert child.stdout is not None and not child.stdout.read()
    assert not list(tmp_path.iterdir())


def test_a_pipe_that_nobody_uses_is_interrupted(tmp_path: Path) -> None:
    pipe, profile = tmp_path / "pipe", tmp_path / "profile.json"
    os.mkfifo(pipe)
    profile.write_text(json.dumps(PROFILE))
    job = ["--state", "10GB", "--step-seconds", "0.5", "--profile", profile]
    for arguments in (["--trace", pipe], ["--mtbf-seconds", 9000, "--plot", pipe]):
        command = [TOOL, "tune", *map(str, [*job, *arguments])]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as child:
            time.sleep(0.5)
            assert child.poll() is None, "it waits for the other end"
            child.send_signal(signal.SIGINT)
            assert child.wait(timeout=10) == 32


def test_a_socket_is_no_pipe_to_wait_for(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(PROFILE))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        run = probe("--profile", profile, "--plot", tmp_path / "socket")
    assert run.returncode != 0 and "No such device or address" in run.stderr


def test_a_trace_comes_through_a_pipe(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(PROFILE))
    trace = "node,start_seconds,end_seconds\n" + "".join(
        f"a,{1000 * hit},{1000 * hit}\n" for hit in range(1, 2000)
    )
    job = ["--state", "10GB", "--step-seconds", "0.5", "--profile", str(profile)]
    run = subprocess.run(
        [TOOL, "tune", *job, "--trace", "/dev/stdin", "--trace-days", "30", "--json"],
        input=trace, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["hit_count"] == 1999


def test_where_nothing_can_be_measured(tmp_path: Path, small_disk: Path) -> None:
    run = probe("--directory", small_disk)
    assert run.returncode == 8 and "GiB of disk space, but" in run.stderr
    assert not list(small_disk.iterdir())
    run = probe("--directory", "")
    assert run.returncode == 16 and "is empty" in run.stderr
    run = probe("--directory", tmp_path / "none")
    assert run.returncode == 8 and "No such file or directory" in run.stderr
    # Known before anything is measured.
    here = tmp_path / "here"
    here.mkdir()
    for path in (tmp_path / "none" / "p.json", tmp_path):
        run = probe("--directory", here, "--save-profile", path)
        assert run.returncode != 0 and str(path) in run.stderr
        assert not list(here.iterdir())
    kept = tmp_path / "kept.json"
    kept.write_text("a measurement of yesterday")
    run = probe("--directory", here, "--save-profile", kept)
    assert run.returncode == 8 and "kept.json exists already" in run.stderr
    assert kept.read_text() == "a measurement of yesterday"
    run = probe("--directory", here, "--save-profile", "a.svg", "--plot", "./a.svg")
    assert run.returncode == 16 and "name the same file" in run.stderr
    for name in ("", "x" * 300):
        run = probe("--directory", here, "--plot", name)
        assert run.returncode == 16 and "is no name of a file" in run.stderr
    (tmp_path / "link").symlink_to(tmp_path / "away")
    run = probe("--directory", here, "--plot", tmp_path / "link")
    assert run.returncode != 0 and "it is a symbolic link that leads to no file" in run.stderr
    # The numbers of the job, too.
    run = probe("--directory", here, "--budget", "2")
    assert run.returncode == 16 and not list(here.iterdir())
