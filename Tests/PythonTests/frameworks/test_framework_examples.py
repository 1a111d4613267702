"""The examples of the frameworks, interrupted and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
from examples import FRAMEWORKS, check_example

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_example(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_example(name, path, monkeypatch, capsys)
