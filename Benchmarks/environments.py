"""Where the model of a machine is checked: a disk, memory, a slow disk, and what shares them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
#: What a cloud gives a small volume.
THROTTLED_BYTES_PER_SECOND = 150_000_000
_IMAGE_BYTE_COUNT = 1536 * MIB
_PROBE_BYTE_COUNT = 64 * MIB
_MEMORY = Path("/dev/shm")
_MOUNTS = Path("/proc/self/mounts")


class Unavailable(Exception):
    """This machine lacks what an environment needs; the text says what."""


@dataclass(frozen=True)
class Kind:
    """One environment, before it is set up."""

    label: str
    #: The kind whose profile describes the machine.
    profile: str
    ranks: int = 1
    busy_processors: int = 0
    #: The loader reads at this share of the fastest rate of the disk.
    loader_share: float = 0.0


KINDS = {
    "disk": Kind("the disk", "disk"),
    "ranks": Kind("two ranks on the disk", "disk", ranks=2),
    "processor": Kind("the disk, one processor busy", "disk", busy_processors=1),
    "loader": Kind("the disk, with a data loader", "loader", loader_share=0.25),
    "memory": Kind("tmpfs", "memory"),
    "throttled": Kind(
        f"a loop device of {THROTTLED_BYTES_PER_SECOND / 1e6:.0f} MB/s", "throttled"
    ),
}


@dataclass
class Environment:
    """One environment that is set up: where files go, and what runs beside them."""

    kind: Kind
    directory: Path
    #: What starts a program inside the environment.
    prefix: tuple[str, ...] = ()
    loader_bytes_per_second: float = 0.0

    @property
    def tune_options(self) -> list[str]:
        """The options of `pccheck tune` for everything but the training loop."""
        ranks = str(self.kind.ranks)
        return ["--ranks", ranks, "--ranks-per-machine", ranks, *self.load_options]

    @property
    def load_options(self) -> list[str]:
        """Those that also decide what a probe measures."""
        return ["--other-load", str(round(self.loader_bytes_per_second))]


@contextlib.contextmanager
def opened(name: str, directory: Path) -> Iterator[Environment]:
    """An environment without its load. Nothing of it is left, whatever went wrong."""
    kind = KINDS[name]
    with contextlib.ExitStack() as stack:
        place = _memory() if kind.profile == "memory" else directory
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(
                    prefix="pccheck-validate-", dir=place, ignore_cleanup_errors=True
                )
            )
        )
        if kind.profile != "throttled":
            yield Environment(kind, folder)
            return
        device = stack.enter_context(_loop_device(folder))
        mount_point = stack.enter_context(_mounted(device, folder))
        prefix = stack.enter_context(_throttle(device, THROTTLED_BYTES_PER_SECOND))
        environment = Environment(kind, mount_point, prefix)
        _check_throttle(environment)
        yield environment


@contextlib.contextmanager
def loaded(environment: Environment) -> Iterator[None]:
    """While this lasts, whatever shares the machine in the environment is running."""
    kind = environment.kind
    with contextlib.ExitStack() as stack:
        for _ in range(kind.busy_processors):
            stack.enter_context(_running([sys.executable, "-c", "while True: pass"]))
        rate = environment.loader_bytes_per_second
        if rate:
            path = environment.directory / "loader.dat"
            stack.callback(path.unlink, missing_ok=True)
            _fill(path, 512 * MIB)
            stack.enter_context(
                _running([sys.executable, "-m", "Benchmarks.loader", str(path), str(rate)])
            )
        yield


def _memory() -> Path:
    if not os.access(_MEMORY, os.W_OK):
        raise Unavailable(f"{_MEMORY} is not there, or not writable")
    return _MEMORY


def _fill(path: Path, byte_count: int) -> None:
    """Written, not only reserved: reads of what was never written do not reach a device."""
    block = os.urandom(4 * MIB)
    with open(path, "wb") as file:
        for _ in range(byte_count // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _running(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    # Its own session: Ctrl-C is for us, and we end it.
    child = subprocess.Popen(command, start_new_session=True)
    try:
        yield child
        if child.poll() is not None:
            raise RuntimeError(f"{' '.join(command)} ended early, with status {child.returncode}")
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()


# ---------------------------------------------------------------- the throttled device


def _command(*arguments: object) -> str:
    words = [str(argument) for argument in arguments]
    if shutil.which(words[0]) is None:
        raise Unavailable(f"{words[0]} is not installed, or not in PATH")
    result = subprocess.run(words, capture_output=True, text=True)
    if result.returncode != 0:
        raise Unavailable(f"`{' '.join(words)}` failed: {result.stderr.strip()}")
    return result.stdout.strip()


@contextlib.contextmanager
def _loop_device(folder: Path) -> Iterator[str]:
    if os.geteuid() != 0:
        raise Unavailable("a loop device needs root")
    image = folder / "image"
    with open(image, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, _IMAGE_BYTE_COUNT)
        except OSError as error:
            raise Unavailable(f"no room for {_IMAGE_BYTE_COUNT // MIB} MiB: {error}") from error
    # Past the page cache: otherwise it would hold what the device is still to write.
    device = _command("losetup", "--find", "--show", "--direct-io=on", image)
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=False)


@contextlib.contextmanager
def _mounted(device: str, folder: Path) -> Iterator[Path]:
    _command("mkfs.ext4", "-q", "-F", device)
    point = folder / "mounted"
    point.mkdir()
    _command("mount", device, point)
    try:
        yield point
    finally:
        # A program that was just killed may hold it for a moment.
        for _ in range(50):
            if subprocess.run(["umount", point], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        else:
            print(f"warning: {point} is still mounted; unmount it", file=sys.stderr)


@contextlib.contextmanager
def _throttle(device: str, bytes_per_second: int) -> Iterator[tuple[str, ...]]:
    """Limits what programs that start with the prefix read and write on a device.

    Only they are in the cgroup: what the kernel writes for its journal is not limited.
    """
    number = Path("/sys/block", Path(device).name, "dev").read_text().strip()
    parent, rules = _cgroup_rules(number, bytes_per_second)
    group = parent / f"pccheck-validate-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise Unavailable(f"cannot make a cgroup: {error}") from error
    try:
        for file, rule in rules.items():
            try:
                (group / file).write_text(rule)
            except OSError as error:
                raise Unavailable(f"cannot set {group / file} to {rule}: {error}") from error
        yield ("sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"))
    finally:
        group.rmdir()


def _cgroup_rules(number: str, bytes_per_second: int) -> tuple[Path, dict[str, str]]:
    """The cgroup to make one in, and the files that limit a device there."""
    unified: Path | None = None
    for line in _MOUNTS.read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        if kind == "cgroup" and "blkio" in options.split(","):
            return Path(point), {
                f"blkio.throttle.{way}_bps_device": f"{number} {bytes_per_second}"
                for way in ("read", "write")
            }
        if kind == "cgroup2":
            unified = Path(point)
    if unified is not None:
        if "io" in (unified / "cgroup.subtree_control").read_text().split():
            rule = f"{number} rbps={bytes_per_second} wbps={bytes_per_second}"
            return unified, {"io.max": rule}
    raise Unavailable("no cgroup limits devices here: neither blkio of version 1 nor io of 2")


def _check_throttle(environment: Environment) -> None:
    """A limit that does nothing would make this the first environment again."""
    path = environment.directory / "throttle.dat"
    began = time.monotonic()
    _command(
        *environment.prefix, "dd", "if=/dev/zero", f"of={path}", f"bs={MIB}",
        f"count={_PROBE_BYTE_COUNT // MIB}", "oflag=direct", "status=none",
    )  # fmt: skip
    rate = _PROBE_BYTE_COUNT / (time.monotonic() - began)
    path.unlink()
    if rate > 1.5 * THROTTLED_BYTES_PER_SECOND:
        raise Unavailable(f"the throttle has no effect: a write reached {rate / 1e6:.0f} MB/s")
