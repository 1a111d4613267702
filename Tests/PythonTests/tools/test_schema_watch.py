"""pcinspect watch beside real writers: at work, stopped, killed; its lines fit their schema."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import ROOT

import pccheck

SCHEMA = json.loads((ROOT / "spec" / "schemas" / "pcinspect-watch.json").read_text())
TOOL = ROOT / "build" / "bin" / "pcinspect"

# Saves 32 MiB again and again, until it is killed.
WRITER = """
import sys
import numpy as np
import pccheck.torch
with pccheck.torch.Checkpointer(sys.argv[1], in_flight=2, retain=2) as checkpointer:
    step = 0
    while True:
        step += 1
        checkpointer.save(step, state={"x": np.full(1 << 22, step, dtype=np.int64)})
        print(step, flush=True)
"""


def watch(path: Path, *arguments: object) -> tuple[int, list[dict[str, Any]]]:
    if not TOOL.exists():
        pytest.skip(f"{TOOL} is not built; run make tools")
    run = subprocess.run(
        [TOOL, "watch", path, "--json", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    for line in lines:
        jsonschema.validate(line, SCHEMA)
    return run.returncode, lines


def events(lines: list[dict[str, Any]]) -> set[str]:
    return {line["event"] for line in lines}


@pytest.fixture
def writer(path: Path, run_child: Callable[..., subprocess.Popen[str]]) -> subprocess.Popen[str]:
    child = run_child(WRITER, path)
    assert child.stdout is not None
    for _ in range(4):
        assert child.stdout.readline(), "the writer ended early"
    return child


def test_schema_is_strict() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for schema in (SCHEMA, SCHEMA["$defs"]["checkpoint"]):
        assert schema["additionalProperties"] is False
        assert set(schema["required"]) == set(schema["properties"])


def test_a_writer_at_work_and_killed(path: Path, writer: subprocess.Popen[str]) -> None:
    status, lines = watch(path, "--count", 30, "--interval", 0.05)
    assert status == 0
    assert {"opened", "writer_started", "began", "durable", "sample"} <= events(lines)
    last = lines[-1]
    assert last["writer"] == "at_work" and last["writer_pid"] == writer.pid
    assert last["newest"]["payload_byte_count"] >= 32 << 20
    assert last["durable_bytes_per_second"] > 0 and last["commits_per_minute"] > 0
    steps = [line["newest"]["step"] for line in lines if line["newest"]]
    assert steps == sorted(steps) and steps[-1] > steps[0]

    writer.send_signal(signal.SIGKILL)
    writer.wait()
    status, lines = watch(path, "--until-closed")
    assert status == 4
    assert "writer_gone" in events(lines) and lines[-1]["in_flight"] == []


def test_a_stopped_writer_stalls(path: Path, writer: subprocess.Popen[str]) -> None:
    # Stopped until it is stopped with something in flight.
    for _ in range(200):
        os.kill(writer.pid, signal.SIGSTOP)
        _, lines = watch(path, "--count", 1)
        if lines[-1]["in_flight"]:
            break
        os.kill(writer.pid, signal.SIGCONT)
        time.sleep(0.01)
    else:
        pytest.fail("never stopped with a checkpoint in flight")
    status, lines = watch(path, "--count", 70, "--interval", 0.1)
    assert status == 0 and "stalled" in events(lines) and lines[-1]["is_stalled"]
    status, _ = watch(path, "--exit-on-stall", 0.5, "--interval", 0.1)
    assert status == 4
    os.kill(writer.pid, signal.SIGCONT)


def test_what_was_overtaken_between_two_looks_is_not_called_durable(path: Path) -> None:
    """Which of the older ones a superblock has named since, the file does not tell."""
    with pccheck.Checkpointer(path, in_flight=2, retain=1, capacity="1 MiB") as checkpointer:
        watcher = subprocess.Popen(
            [TOOL, "watch", path, "--json", "--interval", "0.01"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert watcher.stdout is not None
        lines = map(json.loads, watcher.stdout)
        try:
            assert next(line for line in lines if line["event"] == "sample")
            watcher.send_signal(signal.SIGSTOP)
            for step in (1, 2):
                checkpointer.save(step, {"step": step}).wait()
            watcher.send_signal(signal.SIGCONT)
            seen = []
            for line in lines:
                jsonschema.validate(line, SCHEMA)
                seen += [line] if line["event"] in ("finished", "durable") else []
                if line["event"] == "durable":
                    break
        finally:
            watcher.send_signal(signal.SIGCONT)
            watcher.terminate()
            watcher.communicate(timeout=30)
    assert [line["event"] for line in seen] == ["finished", "durable"]
    assert seen[0]["message"].startswith("step 1 (sequence 1)")
    assert seen[1]["message"].startswith("step 2 (sequence 2)")
