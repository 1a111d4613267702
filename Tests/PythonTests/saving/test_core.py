"""The checkpointer over the native library: what it keeps, and what it refuses and how."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import flip_byte_of, pattern

import pccheck
import pccheck.numpy
from pccheck._core import native

MIB = 1 << 20


def save_steps(path: Path, steps: list[int], **options: object) -> None:
    """Writes a file with one checkpoint per step, each durable before the next."""
    with pccheck.Checkpointer(path, **options) as checkpointer:
        for step in steps:
            checkpointer.save(step, {"x": pattern(step), "step": step}).wait()


def big_state(mebibyte_count: int = 64) -> dict[str, np.ndarray]:
    """A state that takes the disk longer than Python needs for a few statements."""
    return {"x": np.ones(mebibyte_count * MIB, np.uint8)}


# -- what is kept


def test_save_and_load(path: Path) -> None:
    state = {"x": pattern(1), "nested": [1, (2.5, None)], "empty": np.zeros((0, 3))}
    with pccheck.Checkpointer(path) as checkpointer:
        assert checkpointer.resume() == (0, None)
        assert checkpointer.steps() == []
        handle = checkpointer.save(7, state, metadata="a note")
        assert handle.step == 7 and handle.sequence > 0
        handle.wait_staged()
        outcome = handle.wait()
        assert outcome.durable and outcome.kind == "durable" and outcome.step == 7
        assert outcome.sequence == handle.sequence and outcome.superseded_by is None
        assert 0 < outcome.staged_seconds <= outcome.durable_seconds
        assert handle.done() and handle.exception() is None and handle.state == "durable"
        assert checkpointer.steps() == [7]
    with pccheck.Checkpointer(path) as checkpointer:
        next_step, loaded = checkpointer.resume()
        assert checkpointer.loaded is not None and checkpointer.loaded.step == 7
    assert next_step == 8
    assert np.array_equal(loaded["x"], state["x"]) and loaded["nested"] == state["nested"]
    assert loaded["empty"].shape == (0, 3)


def test_scalars_alone_are_a_state(path: Path) -> None:
    with pccheck.Checkpointer(path) as checkpointer:
        checkpointer.save(0, {"loss": 0.5}).wait()
        checkpointer.save(1, 5).wait()
        assert checkpointer.load() == 5


def test_retained_steps_are_listed_newest_first_and_load(path: Path) -> None:
    save_steps(path, [1, 2, 3, 4, 5], retain=3)
    with pccheck.Checkpointer(path) as checkpointer:
        assert checkpointer.steps()[:3] == [5, 4, 3]
        infos = checkpointer.checkpoints()
        assert [info.is_anchored for info in infos[:3]] == [True] * 3
        assert infos[0].sequence > infos[1].sequence > infos[2].sequence
        assert infos[0].payload_byte_count >= pattern(5).nbytes
        assert len(infos[0].logical_digest) == 32
        assert abs(infos[0].completed_at.timestamp() - time.time()) < 60
        assert np.array_equal(checkpointer.load(3)["x"], pattern(3))
        with pytest.raises(pccheck.NoCheckpoint, match="no checkpoint of step 99"):
            checkpointer.load(99)


def test_reading_beside_a_live_writer(path: Path) -> None:
    with pccheck.Checkpointer(path) as checkpointer:
        checkpointer.save(1, {"x": pattern(1)}).wait()
        assert np.array_equal(pccheck.load(path)["x"], pattern(1))
        assert np.array_equal(pccheck.load(path, step=1)["x"], pattern(1))
        assert [info.step for info in pccheck.checkpoints(path)] == [1]


@pytest.mark.parametrize("codec", ["zstd", "planes-zstd"])
def test_codecs(path: Path, codec: str) -> None:
    state = {"x": np.linspace(0, 1, 1 << 20, dtype=np.float32), "y": pattern(1)}
    with pccheck.Checkpointer(path, codec=codec, chunk="256 KiB") as checkpointer:
        checkpointer.save(1, state).wait()
        info = checkpointer.checkpoints()[0]
        loaded = checkpointer.load()
    assert info.stored_byte_count < info.payload_byte_count
    assert all(np.array_equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize("backend", ["auto", "buffered", "io_uring"])
def test_many_in_flight(path: Path, backend: str) -> None:
    states = [{"x": pattern(step), "n": step} for step in range(8)]
    with pccheck.Checkpointer(path, in_flight=4, retain=2, backend=backend) as checkpointer:
        handles = [checkpointer.save(step, state) for step, state in enumerate(states)]
        outcomes = [handle.wait() for handle in handles]
        assert [outcome.sequence for outcome in outcomes] == sorted(
            {outcome.sequence for outcome in outcomes}
        )
        for outcome in outcomes:
            assert outcome.kind in ("durable", "superseded")
            if outcome.kind == "superseded":
                assert outcome.superseded_by is not None
                assert outcome.superseded_by > outcome.sequence
        assert outcomes[-1].durable
        loaded = checkpointer.load()
    assert loaded["n"] == 7 and np.array_equal(loaded["x"], pattern(7))


def test_structure_may_change_between_saves(path: Path) -> None:
    with pccheck.Checkpointer(path, capacity="8 MiB") as checkpointer:
        for step, state in enumerate(
            [
                {"a": np.zeros(3)},
                {"a": np.ones((3, 2))},
                {"b": np.ones((3, 2)), "a": np.arange(4)},
                {"b": np.ones((3, 2)), "a": np.arange(4.0)},
            ]
        ):
            checkpointer.save(step, state).wait()
            loaded = checkpointer.load()
            assert list(loaded) == list(state)
            assert all(np.array_equal(loaded[key], state[key]) for key in state)


def test_stats(path: Path) -> None:
    with pccheck.Checkpointer(path) as checkpointer:
        assert checkpointer.stats() == {}
        checkpointer.save(1, {"x": pattern(1)}).wait()
        stats = checkpointer.stats()
    assert isinstance(stats, dict) and stats


def test_numpy_fills_in_place(path: Path) -> None:
    params = {"w": np.arange(4.0), "b": [np.zeros(2)], "count": 3}
    with pccheck.numpy.Checkpointer(path) as checkpointer:
        assert checkpointer.resume(params=params) == 0
        np.random.seed(5)
        checkpointer.save(3, params=params).wait()
        expected = np.random.rand(3)
    w, b = params["w"], params["b"][0]
    w[:] = b[:] = 9
    params["count"] = 0
    with pccheck.numpy.Checkpointer(path) as checkpointer:
        assert checkpointer.resume(params=params) == 4
        assert np.array_equal(np.random.rand(3), expected)
        assert params["w"] is w and np.array_equal(w, np.arange(4.0))
        assert params["b"][0] is b and not b.any()
        assert params["count"] == 3
        missing = r"missing from the checkpoint \(1\)\n    other\n"
        with pytest.raises(pccheck.StateMismatch, match=missing):
            checkpointer.resume(other={})
        with pytest.raises(pccheck.CheckpointError, match="params.w"):
            checkpointer.resume(params={"w": np.zeros(5), "b": [b], "count": 0})


# -- waiting and ending


def test_arrays_are_read_in_place_and_released_when_staged(path: Path) -> None:
    state = big_state(16)
    with pccheck.Checkpointer(path) as checkpointer:
        handle = checkpointer.save(1, state)
        handle.wait_staged()
        state["x"][:] = 2
        handle.wait()
        assert not handle._owners
        assert checkpointer.load()["x"].max() == 1


def test_memory_outlives_the_callers_references(path: Path) -> None:
    with pccheck.Checkpointer(path, capacity="80 MiB", pool="8 MiB") as checkpointer:
        for step in range(3):
            checkpointer.save(step, {"x": np.full(8 * MIB, step, np.int64)})
            gc.collect()
        checkpointer.save(3, {"x": np.full(8 * MIB, 3, np.int64)}).wait()
        assert (checkpointer.load()["x"] == 3).all()


def test_timeout(path: Path) -> None:
    with pccheck.Checkpointer(path) as checkpointer:
        handle = checkpointer.save(1, big_state())
        with pytest.raises(pccheck.Timeout) as caught:
            handle.wait(timeout=0)
        assert isinstance(caught.value, TimeoutError) and caught.value.code == 19
        assert handle.wait(timeout=60).durable


def test_waits_heed_signals(path: Path) -> None:
    with pccheck.Checkpointer(path) as checkpointer:
        handle = checkpointer.save(1, {"x": pattern(1)})
        handle.wait()

        def never_done(*_: object) -> int:
            time.sleep(0.02)
            return native.TIMEOUT

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        previous = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                handle._wait(never_done, None, "durable")
        finally:
            signal.signal(signal.SIGALRM, previous)


def test_on_busy_skip(path: Path) -> None:
    state = big_state(256)
    with pccheck.Checkpointer(path, in_flight=1, on_busy="skip") as checkpointer:
        first = checkpointer.save(1, state)
        second = checkpointer.save(2, state)
        assert second.wait().kind == "skipped" and second.done() and not second.wait().durable
        assert first.wait().durable
        assert checkpointer.save(3, state).wait().durable
        assert checkpointer.steps()[0] == 3


def test_on_busy_fail(path: Path) -> None:
    state = big_state(256)
    with pccheck.Checkpointer(path, in_flight=1, on_busy="fail") as checkpointer:
        first = checkpointer.save(1, state)
        with pytest.raises(pccheck.Busy):
            checkpointer.save(2, state)
        assert first.wait().durable


def test_on_busy_wait_is_bounded_by_its_timeout(path: Path) -> None:
    with pccheck.Checkpointer(path, in_flight=1, busy_timeout=30) as checkpointer:
        handles = [checkpointer.save(step, big_state(16)) for step in range(4)]
        assert all(handle.wait().durable for handle in handles)
    options = {"capacity": "160 MiB", "in_flight": 1, "busy_timeout": 0.001}
    with pccheck.Checkpointer(path.with_name("b.pcc"), **options) as checkpointer:
        first = checkpointer.save(1, big_state(128))
        began = time.monotonic()
        try:
            checkpointer.save(2, big_state(1))
        except (pccheck.Busy, pccheck.Timeout):
            assert time.monotonic() - began < 5
        else:
            assert first.done(), "the save neither waited nor failed"


def test_save_after_close(path: Path) -> None:
    checkpointer = pccheck.Checkpointer(path)
    handle = checkpointer.save(1, {"x": pattern(1)})
    checkpointer.close()
    assert handle.state == "durable"
    checkpointer.close()
    for call in (
        lambda: checkpointer.save(2, {}),
        checkpointer.load,
        checkpointer.resume,
        checkpointer.stats,
        checkpointer.steps,
        lambda: checkpointer.rewind(0),
    ):
        with pytest.raises(pccheck.Closed):
            call()


def test_dropping_the_checkpointer_finishes_and_unlocks(path: Path) -> None:
    checkpointer = pccheck.Checkpointer(path)
    checkpointer.save(1, big_state(16))
    del checkpointer
    gc.collect()
    with pccheck.Checkpointer(path) as again:
        assert again.steps() == [1]


def test_exception_in_the_block_still_closes(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), pccheck.Checkpointer(path) as checkpointer:
        checkpointer.save(1, {"x": pattern(1)})
        raise ZeroDivisionError
    assert pccheck.checkpoints(path)[0].step == 1


# -- order of steps


def test_step_backwards_is_refused_until_rewound(path: Path) -> None:
    with pccheck.Checkpointer(path, retain=3) as checkpointer:
        for step in (10, 20, 30):
            checkpointer.save(step, {"x": pattern(step)}).wait()
        with pytest.raises(pccheck.StepBackwards):
            checkpointer.save(29, {"x": pattern(29)})
        checkpointer.rewind(25)
        assert checkpointer.save(25, {"x": pattern(25)}).wait().durable
        # The newest checkpoint is the one saved last, not the one with the highest step.
        assert checkpointer.steps()[0] == 25
        checkpointer.load(20)
        assert checkpointer.save(21, {"x": pattern(21)}).wait().durable
        assert np.array_equal(checkpointer.load()["x"], pattern(21))


@pytest.mark.parametrize("step", [-1, 1.5, "1", None])
def test_odd_steps(path: Path, step: object) -> None:
    with pccheck.Checkpointer(path) as checkpointer:
        with pytest.raises((TypeError, pccheck.InvalidArgument)):
            checkpointer.save(step, {"x": 1})
        assert checkpointer.save(np.int64(3), {"x": 1}).step == 3


# -- what does not fit together


def test_state_larger_than_capacity(path: Path) -> None:
    with pccheck.Checkpointer(path, capacity="1 MiB") as checkpointer:
        checkpointer.save(1, {"x": np.zeros(1000)}).wait()
        with pytest.raises(pccheck.TooLarge) as caught:
            checkpointer.save(2, {"x": np.zeros(2 * MIB)})
        assert caught.value.code == 6
        assert checkpointer.steps() == [1]
        checkpointer.save(3, {"x": np.ones(1000)}).wait()


def test_second_writer(path: Path, run_child: Callable[..., subprocess.Popen[str]]) -> None:
    code = "import sys, pccheck; pccheck.Checkpointer(sys.argv[1])"
    with pccheck.Checkpointer(path) as checkpointer:
        checkpointer.save(1, {"x": pattern(1)}).wait()
        with pytest.raises(pccheck.Locked):
            pccheck.Checkpointer(path)
        _, errors = run_child(code, path).communicate(timeout=60)
        assert "Locked" in errors
        checkpointer.save(2, {"x": pattern(2)}).wait()
    child = run_child(code, path)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors


def test_two_ranks_on_one_path(path: Path) -> None:
    with pccheck.Checkpointer(path, rank=0, world_size=2) as zero:
        zero.save(1, {"x": pattern(1)}).wait()
        with pytest.raises((pccheck.Locked, pccheck.RankMismatch)):
            pccheck.Checkpointer(path, rank=1, world_size=2)
    with pytest.raises(pccheck.RankMismatch):
        pccheck.Checkpointer(path, rank=1, world_size=2)
    with pytest.raises(pccheck.RankMismatch):
        pccheck.Checkpointer(path, rank=0, world_size=4)
    assert pccheck.checkpoints(path)[0].step == 1


def test_two_ranks_that_create_one_path(path: Path) -> None:
    zero = pccheck.Checkpointer(path, rank=0, world_size=2)
    one = pccheck.Checkpointer(path, rank=1, world_size=2)
    with zero, one:
        zero.save(1, {"x": pattern(1)})
        with pytest.raises((pccheck.Locked, pccheck.RankMismatch)):
            one.save(1, {"x": pattern(2)})
    assert np.array_equal(pccheck.load(path)["x"], pattern(1))


def test_fingerprint(path: Path) -> None:
    save_steps(path, [1], fingerprint="gpt-7m")
    with pytest.raises(pccheck.FingerprintMismatch, match="gpt-7m"):
        pccheck.Checkpointer(path, fingerprint="gpt-8m")
    with pccheck.Checkpointer(path, fingerprint="gpt-7m") as checkpointer:
        assert checkpointer.steps() == [1]
    with pytest.raises(ValueError, match="254"):
        pccheck.Checkpointer(path, fingerprint="x" * 255)


@pytest.mark.parametrize(
    "options",
    [
        {"in_flight": 0},
        {"in_flight": 65},
        {"retain": 17},
        {"chunk": 1000},
        {"codec": "gzip"},
        {"on_busy": "panic"},
        {"backend": "tape"},
        {"capacity": "large"},
        {"rank": 2, "world_size": 2},
    ],
)
def test_odd_options(path: Path, options: dict[str, object]) -> None:
    with pytest.raises(pccheck.InvalidArgument):
        pccheck.Checkpointer(path, **{"capacity": MIB, **options})
    assert not list(path.parent.iterdir())


# -- files that are not right


def test_foreign_file(path: Path) -> None:
    content = os.urandom(1 << 16)
    path.write_bytes(content)
    for open_it in (pccheck.Checkpointer, pccheck.load):
        with pytest.raises(pccheck.NotACheckpointFile):
            open_it(path)
    assert path.read_bytes() == content


def test_empty_file(path: Path) -> None:
    path.touch()
    with pytest.raises(pccheck.NotACheckpointFile):
        pccheck.Checkpointer(path)


def test_truncated_file(path: Path) -> None:
    save_steps(path, [1, 2])
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises((pccheck.NotACheckpointFile, pccheck.Corrupt)):
        pccheck.Checkpointer(path)


def test_missing_file_and_directory(path: Path) -> None:
    with pytest.raises(pccheck.FileMissing):
        pccheck.load(path)
    with pytest.raises(pccheck.FileMissing, match="there is no folder .*no/such"):
        pccheck.Checkpointer(path.parent / "no" / "such" / "run.pcc")


def test_read_only_file(path: Path, small_disk: Path) -> None:
    there = small_disk / "run.pcc"
    save_steps(there, [1], capacity="3 MiB")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(pccheck.ReadOnly):
        pccheck.Checkpointer(there)
    assert np.array_equal(pccheck.load(there)["x"], pattern(1))


def test_full_disk_at_create(small_disk: Path) -> None:
    with pytest.raises(pccheck.NoSpace) as caught:
        pccheck.Checkpointer(small_disk / "run.pcc", capacity="64 MiB")
    assert caught.value.errno == 28
    assert not list(small_disk.iterdir()), "a partial file was left behind"
    checkpointer = pccheck.Checkpointer(small_disk / "run.pcc")
    with pytest.raises(pccheck.NoSpace):
        checkpointer.save(1, big_state(20))
    assert checkpointer.save(1, big_state(2)).wait().durable
    checkpointer.close()


def test_damaged_chunk_falls_back_and_says_so(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_steps(path, [1, 2, 3], retain=2)
    flip_byte_of(path, 3)
    with pccheck.Checkpointer(path) as checkpointer:
        with pytest.raises(pccheck.Corrupt) as caught:
            checkpointer.load(3)
        assert caught.value.slot is not None
        with caplog.at_level(logging.WARNING, "pccheck"):
            next_step, state = checkpointer.resume()
        assert next_step == 3 and np.array_equal(state["x"], pattern(2))
        assert "step 3" in caplog.text and "trying step 2" in caplog.text
        checkpointer.save(3, {"x": pattern(33)}).wait()
        assert np.array_equal(checkpointer.load()["x"], pattern(33))
        for step in range(4, 10):
            checkpointer.save(step, {"x": pattern(step)}).wait()


def test_every_checkpoint_damaged_is_an_error(path: Path) -> None:
    """Nothing to load must not look like a new file, which would start training over."""
    save_steps(path, [1, 2], retain=2)
    flip_byte_of(path, 1)
    flip_byte_of(path, 2)
    with pytest.raises(pccheck.Corrupt), pccheck.Checkpointer(path) as checkpointer:
        checkpointer.resume()
    with pytest.raises(pccheck.Corrupt):
        pccheck.load(path)


def test_every_slot_header_damaged_is_an_error(path: Path) -> None:
    save_steps(path, [1, 2], retain=2)
    content = bytearray(path.read_bytes())
    start = content.find(b"PCKSLOTH")
    assert start > 0
    while start >= 0:
        content[start + 60] ^= 0xFF
        start = content.find(b"PCKSLOTH", start + 1)
    path.write_bytes(content)
    with pytest.raises(pccheck.CheckpointError), pccheck.Checkpointer(path) as checkpointer:
        checkpointer.resume()


def test_file_of_another_program(path: Path) -> None:
    """A safetensors payload without a state document is a flat dict of arrays."""
    with pccheck.Checkpointer(path) as checkpointer:
        encoder_less = pccheck.state.Encoder()
        encoder_less.encode_state({"a": {"b": pattern(1)}})
        checkpointer.save(0, {"x": pattern(0)}).wait()
        engine = checkpointer._engine
        assert engine is not None
        engine.save(1, encoder_less.entries, {}, None, None, overlap=True).wait()
        loaded = checkpointer.load()
    assert list(loaded) == ["a.b"] and np.array_equal(loaded["a.b"], pattern(1))


# -- processes


def test_fork(path: Path) -> None:
    checkpointer = pccheck.Checkpointer(path)
    handle = checkpointer.save(1, {"x": pattern(1)})
    child = os.fork()
    if child == 0:
        # Whatever happens here must end in _exit: this is a copy of the test process.
        verdict = 1
        try:
            raised = []
            for call in (
                lambda: checkpointer.save(2, {"x": 1}),
                handle.wait,
                checkpointer.stats,
                lambda: handle.state,
            ):
                try:
                    call()
                except pccheck.Forked:
                    raised.append(True)
            checkpointer.close()
            del checkpointer, handle
            gc.collect()
            verdict = 0 if len(raised) == 4 else 2
        finally:
            os._exit(verdict)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert handle.wait().durable
    checkpointer.save(3, {"x": pattern(3)}).wait()
    checkpointer.close()


def test_interpreter_exit_finishes_what_is_in_flight(
    path: Path, run_child: Callable[..., subprocess.Popen[str]]
) -> None:
    code = """
