"""The page "How often should I save?": its commands print what it shows."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

PAGE = ROOT / "docs" / "pages" / "how-often.md"
TOOLS = ROOT / "build" / "bin"
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.M | re.S)
#: The name of a file, and below it what it holds.
FILE = re.compile(r"^`([\w.-]+)`:\n\n```(?:json|csv)\n(.*?)^```$", re.M | re.S)


def shown() -> list[tuple[str, str]]:
    """Each command of the page, and the output below it."""
    return [
        (command, output)
        for block in CONSOLE.findall(PAGE.read_text())
        for command, output in re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block, re.M)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if not (TOOLS / "pccheck").exists():
        pytest.skip(f"{TOOLS / 'pccheck'} is not built; run make tools")
    for name, text in FILE.findall(PAGE.read_text()):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_page_has_commands() -> None:
    commands = [command for command, _ in shown()]
    assert len(commands) >= 9
    assert {command.split()[1] for command in commands} == {"tune", "goodput"}
    assert all(output for _, output in shown())


@pytest.mark.parametrize(("command", "output"), shown(), ids=[c for c, _ in shown()])
def test_a_command_prints_what_the_page_shows(command: str, output: str, folder: Path) -> None:
    path = f"{TOOLS}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=False,
        timeout=120, env={"PATH": path, "LANG": "C.UTF-8"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout == output
    picture = folder / "tune.svg"
    if "--plot tune.svg" in command:
        shipped = PAGE.parent / "assets" / "how-often.svg"
        assert picture.read_text() == shipped.read_text(), f"copy {picture} to {shipped}"
