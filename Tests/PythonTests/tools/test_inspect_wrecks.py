"""pcinspect on wrecks, strangers and files in use, and how its screens fit a terminal."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import re
import struct
import subprocess
import termios
import time
from pathlib import Path

import images
import numpy as np
import pytest
from conftest import ROOT, pattern

import pccheck

TOOL = ROOT / "build" / "bin" / "pcinspect"
VIEWS = [
    "summary {f}", "super {f}", "slots {f}", "chunks {f}", "chunks {f} --verify",
    "chunks {f} --verify --all", "tensors {f}", "tensors {f} --stats --salvage", "diff {f}",
    "diff {f} {f} --slots 0 1", "metadump {f} -o {f}.dump", "hexdump {f}",
    "hexdump {f} identity --annotate", "hexdump {f} identity-tail --annotate",
    "hexdump {f} super 1 --annotate", "hexdump {f} slot 1 --annotate",
    "hexdump {f} table 1 --annotate", "hexdump {f} chunk 1 0 --annotate --length 256",
    "hexdump {f} --offset 20480 --length 100",
]


@pytest.fixture(autouse=True)
def needs_tool() -> None:
    if not TOOL.exists():
        pytest.skip(f"{TOOL} is not built; run make tools")


def run(view: str, path: Path | str) -> subprocess.CompletedProcess[bytes]:
    arguments = [part.format(f=path) for part in view.split()]
    result = subprocess.run([TOOL, *arguments], capture_output=True, timeout=60, check=False)
    # A trap is a signal; 32 and more would be one too, in a shell.
    assert result.returncode in (0, 1, 4, 5, 8, 16), (view, result)
    return result


def two_checkpoints(path: Path, value_count: int = 30_000) -> bytes:
    payloads = []
    for seed in (1, 2):
        values = np.random.default_rng(seed).normal(size=value_count)
        tensors = [
            ("model.\x1b[31mred\n.weight", "F64", [value_count], values.tobytes()),
            ("a very long name of a tensor " * 5, "F8_E4M3FNUZ", [2, 2], b"abcd"),
        ]
        payloads.append(images.safetensors(tensors, {"state": '{"step": %d}' % seed}))
    images.write(path, payloads)
    return path.read_bytes()


STRANGERS = {
    "missing": lambda path: None,
    "directory": lambda path: path.mkdir(),
    "FIFO": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "0 bytes": lambda path: path.touch(),
    "text": lambda path: path.write_text("not a checkpoint\n" * 1000),
    "noise": lambda path: path.write_bytes(np.random.default_rng(1).bytes(100_000)),
    "odd size": lambda path: path.write_bytes(np.random.default_rng(1).bytes(5000)),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_strangers_are_refused_with_a_reason(path: Path, stranger: str) -> None:
    STRANGERS[stranger](path)
    for view in VIEWS:
        result = run(view, path)
        is_shown = stranger in ("text", "noise", "odd size") and (
            view.startswith("metadump") or (view.startswith("hexdump") and result.stdout)
        )
        if is_shown:
            continue
        if view.startswith("metadump") and stranger == "0 bytes":
            continue
        assert result.returncode in (4, 8, 16), (view, result)
        assert b"run.pcc" in result.stderr and result.stderr.startswith(b"pcinspect: "), result


def resealed(image: bytes, slot_offset: int, patches: dict[int, bytes]) -> bytes:
    """The image with other bytes in a slot header, whose checksum fits again."""
    header = bytearray(image[slot_offset : slot_offset + 4080])
    for offset, content in patches.items():
        header[offset : offset + len(content)] = content
    sealed = images.seal(bytes(header), 4096)
    return image[:slot_offset] + sealed + image[slot_offset + 4096 :]


def test_numbers_beyond_belief_are_shown_or_refused(path: Path) -> None:
    image = two_checkpoints(path)
    slot = image.index(b"PCKSLOTH", 16385)
    largest = struct.pack("<Q", 2**64 - 1)
    for offset in range(8, 148, 8):
        for content in (largest[:4], largest, struct.pack("<Q", 2**62)):
            path.write_bytes(resealed(image, slot, {offset: content}))
            for view in ("summary {f}", "hexdump {f} slot 1 --annotate"):
                assert run(view, path).returncode in (0, 4)
    # A sequence far above the other, a nanosecond later: a rate that no integer holds.
    times = struct.pack("<2Q", 5, 6)
    path.write_bytes(resealed(image, slot, {40: struct.pack("<Q", 2**63), 56: times}))
    assert b"checkpoints/h" in run("summary {f}", path).stdout


def test_every_cut_of_a_file_is_shown_or_refused(path: Path) -> None:
    image = two_checkpoints(path)
    for size in (1, 4097, 16384, 24576, len(image) // 2, len(image) - 4096):
        path.write_bytes(image[:size])
        for view in VIEWS[::4] + VIEWS[-5:]:
            result = run(view, path)
            assert result.stdout or result.stderr


def test_nothing_is_modified_even_where_nothing_can_be(small_disk: Path) -> None:
    path = small_disk / "run.pcc"
    before = hashlib.sha256(two_checkpoints(path)).digest()
    outside = small_disk.parent / "run.dump"
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for view in VIEWS:
        result = run(view.replace("{f}.dump", str(outside)), path)
        assert result.returncode in (0, 1), (view, result)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    for view in VIEWS:
        run(view, path)
    assert hashlib.sha256(path.read_bytes()).digest() == before


def test_a_file_that_shrinks_meanwhile_is_no_trap(path: Path) -> None:
    image = two_checkpoints(path, 2_000_000)
    generator = np.random.default_rng(4)
    for view in ("chunks {f} --verify", "tensors {f} --stats", "diff {f}", "hexdump {f} chunk 1 0"):
        for delay in generator.uniform(0, 0.05, size=4):
            path.write_bytes(image)
            arguments = [part.format(f=path) for part in view.split()]
            with subprocess.Popen(
                [TOOL, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as child:
                time.sleep(delay)
                os.truncate(path, 30_000)
                _, errors = child.communicate(timeout=60)
            assert child.returncode in (0, 1, 4, 5, 8), (view, child.returncode, errors)


def test_a_writer_at_work_does_not_disturb(path: Path) -> None:
    with pccheck.Checkpointer(path, in_flight=2, retain=2) as checkpointer:
        for step in range(1, 9):
            checkpointer.save(step, {"x": pattern(step)})
            view = VIEWS[step]
            result = run(view, path)
            # A slot may be taken under the reader, which says so.
            assert result.returncode in (0, 1) or result.stderr, (view, result)


def on_terminal(view: str, path: Path) -> str:
    """What the tool shows on a terminal of 80 columns, without its colours."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    environment = {**os.environ, "LANG": "C.UTF-8", "TERM": "xterm"}
    arguments = [part.format(f=path.name) for part in view.split()]
    child = subprocess.Popen(
        [TOOL, *arguments], stdout=slave, stderr=subprocess.DEVNULL, env=environment,
        cwd=path.parent,
    )
    os.close(slave)
    shown = b""
    try:
        while part := os.read(master, 65536):
            shown += part
    except OSError:
        pass  # The other end was closed: all was read.
    os.close(master)
    assert child.wait() in (0, 1, 4, 5), view
    return re.sub("\x1b\\[[0-9;]*m", "", shown.decode()).replace("\r\n", "\n")


