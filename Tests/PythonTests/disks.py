"""Disks of the tests' own: loop devices, file systems on them, QEMU's block layer below them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PCCHECK = ROOT / "build" / "bin" / "pccheck"
PCFSCK = ROOT / "build" / "bin" / "pcfsck"

IMAGE_BYTE_COUNT = 320 << 20  # xfs makes nothing smaller than 300 MiB
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
#: 32 MiB is enough for these: an image that is mounted thousands of times has to be small.
SMALL_IMAGE_BYTE_COUNT = 32 << 20
MAKE_SMALL = {
    "ext4": [*MAKE["ext4"], "-b", "4096", "-J", "size=4"],
    "xfs": [*MAKE["xfs"], "--unsupported"],
}


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(argument) for argument in arguments],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def require(*tools: str) -> None:
    """Skips the test, with the reason, where this machine lacks what it needs."""
    if os.geteuid() != 0:
        pytest.skip("needs root to attach and mount disks")
    for tool in ("losetup", "mount", *tools):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing; run .ci/install-packages --with-tests")
    for built in (PCCHECK, PCFSCK):
        if not built.exists():
            pytest.skip(f"{built} is not built; run make tools")


@contextlib.contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder in memory, where there is one: nothing here is meant to outlive the machine."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="pccheck-disk-", dir=memory if os.access(memory, os.W_OK) else None
    ) as folder:
        yield Path(folder)


@contextlib.contextmanager
def loop_device(backing: Path) -> Iterator[str]:
    attached = command("losetup", "--find", "--show", backing)
    if attached.returncode != 0:
        pytest.skip(f"cannot attach a loop device here: {attached.stderr.strip()}")
    device = attached.stdout.strip()
    try:
        yield device
    finally:
        command("losetup", "-d", device)


def make_file_system(make: list[str], device: str | Path) -> None:
    made = command(*make, device)
    assert made.returncode == 0, made.stderr


class Disk:
    """A file system of its own on a device."""

    def __init__(self, kind: str, device: str, mount_point: Path) -> None:
        self.kind = kind
        self.device = device
        self.mount_point = mount_point
        self.is_mounted = False

    def mount(self) -> None:
        mounted = command("mount", "-t", self.kind, self.device, self.mount_point)
        if mounted.returncode != 0:
            pytest.skip(f"cannot mount {self.kind} here: {mounted.stderr.strip()}")
        self.is_mounted = True

    def shut_down(self, with_log_flush: bool) -> None:
        """Drops everything that the file system has not yet put on its device.

        With a log flush the finished transactions reach the device first, data in the page
        cache does not.
        """
        action = "shutdown -f" if with_log_flush else "shutdown"
        done = command("xfs_io", "-x", "-c", action, self.mount_point)
        assert done.returncode == 0 and not done.stderr, done.stderr

    def mount_again(self) -> None:
        self.unmount()
        done = command("mount", "-t", self.kind, self.device, self.mount_point)
        assert done.returncode == 0, done.stderr
        self.is_mounted = True

    def unmount(self) -> None:
        for _ in range(50):
            done = command("umount", self.mount_point)
            if done.returncode == 0:
                self.is_mounted = False
                return
            time.sleep(0.1)
        raise RuntimeError(done.stderr)


@contextlib.contextmanager
def mounted(kind: str, device: str, mount_point: Path) -> Iterator[Disk]:
    """What is on the device, mounted; nothing is left mounted, whatever went wrong."""
    mount_point.mkdir(exist_ok=True)
    disk = Disk(kind, device, mount_point)
    try:
        disk.mount()
        yield disk
    finally:
        if disk.is_mounted:
            disk.unmount()


@contextlib.contextmanager
def disk_of(kind: str, *tools: str) -> Iterator[Disk]:
    """A new file system in an image on a loop device."""
    require(MAKE[kind][0], *tools)
    with quick_folder() as folder:
        image = new_disk(folder, IMAGE_BYTE_COUNT)
        make_file_system(MAKE[kind], image)
        with loop_device(image) as device, mounted(kind, device, folder / "mounted") as disk:
            yield disk


@contextlib.contextmanager
def served_by_qemu(folder: Path, nodes: list[str], byte_count: int) -> Iterator[str]:
    """A loop device above QEMU's block layer: the last of the nodes, exported as a FUSE file.

    The loop device works through the page cache of that file, and so asks for one thing at a
    time. That is needed: QEMU 7.2 reads the next FUSE request into the buffer that holds the
    data of a write which it has not finished.
    """
    export, errors = folder / "export", folder / "qemu.log"
    export.touch()
    name = dict(part.split("=", 1) for part in nodes[-1].split(",") if "=" in part)["node-name"]
    with open(errors, "wb") as log:
        daemon = subprocess.Popen(
            ["qemu-storage-daemon", *(word for node in nodes for word in ("--blockdev", node)),
             "--export", f"type=fuse,id=e,node-name={name},mountpoint={export},writable=on"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        began = time.monotonic()
        while os.stat(export).st_size != byte_count:
            if daemon.poll() is not None or time.monotonic() - began > 30:
                pytest.skip(f"qemu-storage-daemon cannot export here: {errors.read_text()}")
            time.sleep(0.01)
        with loop_device(export) as device:
            yield device
    finally:
        daemon.terminate()
        daemon.wait()


def failing_disk(event: str, count: int, is_persistent: bool) -> str:
    """A node above the node ``disk``: QEMU's ``blkdebug``, which fails a request with EIO.

    Its state counts the events. The request of event ``count`` fails; with ``is_persistent`` all
    from there on do.
    """
    rules = [
        f"set-state.{index}.event={event},set-state.{index}.state={index + 1},"
        f"set-state.{index}.new_state={index + 2}"
        for index in range(count - 1)
    ]
    once = "off" if is_persistent else "on"
    kind = "flush" if event.startswith("flush") else "write"
    rules.append(
        f"inject-error.0.event={event},inject-error.0.state={count},inject-error.0.errno=5,"
        f"inject-error.0.once={once},inject-error.0.iotype={kind}"
    )
    return ",".join(["driver=blkdebug,node-name=failing,image=disk", *rules])


def disk_node(folder: Path) -> str:
    """The node for the file ``disk``; its flushes take no time."""
    return f"driver=file,node-name=disk,filename={folder / 'disk'},cache.no-flush=on"


def new_disk(folder: Path, byte_count: int) -> Path:
    disk = folder / "disk"
    with open(disk, "wb") as file:
        file.truncate(byte_count)
    return disk


@contextlib.contextmanager
def logged_device(
    folder: Path, byte_count: int, failing: str | None = None
) -> Iterator[tuple[str, Path]]:
    """A loop device, and the log of what is written to it; a flush that fails is logged as well."""
    log = folder / "log"
    log.write_bytes(b"")
    new_disk(folder, byte_count)
    below = "disk" if failing is None else "failing"
    nodes = [
        disk_node(folder),
        f"driver=file,node-name=log,filename={log},cache.no-flush=on",
        *([] if failing is None else [failing]),
        f"driver=blklogwrites,node-name=logged,file={below},log=log",
    ]
    with served_by_qemu(folder, nodes, byte_count) as device:
        yield device, log
