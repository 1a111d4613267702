"""The io_uring back end where it works, where it is refused, and where writes end short.

What is done to a process (filters, limits) is done to a child.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import pattern

import pccheck

Start = Callable[..., subprocess.Popen[str]]
MIB = 1 << 20

# Every child begins with this: ways to take something away from itself.
PRELUDE = """
import ctypes, errno, json, os, platform, resource, struct, sys
import numpy as np

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
X86 = platform.machine() == "x86_64"
SETUP, ENTER, REGISTER = 425, 426, 427


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def refuse(call, error):
    '''From here on `call` fails with `error`, in every thread: seccomp(2).'''
    steps = [
        (0x20, 0, 0, 0),                     # load the number of the call
        (0x15, 0, 1, call),                  # not this one: skip the next step
        (0x06, 0, 0, 0x00050000 | error),    # SECCOMP_RET_ERRNO
        (0x06, 0, 0, 0x7FFF0000),            # SECCOMP_RET_ALLOW
    ]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    program = Program(len(steps), code)
    check(libc.prctl(38, 1, 0, 0, 0))        # PR_SET_NO_NEW_PRIVS
    # SECCOMP_SET_MODE_FILTER with SECCOMP_FILTER_FLAG_TSYNC
    check(libc.syscall(317 if X86 else 277, 1, 1, ctypes.byref(program)))


def drop_lock_privilege():
    '''Makes RLIMIT_MEMLOCK count for root too: capset(2) without CAP_IPC_LOCK.'''
    header = struct.pack("=Ii", 0x20080522, 0)
    sets = ctypes.create_string_buffer(24)
    check(libc.syscall(125 if X86 else 90, header, sets))
    words = list(struct.unpack("=6I", sets.raw))
    words[0] &= ~(1 << 14)
    words[1] &= ~(1 << 14)
    check(libc.syscall(126 if X86 else 91, header, struct.pack("=6I", *words)))


def told(**facts):
    print(json.dumps(facts), flush=True)
"""

SAVE = """
import pccheck
state = {"x": np.random.default_rng(7).integers(0, 1 << 63, 1 << 18, dtype=np.int64)}
with pccheck.Checkpointer(sys.argv[1], backend="io_uring") as checkpointer:
    outcome = checkpointer.save(1, state).wait()
    stats = checkpointer.stats()
told(durable=outcome.durable, **{key: stats[key] for key in stats if key.startswith("backend")})
"""


def answer(child: subprocess.Popen[str]) -> dict[str, object]:
    output, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


@pytest.fixture
def ring(path: Path) -> None:
    """Skips where this machine has no io_uring to try."""
    with pccheck.Checkpointer(path, backend="io_uring") as checkpointer:
        checkpointer.save(0, {"n": 0}).wait()
        reason = checkpointer.stats()["backend_fallback_reason"]
    path.unlink()
    if reason is not None:
        pytest.skip(reason)


def test_statistics_tell_of_the_ring(path: Path, ring: None, run_child: Start) -> None:
    facts = answer(run_child(PRELUDE + SAVE, path))
    assert facts["durable"] and facts["backend"] == "io_uring"
    assert facts["backend_fallback_reason"] is None
    assert "4 writes per worker" in str(facts["backend_detail"])
    assert set(pccheck.load(path)) == {"x"}


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ("SETUP", "ENOSYS", "no io_uring"),
        ("SETUP", "EPERM", "seccomp"),
        ("ENTER", "EPERM", "seccomp"),
        ("REGISTER", "EPERM", "seccomp"),
    ],
)
def test_refused_by_seccomp(
    path: Path, run_child: Start, call: str, error: str, says: str
) -> None:
    facts = answer(run_child(f"{PRELUDE}\nrefuse({call}, errno.{error})\n{SAVE}", path))
    assert facts["durable"] and facts["backend"] in ("direct", "buffered")
    assert says in str(facts["backend_fallback_reason"])
    assert "io_uring is not available" in str(facts["backend_fallback_reason"])
    expected = np.random.default_rng(7).integers(0, 1 << 63, 1 << 18, dtype=np.int64)
    assert np.array_equal(pccheck.load(path)["x"], expected)


def test_a_fallback_is_logged(path: Path, run_child: Start) -> None:
    code = f"{PRELUDE}\nimport logging; logging.basicConfig()\nrefuse(SETUP, errno.EPERM)\n{SAVE}"
    child = run_child(code, path)
    _, errors = child.communicate(timeout=120)
    assert "io_uring is not available" in errors


def test_no_locked_memory(path: Path, ring: None, run_child: Start) -> None:
    limits = "drop_lock_privilege()\nresource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))"
    facts = answer(run_child(f"{PRELUDE}\n{limits}\n{SAVE}", path))
    assert facts["durable"] and facts["backend"] == "io_uring"
    assert "pool not registered" in str(facts["backend_detail"])
    assert "ulimit -l" in str(facts["backend_detail"])
    expected = np.random.default_rng(7).integers(0, 1 << 63, 1 << 18, dtype=np.int64)
    assert np.array_equal(pccheck.load(path)["x"], expected)


LATE = """
import pccheck
checkpointer = pccheck.Checkpointer(sys.argv[1], backend="io_uring", writer_workers=1)
checkpointer.save(1, {"x": np.full(1 << 23, 1, np.uint8)}).wait()
refuse(ENTER, errno.EPERM)
errors = []
for step in (2, 3):
    try:
        checkpointer.save(step, {"x": np.full(1 << 23, step, np.uint8)}).wait(timeout=60)
    except pccheck.CheckpointError as error:
        errors.append([type(error).__name__, str(error)])
