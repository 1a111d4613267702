"""The tools on what is no checkpoint file, on files that change under them, and with outputs that
fail: a clear message, the documented status, and never a signal."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_hostile import TOOLS, has_unsafe

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "Tests" / "Fixtures"))

from compose import OPAQUE, Image, run  # noqa: E402

pytestmark = pytest.mark.skipif(
    not (TOOLS / "pcfsck").exists(), reason=f"{TOOLS} has no tools; run make tools")

# FILE is the odd path, OUT a free name.
LOOKS = ("pcfsck FILE", "pcfsck --verify full --json FILE", "pcinspect FILE",
         "pcinspect slots --json FILE", "pcextract --list FILE", "pcextract FILE -o OUT")
CHANGES = ("pcfsck -p FILE", "pcfsck -y FILE")
UTF8 = {"LANG": "C.UTF-8", "PATH": os.environ["PATH"]}


def honest(**options) -> Image:
    return run(3, is_closed=True, capacity=131_072, count=100_000, **options)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.pcc"
    path.write_bytes(honest().data)
    return path


def tool(
    line: str, path: Path | str, out: Path | str = "", **options
) -> subprocess.CompletedProcess:
    words = [{"FILE": str(path), "OUT": str(out)}.get(word, word) for word in line.split()]
    options = {"capture_output": True, "env": UTF8, "timeout": 60} | options
    return subprocess.run([TOOLS / words[0], *words[1:]], check=False, **options)


def damaged(path: Path) -> None:
    """A mirror that -p mends."""
    image = honest()
    image.write(image.identity_offsets[1], bytes(4096))
    path.write_bytes(image.data)


# ---------------------------------------------------------------- what is no file


def no_byte(path: Path) -> None:
    path.touch()


def one_byte(path: Path) -> None:
    path.write_bytes(b"x")


def directory(path: Path) -> None:
    path.mkdir()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    # The path of a socket may be short only.
    here = os.getcwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


def null(path: Path) -> None:
    path.symlink_to("/dev/null")


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def terminal(path: Path) -> None:
    path.symlink_to("/dev/tty")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def missing(path: Path) -> None:
    pass


# What is made, the status of pcfsck, that of the others, and a word of the message.
ODD: list[tuple[Callable[[Path], None], int, int, str]] = [
    (no_byte, 4, 8, "28672"),
    (one_byte, 4, 8, "28672"),
    (directory, 8, 8, "directory|folder|neither a regular file"),
    (fifo, 8, 8, "neither a regular file nor a block device"),
    (unix_socket, 8, 8, "No such device or address|neither a regular file"),
    (null, 8, 8, "neither a regular file nor a block device"),
    (endless, 8, 8, "neither a regular file nor a block device"),
    (terminal, 8, 8, "No such device or address|neither a regular file"),
    (loop, 8, 8, "Too many levels of symbolic links"),
    (dangling, 8, 8, "No such file or directory"),
    (missing, 8, 8, "No such file or directory"),
]


@pytest.mark.parametrize("make, checked, looked, word", ODD, ids=lambda item: getattr(
    item, "__name__", None))
def test_what_is_no_checkpoint_file(
    make: Callable[[Path], None], checked: int, looked: int, word: str, tmp_path: Path
) -> None:
    path = tmp_path / "odd"
    make(path)
    for line in (*LOOKS, *CHANGES):
        result = tool(line, path, tmp_path / "out", stdin=subprocess.DEVNULL, timeout=10)
        expected = checked if line.startswith("pcfsck") else looked
        said = (result.stdout + result.stderr).decode()
        assert result.returncode == expected, f"{line}: {said}"
        assert re.search(word, " ".join(said.split())), f"{line}: {said}"
        assert not has_unsafe(said)
    assert not (tmp_path / "out").exists()


def test_create_takes_no_path_that_is_used(tmp_path: Path) -> None:
    for make in (no_byte, directory, fifo, unix_socket, null, loop):
        path = tmp_path / make.__name__
        make(path)
        before = os.lstat(path)
        result = tool("pccheck create FILE --capacity 64KiB", path, timeout=10)
        assert result.returncode == 8, f"{make.__name__}: {result.stderr!r}"
        assert result.stderr.startswith(b"pccheck: ")
        after = os.lstat(path)
        assert (before.st_ino, before.st_size, before.st_mode) == (
            after.st_ino, after.st_size, after.st_mode)


def test_no_permission(file: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    # As nobody, from copies that nobody may run.
    folder = Path("/tmp") / f"pccheck-nobody-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        for name in ("pcfsck", "pcinspect", "pcextract"):
            shutil.copy(TOOLS / name, folder / name)
        secret = folder / "secret.pcc"
        shutil.copy(file, secret)
        secret.chmod(0o600)
        for line in LOOKS:
            words = [{"FILE": str(secret), "OUT": "/dev/null"}.get(w, w) for w in line.split()]
            result = subprocess.run([folder / words[0], *words[1:]], capture_output=True,
                                    user=65534, group=65534, extra_groups=[], timeout=60)
            if result.returncode == 127:
                pytest.skip("nobody cannot run the tools here")
            assert result.returncode == 8, f"{line}: {result.stderr!r}"
            assert b"Permission denied" in result.stdout + result.stderr
        # May be read and not written: a repair says so, and changes nothing.
        damaged(secret)
        secret.chmod(0o644)
        before = secret.read_bytes()
        result = subprocess.run([folder / "pcfsck", "-p", secret], capture_output=True,
                                user=65534, group=65534, extra_groups=[], timeout=60)
        assert result.returncode & 12 == 12 and b"Permission denied" in (
            result.stdout + result.stderr), result
        assert secret.read_bytes() == before
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", [
    "\x1b[31mred\x1b]0;title\x07", "two\nlines", "-dash", "--verify", "tab\there", "sp ace",
    "gnp\u202egpj.pcc", "x" * 250, "%s%n", "核" * 80])
def test_odd_names(name: str, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/" + os.fsencode(name)
    with open(path, "wb") as stream:
        stream.write(honest().data)
    for line in LOOKS[:5]:
        words = line.split()
        arguments = [os.fsencode(TOOLS / words[0]), *(
            path if word == "FILE" else word.encode() for word in words[1:])]
        result = subprocess.run(arguments, capture_output=True, env=UTF8, timeout=60)
        assert result.returncode == 0, f"{line}: {result.stderr!r}"
        said = result.stdout.decode("utf-8") + result.stderr.decode("utf-8")
        assert not has_unsafe(said) and (name not in said or "\n" not in name), line
    # A name alone that begins with a dash is an option, unless -- says that none follows.
    if name.startswith("-"):
        result = subprocess.run([TOOLS / "pcfsck", "--", name], cwd=tmp_path, capture_output=True)
        assert result.returncode == 0, result.stderr
    # And one that is not there is quoted safely, too.
    result = subprocess.run([os.fsencode(TOOLS / "pcinspect"), path + b"?"], capture_output=True,
                            env=UTF8, timeout=60)
    assert result.returncode == 8 and not has_unsafe(result.stderr.decode("utf-8"))


def test_name_that_is_no_text(tmp_path: Path) -> None:
    """Such a name cannot be handed on; it is not mistaken for another one."""
    path = os.fsencode(tmp_path) + b"/\xff\x1b[2J\xfe.pcc"
    with open(path, "wb") as stream:
        stream.write(honest().data)
    for name in ("pcfsck", "pcinspect"):
        result = subprocess.run([os.fsencode(TOOLS / name), path], capture_output=True, env=UTF8)
        assert result.returncode == 16 and b"not UTF-8" in result.stderr, result
        assert not has_unsafe(result.stderr.decode("utf-8"))


# ---------------------------------------------------------------- files that change


@pytest.fixture
def meanwhile() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Repeats something in another thread until the test ends."""
    stopping = threading.Event()
    threads: list[threading.Thread] = []

    def start(action: Callable[[], None]) -> None:
        def repeat() -> None:
            while not stopping.is_set():
                action()
        threads.append(threading.Thread(target=repeat))
        threads[-1].start()

    yield start
    stopping.set()
    for thread in threads:
        thread.join()


