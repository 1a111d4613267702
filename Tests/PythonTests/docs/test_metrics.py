"""What a checkpointer tells about itself, and where it can be shown."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import pccheck
import pccheck.torch
from pccheck import metrics

LINE = re.compile(r'pccheck_(\w+)\{file="[^"]*"(?:,rank="0")?\} (\S+)')


def test_statistics_count_what_blocks(path: Path) -> None:
    model = torch.nn.Linear(1000, 1000)
    with pccheck.torch.Checkpointer(path) as checkpointer:
        assert checkpointer.stats() == {}
        checkpointer.save(1, model=model).wait()
        first = checkpointer.stats()
        checkpointer.save(2, model=model)
        checkpointer.wait_staged()
        second = checkpointer.stats()
    assert first["saved_count"] == 1 and first["blocked_nanoseconds"] > 0
    assert second["blocked_nanoseconds"] > first["blocked_nanoseconds"]
    assert second["staged_wait_nanoseconds"] > first["staged_wait_nanoseconds"] == 0
    assert "interval_steps" not in first


def test_a_line_for_each_save(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pccheck"):
        with pccheck.Checkpointer(path, in_flight=1) as checkpointer:
            checkpointer.save(1, {"x": np.zeros(1 << 20)}).wait()
            checkpointer.save(2, {"x": np.zeros(1 << 20)})
    lines = [message for message in caplog.messages if message.startswith("step ")]
    assert len(lines) == 2
    for step, line in enumerate(lines, 1):
        assert re.fullmatch(
            rf"step {step}: 8\.4 MB staged in [\d.]+ ms, durable in [\d.]+ ms, [\d.]+ GB/s", line
        ), line


def test_prometheus_text(path: Path, tmp_path: Path) -> None:
    with pccheck.Checkpointer(path, retain=2) as checkpointer:
        assert metrics.prometheus_text(checkpointer) == ""
        assert metrics.postfix(checkpointer) == {}
        checkpointer.save(7, {"x": np.zeros(1000)}).wait()
        checkpointer.save(8, {"x": np.zeros(1000)}).wait()
        text = metrics.prometheus_text(checkpointer, {"rank": "0"})
        target = tmp_path / "pccheck.prom"
        metrics.write_textfile(checkpointer, target, {"rank": "0"})
        assert metrics.postfix(checkpointer) == {"durable": "8"}
        shown = metrics.scalars(checkpointer)
        with pytest.raises(pccheck.InvalidArgument, match="is no name of a label"):
            metrics.prometheus_text(checkpointer, {"a-b": "x"})
        with pytest.raises(FileNotFoundError):
            metrics.write_textfile(checkpointer, tmp_path / "missing" / "x.prom")
    values = dict(match.groups() for match in LINE.finditer(text))
    assert values["saves_total"] == values["durable_total"] == "2"
    assert values["durable_step"] == "8" and values["fail_stop"] == "0"
    assert 0 < float(values["durable_seconds"]) < 60
    assert shown["pccheck/saves_total"] == 2.0
    assert f'file="{path}",rank="0"' in text
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["pccheck.prom", "run.pcc"]
    assert LINE.sub("", target.read_text()) == LINE.sub("", text)
    assert metrics.prometheus_text(checkpointer) == ""


def test_odd_paths_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / 'a"b\\c\nd.pcc'
    with pccheck.Checkpointer(path) as checkpointer:
        checkpointer.save(1, 1).wait()
        text = metrics.prometheus_text(checkpointer)
    assert r"a\"b\\c\nd.pcc" in text and all(
        line.startswith(("#", "pccheck_")) for line in text.splitlines()
    )


def test_the_client_library_takes_it(path: Path) -> None:
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    with pccheck.Checkpointer(path) as checkpointer:
        checkpointer.save(3, 1).wait()
        registry.register(metrics.Collector(checkpointer, {"rank": "0"}))
        parsed = client.generate_latest(registry).decode()
        ours = metrics.prometheus_text(checkpointer, {"rank": "0"})
    for name in ("saves_total", "durable_step"):
        assert re.search(rf"^pccheck_{name}\{{.*rank=\"0\".*\}} \d", parsed, re.M), parsed
        assert f"pccheck_{name}" in ours
