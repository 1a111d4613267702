"""Every case of spec/PYTHON-FAILURES.md runs as it stands there, and says what stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import failure_cases
import pytest
import torch
from conftest import ROOT
from writers import preloadable

import pccheck

PAGE = ROOT / "spec" / "PYTHON-FAILURES.md"
SECTION = re.compile(r"^### (.+?)\n(.*?)(?=^##|\Z)", re.M | re.S)
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.M | re.S)
#: Case by title: its code, each with the message that it must give, or None.
Steps = list[tuple[str, str | None]]

#: Cases in which a save must be under way still; a busy machine may keep the program back.
RACES = {"Every slot is in flight", "Something else changes state that is being read"}
ATTEMPTS = 50


def sections() -> dict[str, Steps]:
    """The cases of the page."""
    found = {}
    for title, body in SECTION.findall(PAGE.read_text()):
        steps: Steps = []
        for kind, content in BLOCK.findall(body):
            if kind == "python":
                steps.append((content, None))
            else:
                code, earlier = steps[-1]
                assert earlier is None, f"{title}: two messages for one piece of code"
                steps[-1] = (code, content)
        found[title] = steps
    return found


SECTIONS = sections()


@pytest.fixture(autouse=True)
def no_process_group() -> Iterator[None]:
    """A case may make one, and the next one is of a job of one process."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_said(message: str, said: list[str]) -> bool:
    """Whether one of the messages is this one, up to white space and what ``…`` stands for."""
    pattern = re.escape(" ".join(message.split())).replace("…", ".*?")
    return any(re.fullmatch(pattern, " ".join(text.split())) for text in said)


def check(title: str, steps: Steps, said: list[list[str]]) -> None:
    """Each piece of code says its message, and what has no message ends without an error."""
    for (code, message), texts in zip(steps, said, strict=True):
        shown = "\n".join(texts)
        if message is None:
            assert not texts, f"{title}: {shown}\n{code}"
        else:
            assert is_said(message, texts), f"{title}:\n{shown}\nand not\n{message}"


def is_lost(steps: Steps, said: list[list[str]]) -> bool:
    """Whether a save was over before what should have come in its way: it rightly says nothing."""
    return any(message and not texts for (_, message), texts in zip(steps, said, strict=True))


@pytest.mark.parametrize("title", SECTIONS)
def test_case(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    steps = SECTIONS[title]
    codes = [code for code, _ in steps]
    everything = "".join(codes)
    if any(name in everything for name in ("fail_writes", "fail_flushes", "lose_device")):
        check(title, steps, run_with_failing_calls(codes, tmp_path))
        return
    needs_disk = "fill_disk" in everything or "make_read_only" in everything
    monkeypatch.chdir(request.getfixturevalue("small_disk") if needs_disk else tmp_path)
    for attempt in range(ATTEMPTS if title in RACES else 1):
        if title in RACES:
            os.mkdir(tmp_path / str(attempt))
            monkeypatch.chdir(tmp_path / str(attempt))
        with failure_cases.case() as running:
            said = [running.run(code, title) for code in codes]
        if not is_lost(steps, said):
            break
    monkeypatch.undo()
    check(title, steps, said)


def run_with_failing_calls(codes: list[str], folder: Path) -> list[list[str]]:
    """What each piece of code says in a process whose system calls fail when it is told so."""
    environment = {
        **os.environ, failure_cases.TRIGGER: str(folder / "fail"),
        "LD_PRELOAD": str(preloadable(folder, "shim", failure_cases.SHIM)),
    }  # fmt: skip
    ended = subprocess.run(
        [sys.executable, failure_cases.__file__], input=json.dumps(codes), cwd=folder,
        capture_output=True, text=True, env=environment, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    answer: list[list[str]] = json.loads(ended.stdout)
    return answer


def test_a_message_that_is_not_said_is_noticed() -> None:
    said = ["NoSpace: run.pcc: no room", "WARNING other"]
    assert is_said("NoSpace: run.pcc:\n  … room", said)
    assert not is_said("NoSpace: run.pcc: no", said)
    assert not is_said("…: run.pcc: full", said)


def test_only_silence_is_a_lost_race() -> None:
    steps: Steps = [("save", None), ("change", "StateChanged: …")]
    assert is_lost(steps, [[], []])
    assert not is_lost(steps, [[], ["StateChanged: other"]])
    assert RACES <= set(SECTIONS)


def test_the_page_has_every_exception() -> None:
    """Those that a program may meet in ordinary use; the rest are faults of the arguments."""
    text = PAGE.read_text()
    elsewhere = {
        "CheckpointError", "InvalidArgument", "FileAlreadyExists", "StateFormatError",
        "UnsupportedState", "NotTrusted",
    }  # fmt: skip
    for name in set(pccheck.errors.__all__) - elsewhere:
        assert re.search(rf"\b{name}\b", text), name


def test_the_page_fits_its_columns() -> None:
    assert all(len(line) <= 140 for line in PAGE.read_text().splitlines())
