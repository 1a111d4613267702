"""What is said of odd paths and names: complete, on one line, and nothing that steers a terminal;
and names as long as the file system takes them."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

import pccheck
import pccheck.numpy
from pccheck._core import native
from pccheck._core.printable import printable

TOOLS = ROOT / "build" / "bin"
#: A folder whose name clears the screen, turns the direction of reading, and breaks the line.
EVIL = "evil\x1b[2J\u202e\u2028\n\r\x9b"


def is_harmless(text: str) -> bool:
    return not any(unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp", "Cs") for char in text)


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    folder = tmp_path / EVIL
    folder.mkdir()
    return folder / "run.pcc"


def messages_about(path: Path) -> list[BaseException]:
    """What the package says of a file in a number of situations."""
    said: list[BaseException] = []

    def hear(call: Any, *arguments: Any, **options: Any) -> None:
        with pytest.raises(Exception) as caught:
            call(*arguments, **options)
        said.append(caught.value)

    hear(pccheck.load, path)
    hear(pccheck.Checkpointer, path.parent)
    hear(pccheck.Checkpointer, path.parent / "none" / "run.pcc")
    ckpt = pccheck.Checkpointer(path, retain=1, in_flight=1, capacity="64 KiB", pool="16 MiB")
    hear(pccheck.Checkpointer, path)
    hear(ckpt.save, 1, {"x": np.zeros(1 << 20)})
    ckpt.save(3, {"x": np.arange(3)}).wait()
    hear(ckpt.save, 1, {"x": np.arange(3)})
    hear(ckpt.load, 17)
    hear(pccheck.numpy.load_into, path, y=np.zeros(3))
    hear(pccheck.load, path, into={"y": np.zeros(3)})
    ckpt.close()
    hear(ckpt.save, 4, {"x": np.arange(3)})
    hear(pccheck.Checkpointer, path, rank=1, world_size=2)
    hear(pccheck.Checkpointer, path, fingerprint="other\x1b[31m")
    path.write_bytes(b"no checkpoint file")
    hear(pccheck.load, path)
    hear(pccheck.Checkpointer, path)
    return said


def test_paths_in_messages_are_escaped(evil: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "pccheck")
    for error in messages_about(evil):
        lines = str(error).split("\n") if isinstance(error, pccheck.StateMismatch) else [str(error)]
        assert all(map(is_harmless, lines)), repr(error)
        assert EVIL not in str(error)
        # Of a file that a message names, the name can be read.
        if "run.pcc" in str(error):
            assert printable(EVIL) in str(error), repr(error)


def test_log_lines_are_escaped(evil: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "pccheck")
    state = {"x": np.arange(4)}
    with pccheck.numpy.Checkpointer(evil) as ckpt:
        ckpt.save(1, rng=False, **state).wait()
    with pccheck.numpy.Checkpointer(evil) as ckpt:
        ckpt.resume(rng=False, x=np.zeros(4, int))
    assert any("resumed step 1" in record.getMessage() for record in caplog.records)
    assert all(is_harmless(record.getMessage()) for record in caplog.records)


def test_keys_in_messages_are_escaped(path: Path) -> None:
    key = "\x1b]0;title\x07\n\u202e\ud800"
    with pccheck.Checkpointer(path) as ckpt:
        with pytest.raises(TypeError) as caught:
            ckpt.save(1, {key: {"a": object()}})
        assert is_harmless(str(caught.value)) and r"\u{1b}]0;title" in str(caught.value)
        state: dict[str, Any] = {}
        state[key] = state
        with pytest.raises(ValueError) as endless:
            ckpt.save(1, state)
        assert is_harmless(str(endless.value))
        with pytest.raises(TypeError) as bad_key:
            ckpt.save(1, {key: {object(): 1}})
        assert is_harmless(str(bad_key.value))
        str(caught.value).encode()


# ---------------------------------------------------------------- long messages


def test_messages_are_complete(tmp_path: Path) -> None:
    """The C struct has room for 1,000 bytes; a path alone may have 4,095."""
    folder = tmp_path
    while len(os.fsencode(folder)) < 3000:
        folder = folder / ("ö" * 100)
    folder.mkdir(parents=True)
    count = 0
    for error in messages_about(folder / "run.pcc"):
        assert not str(error).endswith("…")
        if "run.pcc" in str(error):
            count += 1
            assert str(folder) in str(error), error
    assert count > 8


def test_a_cut_message_shows_that_it_is_cut(tmp_path: Path) -> None:
    error = native.Error()
    library = native.library()
    place = str(tmp_path / ("a" * 200) / ("b" * 200) / ("ä" * 100) / ("c" * 200) / ("d" * 220))
    assert library.pcc_create(place.encode(), None, ctypes.byref(error)) != native.OK
    shown = error.message.decode()
    assert len(error.message) <= 999
    whole = native.take_text(ctypes.c_void_p(library.pcc_error_message(ctypes.byref(error))))
    if shown.endswith(" …"):
        assert whole.startswith(shown[:-2]) and len(whole) > len(shown)
    else:
        assert whole == shown


def test_every_thread_has_its_own_message(tmp_path: Path) -> None:
    wrong: list[str] = []

    def work(name: str) -> None:
        place = tmp_path / (name * 250) / (name * 250) / (name * 250) / (name * 250) / name
        for _ in range(200):
            try:
                pccheck.load(place)
            except pccheck.FileMissing as error:
                if str(place) not in str(error) or str(error).endswith("…"):
                    wrong.append(str(error))

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_why_a_checkpoint_is_passed_over_is_complete(path: Path) -> None:
    """What Python found goes through the library to whoever asks for it."""
    with pccheck.Checkpointer(path, retain=2) as ckpt:
        ckpt.save(1, {"x": 1}).wait()
        ckpt.save(2, {"x": 2}).wait()
    reason = pccheck.StateFormatError("ä" * 2000 + "the end")
    with pccheck._core.reader.Reader(path) as reader:
        reader.select_newest()
        assert reader.select_next(reason).step == 1
        assert reader.rejections()[0]["message"].endswith("the end")


# ---------------------------------------------------------------- long names


@pytest.mark.parametrize(
    "name", ["x" * 255, "ä" * 127 + "y", "\U0001f40d" * 63, "z" * 251 + ".pcc"]
)
def test_a_name_as_long_as_names_get(name: str, tmp_path: Path) -> None:
    place = tmp_path / name
    with pccheck.Checkpointer(place) as ckpt:
        ckpt.save(1, {"x": np.arange(5)}).wait()
    assert os.listdir(tmp_path) == [name]
    assert pccheck.load(place)["x"].tolist() == [0, 1, 2, 3, 4]


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    place = tmp_path / ("x" * 256)
    with pytest.raises(pccheck.CheckpointError, match="File name too long; give a shorter name"):
        pccheck.Checkpointer(place, capacity="64 KiB")


@pytest.mark.skipif(not (TOOLS / "pcfsck").exists(), reason="needs the tools")
def test_the_tools_take_a_name_as_long_as_names_get(tmp_path: Path) -> None:
    place = tmp_path / ("n" * 255)
    out = tmp_path / ("o" * 243 + ".safetensors")
    made = [
        [TOOLS / "pccheck", "create", place, "--capacity", "64K"],
        [sys.executable, "-m", "pccheck", "convert", place, "-o", tmp_path / ("p" * 252 + ".pt")],
        [TOOLS / "pcextract", place, "-o", out],
        [sys.executable, "-m", "pccheck", "convert", out, "-o", tmp_path / ("q" * 251 + ".pcc")],
    ]
    subprocess.run(made[0], check=True, capture_output=True)
    with pccheck.Checkpointer(place) as ckpt:
        ckpt.save(1, {"x": np.arange(5)}).wait()
    for line in made[1:]:
        ended = subprocess.run(line, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    content = bytearray(place.read_bytes())
    content[:4096] = bytes(4096)
    place.write_bytes(content)
    repaired = subprocess.run(
        [TOOLS / "pcfsck", "-y", place], capture_output=True, text=True, check=False
    )
    assert repaired.returncode == 1, repaired.stdout + repaired.stderr
    assert sum(".undo-" in name for name in os.listdir(tmp_path)) == 1


# ---------------------------------------------------------------- paths that are no text


@pytest.mark.parametrize("kind", [bytes, os.fsdecode, lambda raw: Path(os.fsdecode(raw))])
def test_a_path_that_is_not_utf8(kind: Any, tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/run\xff\xfe.pcc"
    message = re.escape(r"run\xff\xfe.pcc' is not UTF-8; rename the file")
    for call in (pccheck.load, pccheck.checkpoints, pccheck.report):
        with pytest.raises(pccheck.InvalidArgument, match=message) as caught:
            call(kind(raw))
        str(caught.value).encode()
    with pytest.raises(pccheck.InvalidArgument, match=message):
        pccheck.Checkpointer(kind(raw), capacity="64 KiB")
    assert not os.listdir(tmp_path)


def test_a_path_in_bytes_is_a_path(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path / "rün.pcc")
    with pccheck.Checkpointer(raw) as ckpt:
        ckpt.save(1, {"x": 1}).wait()
    assert pccheck.load(raw) == {"x": 1} and [info.step for info in pccheck.checkpoints(raw)] == [1]


def test_a_path_with_nul(tmp_path: Path) -> None:
    for call in (pccheck.load, pccheck.Checkpointer):
        with pytest.raises(pccheck.InvalidArgument, match=r"contains a NUL byte"):
            call(str(tmp_path / "a\0b"))


@pytest.mark.parametrize("what", ["metadata", "fingerprint"])
def test_text_that_utf8_cannot_hold(what: str, path: Path) -> None:
    def use(text: Any) -> None:
        if what == "metadata":
            with pccheck.Checkpointer(path, capacity="64 KiB") as ckpt:
                ckpt.save(1, {}, metadata=text)
        else:
            pccheck.Checkpointer(path, fingerprint=text)

    with pytest.raises(pccheck.InvalidArgument, match=f"{what} has half a surrogate pair"):
        use("a\ud800")
    with pytest.raises(pccheck.InvalidArgument, match=f"{what} must not contain a NUL"):
        use("a\0")
    with pytest.raises(pccheck.InvalidArgument, match=f"{what} has 5000 bytes"):
        use("a" * 5000)
    with pytest.raises(TypeError, match=f"{what} is of type int, expected"):
        use(3)
