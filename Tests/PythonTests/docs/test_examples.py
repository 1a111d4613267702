"""The examples that need only torch or NumPy; see `frameworks/test_framework_examples.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from examples import EXAMPLES, FRAMEWORKS, check_example

PLAIN = ["train_dcp", "train_numpy", "train_pytorch"]


@pytest.mark.parametrize("name", PLAIN)
def test_example(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_example(name, path, monkeypatch, capsys)


def test_every_example_is_run() -> None:
    """The demonstration, with what it trains, and the job of many ranks have tests of their own."""
    names = {path.stem for path in EXAMPLES.glob("train_*.py")}
    assert names == {*PLAIN, *FRAMEWORKS, "train_gpt", "train_distributed"}
