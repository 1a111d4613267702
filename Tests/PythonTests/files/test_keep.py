"""Copies of single checkpoints, while training continues: what is copied, killed, and full."""

from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, pattern

import pccheck
from pccheck._files.copies import Copies
from pccheck._files.keep_record import Record

TOOLS = ROOT / "build" / "bin"
COUNT = 20_000
WRITER = """
import sys
import numpy as np, pccheck
path, lead = sys.argv[1], int(sys.argv[2])
ckpt = pccheck.Checkpointer(path, in_flight=2, retain=1, chunk="64 KiB")
step = 0
while True:
    x = np.random.default_rng(1000 + step).integers(0, 1 << 63, 20_000, dtype=np.int64)
    handle = ckpt.save(step, {"x": x})
    if step % lead == 0:
        handle.wait()
        print(step, flush=True)
    step += 1
"""


def tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    program = TOOLS / name
    if not program.exists():
        pytest.skip(f"{program} is not built; run make tools")
    return subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )


def save(ckpt: pccheck.Checkpointer, step: int, count: int = COUNT, **options: object) -> None:
    ckpt.save(step, {"x": pattern(step, count)}, **options).wait()  # type: ignore[arg-type]


def holds(path: Path, step: int, count: int = COUNT) -> bool:
    """Whether a file holds this step alone, whole, and nothing that pcfsck would report."""
    check = tool("pcfsck", "--verify", "full", path)
    assert check.returncode == 0 and "clean\n" in check.stdout, check.stdout + check.stderr
    assert [info.step for info in pccheck.checkpoints(path)] == [step]
    return np.array_equal(pccheck.load(path)["x"], pattern(step, count))


@pytest.mark.parametrize("codec", ["none", "zstd", "planes-zstd"])
def test_a_step_in_flight_and_an_older_one(path: Path, tmp_path: Path, codec: str) -> None:
    with pccheck.Checkpointer(path, retain=2, chunk="64 KiB", codec=codec) as ckpt:
        save(ckpt, 1)
        ckpt.save(2, {"x": pattern(2, COUNT)}, metadata={"loss": np.float32(0.5)})
        flying, older = ckpt.keep(2, tmp_path / "two.pcc"), ckpt.keep(1, tmp_path / "one.pcc")
        assert flying.wait(60) == str(tmp_path / "two.pcc") and older.wait(60)
        tensors = ckpt.keep(2, tmp_path / "two.safetensors")
        assert tensors.wait(60) and tensors.done() and tensors.error is None
    assert holds(tmp_path / "one.pcc", 1) and holds(tmp_path / "two.pcc", 2)
    load_file = pytest.importorskip("safetensors.numpy").load_file
    assert np.array_equal(load_file(tmp_path / "two.safetensors")["x"], pattern(2, COUNT))
    exported = tmp_path / "exported.safetensors"
    assert tool("pcextract", path, "--step", 2, "-o", exported).returncode == 0
    assert exported.read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    slots = tool("pcinspect", "slots", tmp_path / "two.pcc").stdout
    assert '{"loss": 0.5}' in slots, slots