stop = checkpointer.stats()["is_fail_stop"]
try:
    checkpointer.close()
except pccheck.CheckpointError as error:
    errors.append([type(error).__name__, str(error)])
told(errors=errors, stop=stop)
"""


def test_a_ring_that_is_taken_away_stops_the_writer(
    path: Path, ring: None, run_child: Start
) -> None:
    facts = answer(run_child(PRELUDE + LATE, path))
    errors = facts["errors"]
    assert isinstance(errors, list) and facts["stop"] is True
    assert [name for name, _ in errors] == ["FailStop"] * 3
    assert "restart the process" in errors[0][1]
    with pccheck.Checkpointer(path) as checkpointer:
        assert checkpointer.steps() == [1]
        assert np.array_equal(checkpointer.load()["x"], np.full(1 << 23, 1, np.uint8))


# The limit lies inside a chunk of the first slot: the kernel writes what is below it (a short
# write) and refuses the rest.
SHORT = """
import pccheck
limit = int(sys.argv[2])
checkpointer = pccheck.Checkpointer(
    sys.argv[1], backend=sys.argv[3], in_flight=1, capacity=32 << 20, writer_workers=1)
checkpointer.save(1, {"n": 1}).wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    checkpointer.save(2, {"x": np.full(24 << 20, 2, np.uint8)}).wait()
    error = None
except pccheck.CheckpointError as problem:
    error = str(problem)
with open(sys.argv[1], "rb") as file:
    file.seek(limit - 8192)
    around = file.read(16384)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
durable = checkpointer.save(3, {"x": np.full(24 << 20, 3, np.uint8)}).wait().durable
checkpointer.close()
told(error=error, below=around[:8192] == bytes([2]) * 8192,
     above=around[8192:] == bytes(8192), durable=durable)
"""


@pytest.mark.parametrize("backend", ["io_uring", "auto"])
def test_a_short_write_is_not_taken_for_a_whole_one(
    path: Path, ring: None, run_child: Start, backend: str
) -> None:
    # Step 1 lies in slot 0, so step 2 goes to slot 1; the file is two slots and a little.
    limit = 32 * MIB + 14 * MIB + 3 * 4096
    facts = answer(run_child(PRELUDE + SHORT, path, limit, backend))
    assert facts["below"], "the kernel wrote up to the limit: a short write"
    assert facts["above"], "and nothing above it"
    assert "File too large" in str(facts["error"]) or "errno 27" in str(facts["error"])
    assert facts["durable"]
    loaded = pccheck.load(path)["x"]
    assert np.array_equal(loaded, np.full(24 * MIB, 3, np.uint8))


def test_odd_states_come_back(path: Path, ring: None) -> None:
    states = [{"x": pattern(step, 40_000 + 777 * step), "n": step} for step in range(6)]
    with pccheck.Checkpointer(
        path, backend="io_uring", in_flight=3, chunk="64 KiB", pool="1 MiB", capacity="2 MiB"
    ) as checkpointer:
        for step, state in enumerate(states):
            checkpointer.save(step, state)
    loaded = pccheck.load(path)
    assert loaded["n"] == 5 and np.array_equal(loaded["x"], states[5]["x"])
