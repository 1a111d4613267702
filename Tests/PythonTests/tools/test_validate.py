"""Predictions are written down before they are measured, and errors are computed right."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

pytest.importorskip("matplotlib")

from Benchmarks import environments, predictions, validate, validation_report
from Benchmarks.environments import KINDS, Unavailable
from Benchmarks.plots import draw_validation
from Benchmarks.predictions import MIB, Journal, Setting

TOOL = ROOT / "build" / "bin" / "pccheck"
PROFILE = {
    "processor_count": 2,
    "device": [
        {"write_byte_count": size, "queue_depth": depth, "bytes_per_second": rates}
        for size, depth, rates in (
            (1 * MIB, 1, [8.0e8, 8.2e8, 8.3e8]), (1 * MIB, 4, [1.4e9, 1.4e9, 1.5e9]),
            (4 * MIB, 1, [1.0e9, 1.1e9, 1.2e9]), (4 * MIB, 4, [1.4e9, 1.5e9, 1.5e9]),
        )
    ],
    "flush_seconds": [0.0002, 0.0003, 0.0005], "block_seconds": [1e-4, 1e-4, 2e-4],
    "commit_seconds": [5e-4, 6e-4, 9e-4],
    "call_seconds": [2e-4, 3e-4, 4e-4], "memory_bytes_per_second": [2e10, 2.1e10, 2.2e10],
    "digest_bytes_per_second": [5e9, 5e9, 6e9],
    "codecs": [
        {"codec": "zstd", "bytes_per_second": [4e8, 5e8, 5e8], "compression_ratio": 1.2}
    ],
}  # fmt: skip
SATURATED = Setting(4 * MIB, 2, 1 * MIB, 1, 4 * MIB)
SUSTAINED = replace(SATURATED, step="busy", step_milliseconds=10, interval=3)


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(PROFILE))
    return path


def command(tmp_path: Path, *arguments: object) -> list[str]:
    return [
        sys.executable, "-m", "Benchmarks.validate", "--quick", "--directory",
        str(tmp_path / "disk"), "--output", str(tmp_path / "output"), "--tool", str(TOOL),
        *map(str, arguments),
    ]  # fmt: skip


def test_forty_settings_of_all_environments() -> None:
    assert list(validate.SATURATED) == list(validate.SUSTAINED) == list(KINDS)
    settings = [
        setting
        for name in KINDS
        for setting in (*validate.SATURATED[name], *(row[0] for row in validate.SUSTAINED[name]))
    ]
    assert len(settings) >= 40
    for setting in settings:
        assert setting.pool_byte_count >= (
            setting.workers * setting.writes_per_worker * setting.chunk_byte_count
        ), setting.text


def test_the_overhead_of_a_long_loop() -> None:
    # Saves every 3 steps, each of which costs half a step; 2 of 8 steps come before the first.
    steps = predictions.loop_steps(SUSTAINED, 2)
    assert steps == 8
    slowdown = (8 + 2 * 0.5) / 8
    assert math.isclose(predictions.overhead(slowdown, 3, steps), 0.5 / 3)


def test_figures_are_of_the_right_fields() -> None:
    def case(durable: int) -> dict[str, Any]:
        return {
            "wanted_count": 4, "durable_count": durable, "superseded_count": 1,
            "slowdown": {"values": [2.0, 4.0, 3.0]},
            "durable_milliseconds": {"median": 400.0}, "blocked_milliseconds_mean": 7.0,
        }  # fmt: skip

    figures = predictions.figures([case(3)], SATURATED, 4, [100.0, 300.0])
    assert math.isclose(figures["write_seconds"], 0.4) and figures["loop_ratio"] == 3
    assert figures["device_megabytes_per_second"] == 200
    # A loop that lets the queue run empty has no Tw(N).
    assert predictions.figures([case(3)], SUSTAINED, 8, [1.0])["write_seconds"] is None
    with pytest.raises(RuntimeError, match="1 of 4 saves did not become durable"):
        predictions.figures([case(2)], SATURATED, 4, [1.0])


def results_of(*rows: tuple[str, Setting, float, float]) -> dict[str, Any]:
    """A result whose rows are predicted and measured as given."""
    return {
        "time": "", "profiles": {"disk": PROFILE}, "sweeps": [],
        "left_out": [{"what": "tmpfs", "reason": "it is not there"}],
        "machine": {
            "core_count": 2, "processor": "", "memory_byte_count": 1, "file_system": "ext4",
            "kernel": "",
        },
        "settings": [
            {
                "environment": name, "setting": setting.json, "text": setting.text,
                "predicted": {"write_seconds": predicted, "overhead": {"value": predicted - 1}},
                "measured": {
                    "write_seconds": measured, "loop_ratio": measured,
                    "device_megabytes_per_second": 1.0,
                },
            }
            for name, setting, predicted, measured in rows
        ],
    }  # fmt: skip


def test_errors_and_misses_are_shown() -> None:
    results = results_of(
        ("disk", SATURATED, 1.0, 1.0), ("disk", SATURATED, 1.1, 1.0),
        ("disk", SATURATED, 0.5, 1.0), ("ranks", SUSTAINED, 1.05, 1.0),
    )  # fmt: skip
    rows = validation_report.comparisons(results)
    assert [row["quantity"] for row in rows] == ["Tw", "Tw", "Tw", "loop"]
    figures = validation_report.summary(rows[:3])
    assert math.isclose(figures["median"], 0.1) and figures["worst"] == 0.5
    assert not figures["kept"] and validation_report.summary(rows[3:])["kept"]
    text = validation_report.markdown(results)
    assert "| the disk | Tw | 3 | 10.0% | 50.0% | missed |" in text
    assert "| two ranks on the disk | loop | 1 | 5.0% | 5.0% | kept |" in text
    assert "## Errors above 25%: 1 of 4" in text
    assert text.count("| Tw | 500 ms | 1000 ms | -50.0% |") == 2  # among the misses, and in all
    assert "- tmpfs: it is not there" in text
    assert "| the disk | 1500 | 21000 | 5000 | 0.30 |" in text


def test_a_picture_of_both_quantities(tmp_path: Path) -> None:
    results = results_of(
        *((name, SATURATED, 0.1 * (place + 1), 0.12 * (place + 1))
          for place, name in enumerate(KINDS)),
        *((name, SUSTAINED, 1.0, 1.01 + 0.1 * place) for place, name in enumerate(KINDS)),
    )  # fmt: skip
    (path,) = draw_validation(results, tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert draw_validation({**results, "settings": []}, tmp_path) == []


def test_what_is_not_measured_is_not_compared() -> None:
    results = results_of(("disk", SATURATED, 1.0, 1.0))
    results["settings"][0]["measured"] = None
    assert validation_report.comparisons(results) == []


def test_a_journal_line_is_in_the_file_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write("prediction", id=3)
    (line,) = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert json.loads(line)["what"] == "prediction" and json.loads(line)["id"] == 3
    journal.close()


@pytest.mark.parametrize("name", KINDS)
def test_an_environment_measures_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    try:
        with environments.opened(name, tmp_path) as environment:
            folder = environment.directory
            if environment.kind.loader_share:
                environment.loader_bytes_per_second = 5e7
            with environments.loaded(environment):
                full = predictions.measure(TOOL, environment, SATURATED, 3, 1)
                loop = predictions.measure(TOOL, environment, SUSTAINED, 2, 1)
    except Unavailable as reason:
        pytest.skip(str(reason))
    ranks = KINDS[name].ranks
    assert full["write_seconds"] > 0 and len(full["write_seconds_values"]) == ranks
    assert loop["write_seconds"] is None and len(loop["loop_ratio_values"]) == ranks
    assert full["step_count"] == 3 and loop["step_count"] == 8
    assert not folder.exists() and list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    for cgroups in ("/sys/fs/cgroup", "/sys/fs/cgroup/blkio"):
        assert list(Path(cgroups).glob(f"pccheck-validate-{os.getpid()}")) == []


def test_the_recommendation_against_a_sweep(tmp_path: Path, profile: Path) -> None:
    result = subprocess.run(
        command(tmp_path, "--sweep", "--only", "disk", "--profile", f"disk={profile}", "--json"),
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (sweep,) = json.loads(result.stdout)["sweeps"]
    assert sweep["setting_count"] == len(sweep["sweep"]) >= 2
    assert sweep["recommended"] == sweep["sweep"][0]["setting"] == sweep["final"][0]["setting"]
    assert all(len(row["loop_ratios"]) == 1 for row in (*sweep["sweep"], *sweep["final"]))
    assert {row["setting"]["interval"] for row in sweep["sweep"]} == {
        sweep["recommended"]["interval"]
    }
    expected = sweep["recommended_loop_ratio"] / sweep["best_loop_ratio"] - 1
    assert math.isclose(sweep["loss"], expected, abs_tol=1e-12)
    output = tmp_path / "output"
    what = [json.loads(line)["what"] for line in (output / "journal.jsonl").open()]
    assert what == ["profile", "recommendation", "sweep"]
    assert "Recommendation against the best of a sweep" in (output / "validation.md").read_text()
    assert list((tmp_path / "disk").iterdir()) == []


def test_predictions_come_before_measurements(tmp_path: Path, profile: Path) -> None:
    arguments = command(tmp_path, "--only", "disk", "--profile", f"disk={profile}")
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    output = tmp_path / "output"
    lines = [json.loads(line) for line in (output / "journal.jsonl").open()]
    assert [line["what"] for line in lines] == [
        "profile", "prediction", "prediction", "measurement", "measurement"
    ]  # fmt: skip
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    rows = validation_report.comparisons(
        json.loads((output / "validation.json").read_text())
    )
    assert [row["quantity"] for row in rows] == ["Tw", "loop"]
    assert (output / "validation.png").read_bytes().startswith(b"\x89PNG")
    assert "Relative errors" in result.stdout
    assert list((tmp_path / "disk").iterdir()) == []


def test_a_cancelled_run_leaves_nothing(tmp_path: Path, profile: Path) -> None:
    child = subprocess.Popen(
        command(
            tmp_path, "--sweep", "--only", "loader", "--profile", f"disk={profile}",
            "--profile", f"loader={profile}",
        ),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stderr is not None
    for line in child.stderr:
        if "[1/" in line:
            break
    time.sleep(0.5)
    child.send_signal(signal.SIGTERM)
    errors = child.stderr.read()
    assert child.wait(timeout=60) == 32
    assert "cancelled" in errors
    assert list((tmp_path / "disk").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--profile", "tape=x"], 16, "expected one of disk, loader, memory, throttled"),
        (["--profile", "disk=/nowhere"], 16, "expected one of disk, loader, memory, throttled"),
        (["--rounds", "0"], 16, "expected 1 or more"),
        (["--tool", "/nowhere"], 8, "/nowhere: no such program"),
    ],
)
def test_bad_input(tmp_path: Path, arguments: list[str], status: int, message: str) -> None:
    result = subprocess.run(command(tmp_path, *arguments), capture_output=True, text=True)
    assert result.returncode == status and message in result.stderr