def hammer(path: Path, out: Path, seconds: float, lines: tuple[str, ...]) -> dict[int, str]:
    """The tools, over and over: each status, and what was said with it the last time."""
    statuses = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for line in lines:
            result = tool(line, path, out)
            assert result.returncode >= 0, f"{line} ended by signal {-result.returncode}"
            assert not result.returncode & ~13, f"{line}: {result.returncode} {result.stderr!r}"
            statuses[result.returncode] = f"{line}: {result.stderr!r} {result.stdout!r}"
    return statuses


def test_file_that_shrinks(file: Path, tmp_path: Path, meanwhile: Callable) -> None:
    content = file.read_bytes()
    sizes = [len(content), 20_000, len(content) // 2, 4096, 0, len(content) - 4096]

    def shrink() -> None:
        for size in sizes:
            os.truncate(file, size)
            time.sleep(0.002)
        with open(file, "r+b") as stream:
            stream.write(content)
        time.sleep(0.01)

    meanwhile(shrink)
    statuses = hammer(file, tmp_path / "out", 2.5, LOOKS)
    assert set(statuses) & {4, 8}, "the file never was short when it was read"


def test_file_that_is_replaced(file: Path, tmp_path: Path, meanwhile: Callable) -> None:
    others = [honest().data, honest(kind=OPAQUE, uuid=bytes(16)).data, b"not a checkpoint file"]

    def replace() -> None:
        for other in others:
            new = tmp_path / "new"
            new.write_bytes(other)
            os.replace(new, file)
            time.sleep(0.003)

    meanwhile(replace)
    lines = (*LOOKS[:5], "pcextract FILE --format raw -o OUT", "pcfsck -p FILE")
    statuses = hammer(file, tmp_path / "out", 2, lines)
    # Each run sees one file or the other, never a mixture of them.
    assert 0 in statuses and set(statuses) <= {0, 4, 8}, str(statuses)


WRITER = """
import sys, time, numpy, pccheck
with pccheck.Checkpointer(sys.argv[1], capacity="2M", in_flight=2, retain=2) as checkpointer:
    print("ready", flush=True)
    for step in range(1, 1_000_000):
        array = numpy.full(100_000, step, dtype=numpy.int64)
        checkpointer.save(step, {"x": array})
        time.sleep(0.005)
"""


def test_writer_at_work(tmp_path: Path, run_child: Callable) -> None:
    pytest.importorskip("pccheck")
    path = tmp_path / "live.pcc"
    writer = run_child(WRITER, path)
    assert writer.stdout.readline() == "ready\n"
    time.sleep(0.2)
    lines = ("pcfsck FILE", "pcfsck --verify full FILE", "pcfsck -p FILE", "pcinspect FILE",
             "pcinspect slots --json FILE", "pcinspect tensors FILE", "pcextract FILE -o OUT")
    statuses = hammer(path, tmp_path / "out", 2.5, lines)
    # Nothing is damaged in a file that is being written; at most the writer was faster, again and
    # again.
    said = statuses.pop(8, "taken it for a newer checkpoint")
    assert "taken it for a newer checkpoint" in said, said
    assert set(statuses) == {0}, str(statuses)
    assert writer.poll() is None, "the writer was disturbed"
    writer.kill()
    writer.wait()
    # Nobody stopped it from going on.
    assert tool("pcfsck --verify full FILE", path).returncode == 0


# ---------------------------------------------------------------- outputs


def shell(text: str, file: Path, **options) -> subprocess.CompletedProcess:
    options = {"env": UTF8} | options
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", text.replace("TOOLS", str(TOOLS)), "bash", str(file)],
        capture_output=True, timeout=60, check=False, **options)