import sys, numpy as np, pccheck
checkpointer = pccheck.Checkpointer(sys.argv[1], in_flight=2)
for step in range(2):
    checkpointer.save(step, {"x": np.full(1 << 22, step)})
"""
    child = run_child(code, path)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0 and not errors, errors
    assert (pccheck.load(path)["x"] == 1).all()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_signal_during_save_then_resume(
    path: Path, run_child: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    """A process ended while it saves leaves a file that resumes from a step it had saved."""
    code = """
import sys, itertools, numpy as np, pccheck
with pccheck.Checkpointer(sys.argv[1], in_flight=3) as checkpointer:
    start, state = checkpointer.resume()
    for step in itertools.count(start):
        handle = checkpointer.save(step, {"x": np.full(1 << 21, step), "step": step})
        print(step, flush=True)
"""
    durable = -1
    for round_number in range(3):
        child = run_child(code, path)
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= durable + 6:
                break
        child.send_signal(number)
        _, errors = child.communicate(timeout=60)
        assert child.returncode != 0
        if number == signal.SIGINT:
            assert "KeyboardInterrupt" in errors
        with pccheck.Checkpointer(path) as checkpointer:
            next_step, state = checkpointer.resume()
        assert next_step > durable, f"round {round_number} lost what was durable before"
        assert state["step"] == next_step - 1 and (state["x"] == next_step - 1).all()
        durable = next_step - 1


# -- the library


def test_missing_library_says_where_it_looked(
    run_child: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PCCHECK_LIBRARY", "/nowhere/libpccheck.so")
    _, errors = run_child("import pccheck; pccheck.library_path()").communicate(timeout=60)
    assert "LibraryNotFound" in errors and "/nowhere/libpccheck.so" in errors


def test_foreign_library_is_refused(
    run_child: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PCCHECK_LIBRARY", "libc.so.6")
    _, errors = run_child("import pccheck; pccheck.library_path()").communicate(timeout=60)
    assert "is not a libpccheck.so" in errors


def test_core_does_not_import_torch(run_child: Callable[..., subprocess.Popen[str]]) -> None:
    code = "import sys, pccheck, pccheck.numpy; sys.exit('torch' in sys.modules)"
    child = run_child(code)
    assert child.wait(timeout=60) == 0