@pytest.mark.parametrize("damage", ["none", "identity", "chunk"])
def test_screens_fit_80_columns(path: Path, damage: str) -> None:
    image = bytearray(two_checkpoints(path, 400_000))
    if damage != "none":
        image[60 if damage == "identity" else -(400_000 * 4)] ^= 0x20
        path.write_bytes(image)
    for view in VIEWS:
        shown = on_terminal(view, path)
        assert "\x1b" not in shown and shown.strip()
        for line in shown.splitlines():
            assert len(line) <= 80, (view, line)


def test_eighty_slots_and_many_chunks_fit_one_screen(path: Path) -> None:
    options = {"in_flight": 64, "retain": 16, "chunk": "64 KiB", "capacity": "60 MiB"}
    with pccheck.Checkpointer(path, **options) as checkpointer:
        for step in range(1, 21):
            checkpointer.save(step, {"x": np.full(2, step)}).wait()
        checkpointer.save(21, {"x": np.arange(7_000_000)}).wait()
    shown = on_terminal("summary {f}", path).splitlines()
    assert len(shown) <= 40 and max(map(len, shown)) <= 80, "\n".join(shown)
    assert any("16 " in line and "retained" in line or "15 retained" in line for line in shown)
    shown = on_terminal("chunks {f} --verify", path).splitlines()
    assert len(shown) <= 24 and max(map(len, shown)) <= 80, "\n".join(shown)