@pytest.mark.parametrize("line", LOOKS[:5])
def test_output_that_cannot_be_written(line: str, file: Path) -> None:
    command = "TOOLS/" + line.replace("FILE", '"$1"')
    full = shell(f"{command} > /dev/full", file)
    assert full.returncode == 8 and b"No space left on device" in full.stderr, full
    closed = shell(f"{command} >&-", file)
    assert closed.returncode == 8 and b"Bad file descriptor" in closed.stderr, closed
    assert shell(f"{command} >&- 2>&-", file).returncode == 8
    assert shell(f"{command} 2>&-", file).returncode == 0
    assert shell(f"{command} | head -n 1", file).returncode == 0
    assert shell(f"{command} | true", file).returncode == 0
    assert shell(f"{command} <&-", file).returncode == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_never_become_the_file(closed: str, file: Path) -> None:
    """A file that is opened takes the lowest free number: what is printed must not go into it.

    FileStorageTests holds the numbers themselves to it: O_DIRECT and late printing would hide most
    of a fault from here."""
    whole = bytes(honest().data)
    damaged(file)
    shell(f'TOOLS/pcfsck -p "$1" {closed}', file)
    assert file.read_bytes() == whole
    out = file.with_name("out")
    shell(f'TOOLS/pcextract "$1" -o "$1/../out" {closed}'.replace("$1/../out", str(out)), file)
    expected = file.with_name("expected")
    assert tool("pcextract FILE -o OUT", file, expected).returncode == 0
    assert out.read_bytes() == expected.read_bytes()