def test_failures_are_the_handles(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken = tmp_path / "taken.pcc"
    taken.write_bytes(b"mine")
    with pccheck.Checkpointer(path) as ckpt:
        nothing = ckpt.keep(1, tmp_path / "one.pcc")
        with pytest.raises(pccheck.FileMissing):
            nothing.wait(60)
        save(ckpt, 1)
        cases = {
            ckpt.keep(7, tmp_path / "seven.pcc"): pccheck.NoCheckpoint,
            ckpt.keep(1, taken): pccheck.FileAlreadyExists,
            ckpt.keep(1, path, replace=True): pccheck.Locked,
        }
        for handle, kind in cases.items():
            with pytest.raises(kind):
                handle.wait(60)
            assert isinstance(handle.error, kind)
        assert taken.read_bytes() == b"mine"
        assert ckpt.keep(1, taken, replace=True).wait(60)
        with pytest.raises(pccheck.FileMissing, match="no folder"):
            ckpt.keep(1, tmp_path / "no" / "one.pcc")
        save(ckpt, 2)
    assert holds(taken, 1)
    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 4 and "step 7 was not kept" in errors[1].getMessage()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.pcc", "taken.pcc"]


class Held:
    """Stops a copy once its slot is pinned."""

    def __init__(self) -> None:
        self.reached, self.goes_on = threading.Event(), threading.Event()

    def __call__(self, sequence: int) -> None:
        self.reached.set()
        assert self.goes_on.wait(60)


def test_the_slot_is_pinned_meanwhile(path: Path, tmp_path: Path) -> None:
    """Training overwrites every other slot, many times."""
    held, copies = Held(), Copies(str(path), None, False)
    with pccheck.Checkpointer(path, in_flight=2, chunk="64 KiB") as ckpt:
        save(ckpt, 1)
        handle = copies.begin(1, str(tmp_path / "one.pcc"), before=held)
        assert held.reached.wait(60)
        for step in range(2, 40):
            save(ckpt, step)
        held.goes_on.set()
        handle.wait(60)
    assert holds(tmp_path / "one.pcc", 1)


def test_an_urgent_save_takes_the_slot(path: Path, tmp_path: Path) -> None:
    """COMMIT.md, rule 8: the copy fails, and is never a mixture."""
    held, copies = Held(), Copies(str(path), None, False)
    with pccheck.Checkpointer(path, in_flight=1, chunk="64 KiB") as ckpt:
        save(ckpt, 1)
        handle = copies.begin(1, str(tmp_path / "one.pcc"), before=held)
        assert held.reached.wait(60)
        save(ckpt, 2)
        save(ckpt, 3, urgent=True)
        held.goes_on.set()
        with pytest.raises(pccheck.Busy, match="a writer has taken it"):
            handle.wait(60)
    assert [p.name for p in tmp_path.iterdir()] == ["run.pcc"]


def test_close_waits_with_a_bound(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held()
    ckpt = pccheck.Checkpointer(path, chunk="64 KiB")
    ckpt._keeper._patience = 0.2
    save(ckpt, 1)
    handle = ckpt._keeper._copies.begin(1, str(tmp_path / "one.pcc"), before=held)
    assert held.reached.wait(60)
    # It has begun to end when the copy goes on, which then finds that it was given up.
    threading.Timer(1.0, held.goes_on.set).start()
    began = time.monotonic()
    ckpt.close()
    assert 0.2 <= time.monotonic() - began < 8
    assert isinstance(handle.error, pccheck.Closed) and "cancelled" in str(handle.error)
    assert "given up" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["run.pcc"]


def test_an_exit_without_close_completes_copies(
    path: Path, tmp_path: Path, run_child: Callable[..., subprocess.Popen[str]]
) -> None:
    child = run_child(
        "import sys, os, numpy as np, pccheck\n"
        "ckpt = pccheck.Checkpointer(sys.argv[1])\n"
        "ckpt.save(1, {'x': np.random.default_rng(1001).integers(0, 1 << 63, 3 << 20)})\n"
        "ckpt.keep(1, sys.argv[2])\n"
        "if os.fork() == 0:\n    ckpt.close(); sys.exit()\n"
        "os.wait()\n",
        path, tmp_path / "one.pcc",
    )  # fmt: skip
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    assert holds(tmp_path / "one.pcc", 1, 3 << 20)


def test_a_child_does_not_wait_for_the_parents_copy(path: Path, tmp_path: Path) -> None:
    held = Held()
    with pccheck.Checkpointer(path, chunk="64 KiB") as ckpt:
        save(ckpt, 1)
        handle = ckpt._keeper._copies.begin(1, str(tmp_path / "one.pcc"), before=held)
        assert held.reached.wait(60)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for call in (lambda: handle.wait(60), lambda: ckpt.keep(1, tmp_path / "two.pcc")):
                    with pytest.raises(pccheck.Forked):
                        call()
                ckpt._keeper.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        held.goes_on.set()
        handle.wait(60)
    assert holds(tmp_path / "one.pcc", 1)


def test_exports_that_are_made_are_not_swept(path: Path, tmp_path: Path) -> None:
    """What the package itself writes is locked as well, and sweeps as well."""
    from pccheck._convert.output import StagedFile

    target = tmp_path / "one.pcc"
    (tmp_path / "one.pcc.creating-3").write_bytes(b"left")
    with pccheck.Checkpointer(path, chunk="64 KiB") as ckpt, StagedFile(str(target)) as staged:
        assert not (tmp_path / "one.pcc.creating-3").exists()
        staged.file.write(b"still being made")
        save(ckpt, 1)
        ckpt.keep(1, target).wait(60)
        assert os.path.exists(staged.temporary_path)
    assert sorted(os.listdir(tmp_path)) == ["one.pcc", "run.pcc"]


def test_killed_copies_leave_nothing_for_long(
    path: Path, tmp_path: Path, run_child: Callable[..., subprocess.Popen[str]]
) -> None:
    """SIGKILL at any moment of a copy: no file or a whole one, and the next copy sweeps."""
    with pccheck.Checkpointer(path) as ckpt:
        save(ckpt, 1, 4 << 20)
    target, leftover_count = tmp_path / "one.pcc", 0
    code = (
        "import sys, time, pccheck\n"
        "with pccheck.Checkpointer(sys.argv[1]) as ckpt:\n"
        "    print('ready', flush=True)\n"
        "    ckpt.keep(1, sys.argv[2], replace=True).wait()\n"
        "    print('kept', flush=True)\n    time.sleep(60)\n"
    )
    for number in range(20):
        child = run_child(code, path, target)
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        if number < 19:
            time.sleep(0.003 * 1.3**number)
        else:
            assert child.stdout.readline() == "kept\n"
        child.kill()
        child.wait()
        assert not target.exists() or holds(target, 1, 4 << 20)
        leftover_count += any(".creating-" in name for name in os.listdir(tmp_path))
        assert len(os.listdir(tmp_path)) <= 3, "a leftover of an earlier copy is still there"
    assert target.exists() and leftover_count > 0
    with pccheck.Checkpointer(path) as ckpt:
        assert ckpt.steps() == [1]
        ckpt.keep(1, target, replace=True).wait(60)
    assert sorted(os.listdir(tmp_path)) == ["one.pcc", "run.pcc"]


@pytest.mark.parametrize("name", ["one.pcc", "one.safetensors"])
def test_a_full_disk(
    path: Path, small_disk: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Training goes on, and nothing is left; once there is room, so does the copy."""
    count = 2 << 20
    (small_disk / "filler").write_bytes(bytes(16 << 20))
    keep = pccheck.Keep(every=1, folder=small_disk / "kept", suffix=Path(name).suffix)
    with pccheck.Checkpointer(path, keep=keep) as ckpt:
        save(ckpt, 1, count)
        with pytest.raises(pccheck.NoSpace, match="No space left"):
            ckpt.keep(1, small_disk / name).wait(60)
        for step in range(2, 6):
            save(ckpt, step, count)
        assert ckpt.steps()[0] == 5
        for handle in ckpt._keeper._copies.active:
            handle._ended.wait(60)
        found = [p.name for p in small_disk.glob("**/*") if p.is_file()]
        assert sorted(found) == ["filler", "kept.json"]
        (small_disk / "filler").unlink()
        assert ckpt.keep(5, small_disk / name).wait(60)
    assert "step 1 was not kept: " in caplog.text and "No space" in caplog.text


def test_backups_of_a_live_file(path: Path, tmp_path: Path) -> None:
    """The recipe beside a writer that never pauses, hundreds of times: every backup is whole, and
    one of the durable steps, not older than what was durable when it began."""
    count = int(os.environ.get("PCCHECK_KEEP_ROUNDS", "200"))
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), "5"], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    last, lines = [int(writer.stdout.readline())], writer.stdout

    def follow() -> None:
        for line in lines:
            last.append(int(line))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    steps = []
    try:
        for number in range(count):
            backup = tmp_path / f"backup-{number}.pcc"
            durable = last[-1]
            run = tool("pccheck", "keep", path, "-o", backup)
            assert run.returncode == 0, run.stderr
            check = tool("pcfsck", "--verify", "full", backup)
            assert check.returncode == 0 and "clean\n" in check.stdout, check.stdout
            (info,) = pccheck.checkpoints(backup)
            assert info.step >= durable
            assert np.array_equal(pccheck.load(backup)["x"], pattern(info.step, COUNT))
            steps.append(info.step)
            backup.unlink()
    finally:
        assert writer.poll() is None, "the writer ended"
        writer.kill()
        writer.wait()
        thread.join()
        lines.close()
    assert steps == sorted(steps) and len(set(steps)) > count // 10


def test_metadata_by_name(path: Path) -> None:
    torch = pytest.importorskip("torch")
    with pccheck.Checkpointer(path) as ckpt:
        for value in (1, 2.5, "text", [1, {"a": None}], np.float32(0.25), torch.tensor(3)):
            step = len(ckpt.steps()) and ckpt.steps()[0] + 1
            save(ckpt, step, 10, metadata={"value": value})
        with pytest.raises(TypeError, match="metadata holds a"):
            save(ckpt, 9, 10, metadata={"value": object()})
        with pytest.raises(ValueError, match="at most 2048 fit"):
            save(ckpt, 9, 10, metadata={"value": "x" * 3000})


# -- Keep


def kept(folder: Path) -> list[int]:
    """The steps in a folder of a `Keep`, each proven."""
    found = sorted(folder.glob("step-*.pcc"))
    for file in found:
        assert holds(file, int(file.stem.removeprefix("step-")), 1000), file
    return [int(file.stem.removeprefix("step-")) for file in found]


def train(
    path: Path, keep: pccheck.Keep, losses: dict[int, object], resumes: bool = False
) -> None:
    with pccheck.Checkpointer(path, keep=keep, chunk="64 KiB") as ckpt:
        if resumes:
            ckpt.resume()
        for step, loss in losses.items():
            save(ckpt, step, 1000, metadata={"loss": loss})
            for handle in ckpt._keeper._copies.active:
                handle._ended.wait(60)


def test_every_and_best(path: Path, tmp_path: Path) -> None:
    keep = pccheck.Keep(every=10, best=2, by="loss")
    losses = [5, 4, float("nan"), 4, 6, 3, float("-inf"), None, 3, 7, 8, 9, 9, 2, 9]
    train(path, keep, dict(zip(range(2, 32, 2), losses, strict=True)))
    # Milestones 10, 20, 30; the best are 28 with 2, and of the two with 3 the earlier, 12.
    assert kept(tmp_path / "run-kept") == [10, 12, 20, 28, 30]


def test_the_first_save_behind_a_milestone_is_kept(path: Path, tmp_path: Path) -> None:
    keep = pccheck.Keep(every=100, folder=tmp_path / "kept")
    train(path, keep, dict.fromkeys(range(9, 400, 30), 0))
    assert kept(tmp_path / "kept") == [129, 219, 309]
    # A run that starts over does not keep another one of what is there; one that goes back does.
    train(path, keep, dict.fromkeys(range(400, 500, 30), 0), resumes=True)
    assert kept(tmp_path / "kept") == [129, 219, 309, 400]


def test_the_highest_is_the_best(path: Path, tmp_path: Path) -> None:
    keep = pccheck.Keep(best=1, by="loss", mode="max")
    train(path, keep, {0: 1, 1: 3, 2: 2, 3: 3})
    assert kept(tmp_path / "run-kept") == [1]


def test_a_restart_goes_on_with_the_list(path: Path, tmp_path: Path) -> None:
    keep, folder = pccheck.Keep(every=10, best=2, by="loss"), tmp_path / "run-kept"
    train(path, keep, {4: 4.0, 10: 9.0, 12: 3.0})
    assert kept(folder) == [4, 10, 12]
    before = (folder / "step-000000010.pcc").read_bytes()
    # Steps that come again: the newer durable ones take the places of the older ones.
    path.unlink()
    train(path, keep, {4: 2.0, 6: 8.0, 10: 9.0, 14: 2.5})
    assert kept(folder) == [4, 10, 14]
    assert (folder / "step-000000010.pcc").read_bytes() != before


def test_nothing_of_others_is_touched(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep, folder = pccheck.Keep(best=1, by="loss"), tmp_path / "run-kept"
    folder.mkdir()
    foreign = folder / "step-000000002.pcc"
    foreign.write_bytes(b"mine")
    train(path, keep, {1: 5.0, 2: 4.0})
    assert foreign.read_bytes() == b"mine" and "not in kept.json; move it away" in caplog.text
    # A file of the list that was changed since belongs to whoever changed it.
    own = folder / "step-000000001.pcc"
    own.write_bytes(own.read_bytes() + b"!")
    train(path, keep, {3: 1.0}, resumes=True)
    assert own.exists() and "left alone" in caplog.text
    assert (folder / "step-000000003.pcc").exists() and foreign.read_bytes() == b"mine"


def test_a_list_that_cannot_be_read_is_an_error_at_once(path: Path, tmp_path: Path) -> None:
    (tmp_path / "run-kept").mkdir()
    (tmp_path / "run-kept" / "kept.json").write_text('{"kept": 7')
    with pytest.raises(pccheck.StateFormatError, match="the list of kept files cannot be read"):
        pccheck.Checkpointer(path, keep=pccheck.Keep(every=1))
    with pytest.raises(pccheck.DeviceError, match="nothing can be kept there"):
        pccheck.Checkpointer(path, keep=pccheck.Keep(every=1, folder="/proc/kept"))


def test_nothing_is_kept_beside_a_device(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make the node of a device")
    node = tmp_path / "disk"
    os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(7, 200))
    with pytest.raises(pccheck.InvalidArgument, match="nothing is kept beside it"):
        pccheck.Checkpointer(node, keep=pccheck.Keep(every=1))
    assert os.listdir(tmp_path) == ["disk"]


def test_a_kill_between_file_and_list(path: Path, tmp_path: Path) -> None:
    """The list says before a file gets its name that it will: it is adopted, or forgotten."""
    keep, folder = pccheck.Keep(best=1, by="loss"), tmp_path / "run-kept"
    train(path, keep, {1: 5.0})
    record = Record(str(folder), 1, "min")
    (entry,) = record._lists.kept.values()
    record._lists.kept.clear()
    record.begin(entry, entry.sequence)
    (folder / "step-000000009.pcc.creating-12").write_bytes(b"left")
    (folder / "step-9.pcc.creating-12").write_bytes(b"of others")
    train(path, keep, {2: 1.0}, resumes=True)
    assert kept(folder) == [2]
    assert not (folder / "step-000000009.pcc.creating-12").exists()
    assert (folder / "step-9.pcc.creating-12").exists()
    record = Record(str(folder), 1, "min")
    (entry,) = record._lists.kept.values()
    (folder / entry.name).unlink()
    record.begin(entry, entry.sequence)
    assert Record(str(folder), 1, "min")._lists.kept == {}


KILLED = """
import sys, itertools
import numpy as np, pccheck
keep = pccheck.Keep(every=4, best=2, by="loss")
ckpt = pccheck.Checkpointer(sys.argv[1], in_flight=3, chunk="64 KiB", keep=keep)
start, _ = ckpt.resume()
print("ready", flush=True)
for step in itertools.count(start):
    x = np.random.default_rng(1000 + step).integers(0, 1 << 63, 1000, dtype=np.int64)
    ckpt.save(step, {"x": x}, metadata={"loss": float((step * 37) % 101)}).wait()
    print(step, flush=True)
"""


def test_a_run_that_is_killed_again_and_again(
    path: Path, tmp_path: Path, run_child: Callable[..., subprocess.Popen[str]]
) -> None:
    folder = tmp_path / "run-kept"
    for number in range(12):
        child = run_child(KILLED, path)
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        for _ in range(5):
            assert child.stdout.readline()
        time.sleep(0.007 * number)
        child.send_signal(signal.SIGKILL)
        child.wait()
    last = pccheck.checkpoints(path)[0].step
    train(path, pccheck.Keep(every=4, best=2, by="loss"), {last + 1: 500.0}, resumes=True)
    steps = kept(folder)
    listed = Record(str(folder), 2, "min")._lists.kept
    assert [f"step-{step:09d}.pcc" for step in steps] == sorted(listed)
    assert not [name for name in os.listdir(folder) if "creating" in name]
    best = [entry for entry in listed.values() if "best" in entry.reasons]
    assert len(best) == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "keeps nothing"), ({"every": 0}, "at least 1"), ({"best": 2}, "go together"),
        ({"every": 5, "by": "loss"}, "go together"),
        ({"best": 1, "by": "loss", "mode": "least"}, "'min' or 'max'"),
        ({"every": 5, "suffix": ".pt"}, "suffix is '.pt'"),
    ],
)  # fmt: skip
def test_wrong_arguments(options: dict[str, object], text: str) -> None:
    with pytest.raises(pccheck.InvalidArgument, match=text):
        pccheck.Keep(**options)  # type: ignore[arg-type]


def test_a_metric_that_is_missing_is_said_once(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep = pccheck.Keep(best=1, by="accuracy")
    train(path, keep, {0: 1, 1: 2, 2: 3})
    assert kept(tmp_path / "run-kept") == []
    assert caplog.text.count("no number 'accuracy' in its metadata") == 1


def test_a_metric_that_no_float_holds_ends_no_save(path: Path, tmp_path: Path) -> None:
    with pccheck.Checkpointer(path, keep=pccheck.Keep(best=1, by="loss")) as checkpointer:
        assert checkpointer.save(1, {"x": 1}, metadata={"loss": 10**400}).wait().durable
    assert kept(tmp_path / "run-kept") == []


def test_sigterm_gives_copies_up(path: Path, tmp_path: Path) -> None:
    """The last save goes before everything, and the exit does not wait for a copy."""
    held = Held()
    ckpt = pccheck.Checkpointer(path, chunk="64 KiB", on_sigterm="save", after_sigterm="return")
    save(ckpt, 1)
    handle = ckpt._keeper._copies.begin(1, str(tmp_path / "one.pcc"), before=held)
    assert held.reached.wait(60)
    os.kill(os.getpid(), signal.SIGTERM)
    save(ckpt, 2)
    threading.Timer(0.5, held.goes_on.set).start()
    began = time.monotonic()
    ckpt.close()
    assert time.monotonic() - began < 8
    assert isinstance(handle.error, pccheck.Closed)
