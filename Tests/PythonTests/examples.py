"""Runs a program of Sources/Python/examples in two parts: the second resumes the first."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from conftest import ROOT

EXAMPLES = ROOT / "Sources" / "Python" / "examples"
#: Those that need more than torch; they are run by the tests beside their adapters.
FRAMEWORKS = ["train_accelerate", "train_huggingface", "train_jax", "train_lightning"]


def check_example(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both parts of a run, and that the losses are those of a run that was never interrupted."""
    whole = losses(name, path.with_name("whole.pcc"), 30, monkeypatch, capsys)
    first = losses(name, path, 16, monkeypatch, capsys)
    rest = losses(name, path, 30, monkeypatch, capsys)
    assert list(whole) == list(range(30)) and list(first) == list(range(16))
    begin = min(rest)
    assert 11 <= begin <= 16, f"{name} went on at step {begin}"
    assert rest == {step: whole[step] for step in range(begin, 30)}
    assert {step: whole[step] for step in range(16)} == first
    assert len(set(whole.values())) > 10


def losses(
    name: str, path: Path, steps: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> dict[int, str]:  # fmt: skip
    """What an example prints."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [f"{name}.py", str(path), "--steps", str(steps)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    found = re.findall(r"^step (\d+): loss (\S+)$", capsys.readouterr().out, re.M)
    return {int(step): loss for step, loss in found}