def test_payload_to_where_it_does_not_fit(file: Path, small_disk: Path) -> None:
    full = shell('TOOLS/pcextract "$1" -o /dev/full', file)
    assert full.returncode == 8 and b"No space left on device" in full.stderr
    assert shell('TOOLS/pcextract "$1" -o - > /dev/full', file).returncode == 8
    assert shell('TOOLS/pcextract "$1" -o - | head -c 10', file).returncode == 0
    filler = small_disk / "filler"
    with open(filler, "wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, (24 << 20) - (64 << 10))
    out = small_disk / "out"
    result = tool("pcextract FILE -o OUT", file, out)
    assert result.returncode == 8 and b"No space left on device" in result.stderr, result
    assert os.listdir(small_disk) == ["filler"], "what was begun is gone"
    result = tool("pccheck create FILE --capacity 1MiB", small_disk / "new.pcc")
    assert result.returncode == 8 and b"No space left" in result.stderr
    assert os.listdir(small_disk) == ["filler"]


def test_output_in_odd_places(file: Path, tmp_path: Path) -> None:
    for out, word in ((tmp_path, b"directory"), (tmp_path / "no" / "where", b"No such file"),
                      (file, b"itself"), (file / "below", b"Not a directory")):
        result = tool("pcextract FILE -o OUT", file, out)
        assert result.returncode & 24 and word in result.stderr, (out, result)
    # Behind a symbolic link the file is replaced, and the link stays.
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    target.write_bytes(b"old")
    assert tool("pcextract FILE -o OUT", file, link).returncode == 0
    assert link.is_symlink() and target.stat().st_size > 100_000
    assert stat.S_ISREG(target.stat().st_mode)


@pytest.mark.parametrize("environment", [{}, {"LANG": "C"}, {"LC_ALL": "POSIX", "TERM": ""},
                                         {"LANG": "nonsense", "TERM": "nonsense"}])
def test_poor_environments(environment: dict[str, str], file: Path) -> None:
    for line in LOOKS[:5]:
        result = tool(line, file, env=environment)
        assert result.returncode == 0, result.stderr
        if "--json" not in line:
            assert result.stdout.isascii(), f"{line}: {result.stdout!r}"
