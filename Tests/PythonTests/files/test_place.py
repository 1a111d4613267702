"""A file that is moved, hidden or frozen while a checkpointer writes it: the next save says so."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pccheck
import pytest
from disks import loop_device

STATE = {"x": np.arange(9)}


@pytest.fixture
def undo() -> Iterator[list[list[object]]]:
    """Commands that a test wants run at its end."""
    commands: list[list[object]] = []
    yield commands
    for command in reversed(commands):
        subprocess.run([str(word) for word in command], capture_output=True)


def mount(undo: list[list[object]], *words: object, at: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    done = subprocess.run(
        ["mount", *map(str, words), str(at)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    undo.append(["umount", "-l", at])


def rename_folder(folder: Path, _: list[list[object]]) -> None:
    folder.rename(folder.with_name("renamed"))


def remove_folder(folder: Path, _: list[list[object]]) -> None:
    shutil.rmtree(folder)


def put_a_file_there(folder: Path, _: list[list[object]]) -> None:
    shutil.rmtree(folder)
    folder.write_text("no folder")


def swap_link_to_folder(folder: Path, _: list[list[object]]) -> None:
    folder.rename(folder.with_name("first"))
    folder.with_name("second").mkdir()
    folder.symlink_to("second")


def mount_over_folder(folder: Path, undo: list[list[object]]) -> None:
    mount(undo, "-t", "tmpfs", "tmpfs", at=folder)


def mount_over_file(folder: Path, undo: list[list[object]]) -> None:
    other = folder.with_name("other")
    other.write_bytes(bytes(100))
    mount(undo, "--bind", other, at=folder / "run.pcc")


MOVES: list[Callable[[Path, list[list[object]]], None]] = [
    rename_folder, remove_folder, put_a_file_there, swap_link_to_folder, mount_over_folder,
    mount_over_file,
]  # fmt: skip


@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__)
def test_a_save_that_no_later_job_would_find_is_refused(
    tmp_path: Path, undo: list[list[object]], move: Callable[[Path, list[list[object]]], None]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    checkpointer = pccheck.Checkpointer(folder / "run.pcc")
    checkpointer.save(1, STATE).wait()
    move(folder, undo)
    for use in (lambda: checkpointer.save(2, STATE), checkpointer.close):
        with pytest.raises(pccheck.FileMissing, match="while this checkpointer writes it"):
            use()
    assert not checkpointer.is_open


def test_a_folder_that_is_no_folder_any_more_is_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("")
    with pytest.raises(pccheck.FileMissing):
        pccheck.load(tmp_path / "folder" / "run.pcc")


def test_a_link_to_a_file_is_followed_once(tmp_path: Path) -> None:
    """What is written stays where it was opened; the next save says that the link was swapped."""
    link, first, second = (tmp_path / name for name in ("run.pcc", "first.pcc", "second.pcc"))
    for place in (first, second):
        pccheck.Checkpointer(place, capacity="1 MiB").close()
    link.symlink_to(first)
    checkpointer = pccheck.Checkpointer(link)
    handle = checkpointer.save(1, STATE)
    link.unlink()
    link.symlink_to(second)
    assert handle.wait().durable
    with pytest.raises(pccheck.FileMissing, match="another file is there"):
        checkpointer.save(2, STATE)
    with pytest.raises(pccheck.FileMissing):
        checkpointer.close()
    assert [info.step for info in pccheck.checkpoints(first)] == [1]
    assert pccheck.checkpoints(second) == []
    # Put back, it is the file that it was.
    link.unlink()
    link.symlink_to(first)
    with pccheck.Checkpointer(link) as again:
        assert again.steps() == [1]


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Where a file system is mounted that becomes read-only after an error, and its device."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    with loop_device(image) as device:
        subprocess.run(["mount", "-o", "errors=remount-ro", device, mounted], check=True)
        yield mounted, device
        subprocess.run(["umount", "-l", mounted])


@pytest.mark.parametrize("backend", ["direct", "buffered"])
def test_a_file_system_that_freezes_after_an_error(
    ext4: tuple[Path, str], backend: str
) -> None:
    mounted, device = ext4
    trigger = Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error")
    if not trigger.exists():
        pytest.skip("this kernel has no trigger_fs_error")
    path = mounted / "run.pcc"
    checkpointer = pccheck.Checkpointer(path, retain=2, backend=backend)
    checkpointer.save(1, STATE).wait()
    trigger.write_text("x")
    for step in (2, 3):
        with pytest.raises(pccheck.ReadOnly, match="the kernel made it so after an error"):
            checkpointer.save(step, STATE).wait()
    with pytest.raises(pccheck.ReadOnly):
        checkpointer.close()
    assert [info.step for info in pccheck.checkpoints(path)] == [1]


def test_a_file_system_that_is_unmounted(ext4: tuple[Path, str]) -> None:
    mounted, device = ext4
    path = mounted / "run.pcc"
    checkpointer = pccheck.Checkpointer(path, retain=2)
    checkpointer.save(1, STATE).wait()
    handle = checkpointer.save(2, STATE)
    subprocess.run(["umount", "-l", mounted], check=True)
    # It was opened before: it is written all the same.
    assert handle.wait().durable
    with pytest.raises(pccheck.FileMissing, match="was removed or renamed"):
        checkpointer.save(3, STATE)
    with pytest.raises(pccheck.FileMissing):
        checkpointer.close()
    subprocess.run(["mount", device, mounted], check=True)
    with pccheck.Checkpointer(path) as again:
        assert again.steps() == [2, 1]
