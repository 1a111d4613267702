"""pccheck rescue on folders of a group: every file in a new folder, and where the job restarts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import ROOT
from test_group_folder import OTHER_RUN, rank_file, schema
from test_group_folder import run_tool as inspected
from test_tools import run_tool

sys.path[:0] = [str(ROOT / "Tests" / "PythonTests" / "ranks")]

from gang import Gang, ended  # noqa: E402

Job = Callable[..., Gang]
BLOCK = 4096


def rescue(folder: Path, status: int = 0) -> tuple[Path, dict[str, Any], str]:
    """The new folder, what the command prints for programs, and what it prints for people."""
    new = folder.parent / "new"
    made = run_tool("pccheck", "rescue", folder, new, "--json")
    assert made.returncode == status, made.stderr
    document: dict[str, Any] = json.loads(made.stdout)
    jsonschema.validate(document, schema("pccheck-rescue-group"))
    screen = run_tool("pccheck", "rescue", folder, folder.parent / "again")
    assert screen.returncode == status, screen.stderr
    text = " ".join(screen.stdout.split())
    # What the new folder says of itself is what the command said, as far as metadata shows it.
    _, inspection = inspected("pcinspect", new)
    assert inspection["decision"]["run"] == document["decision"]["run"]
    assert inspection["decision"]["watermark"] == document["decision"]["watermark"]
    assert sorted(item.name for item in folder.parent.iterdir()) == ["again", "new", "run"]
    return new, document, text


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a job of three ranks with two checkpoints."""
    folder = tmp_path / "run"
    folder.mkdir()
    for rank in range(3):
        rank_file(folder, rank, 3, [(5, 10), (5, 20)], watermark=(5, 20))
    return folder


def path_of(folder: Path, rank: int, world: int = 3) -> Path:
    return folder / f"rank-{rank:05}-of-{world:05}.pcc"


def change(path: Path, *ranges: tuple[int, int], by: int = 0) -> None:
    """Zeros in some parts of a file, or other bytes; negative places count from its end."""
    data = bytearray(path.read_bytes())
    for start, count in ranges:
        first = start if start >= 0 else len(data) + start
        data[first : first + count] = bytes([by]) * count
    path.write_bytes(data)


def without_superblocks(path: Path) -> None:
    change(path, (BLOCK, 2 * BLOCK), (-3 * BLOCK, 2 * BLOCK))


def damage_payload(path: Path, step: int) -> None:
    """One byte of what a step saved: the content of sequence n begins with a byte of its own."""
    data = bytearray(path.read_bytes())
    place = data.find(bytes([step // 10 * 16 % 255 + 1]) * 1000)
    assert place > 0
    data[place + 10] ^= 1
    path.write_bytes(data)


def test_intact_files_are_copied_as_they_are(run: Path) -> None:
    new, document, text = rescue(run)
    for rank in range(3):
        assert path_of(new, rank).read_bytes() == path_of(run, rank).read_bytes()
    assert all(not item["repairs_made"] and not item["note"] for item in document["files"])
    assert "3 files rescued into" in text and "continues from step 20 of attempt 5" in text
    assert "on 3 ranks, each from its own file" in text


def test_blocks_come_from_their_twins(run: Path) -> None:
    before = path_of(run, 1).read_bytes()
    change(path_of(run, 1), (0, BLOCK), (-3 * BLOCK, 2 * BLOCK))
    new, document, text = rescue(run)
    assert path_of(new, 1).read_bytes() == before
    assert len(document["files"][1]["repairs_made"]) == 3
    assert "rank-00001-of-00003.pcc: 3 blocks repaired" in text


def test_lost_superblocks_are_made_from_the_slots(run: Path) -> None:
    without_superblocks(path_of(run, 2))
    new, document, text = rescue(run)
    assert "no superblock was intact; new ones name what verified" in text
    assert document["decision"]["outcome"] == "resume" and document["lost"] is None
    _, inspection = inspected("pcinspect", new)
    found = inspection["files"][2]
    # The watermark was in the superblocks; those of the other ranks have it.
    assert (found["attempt"], found["watermark"]) == (5, None)
    assert found["run_uuid"] == inspection["files"][0]["run_uuid"]
    assert [slot["reason"] for slot in found["slots"][:2]] == ["retained", "anchored"]
    assert document["decision"]["watermark"] == {"attempt": 5, "step": 20}
    assert [item["step"] for item in document["decision"]["checkpoints"]] == [20, 10]


def test_a_damaged_payload_makes_an_older_restart(run: Path) -> None:
    damage_payload(path_of(run, 1), 20)
    new, document, text = rescue(run, status=4)
    assert "continues from step 10 of attempt 5" in text
    assert "not step 20 of attempt 5: rank 1: its slot is payload-damaged" in text
    assert "pcfsck still finds: PCK-" in text
    assert path_of(new, 1).read_bytes() == path_of(run, 1).read_bytes()
    assert document["decision"]["lost"] == {"attempt": 5, "step": 20}


def test_what_is_missing_is_named(run: Path) -> None:
    path_of(run, 0).unlink()
    path_of(run, 1).write_bytes(b"nothing" * 5000)
    new, document, text = rescue(run, status=4)
    assert "1 file rescued into" in text and ", 1 not" in text
    assert "rank-00001-of-00003.pcc: nothing can be rescued" in text
    assert "no file of ranks 0 to 1" in text and "restart fails" in text
    assert [bool(item["error"]) for item in document["files"]] == [True, False]
    assert [item.name for item in new.iterdir()] == [path_of(new, 2).name]
    assert document["decision"]["outcome"] == "refuse"


def test_a_truncated_file_keeps_what_it_has(run: Path) -> None:
    path = path_of(run, 0)
    size = path.stat().st_size
    os.truncate(path, size - 5 * BLOCK)
    new, document, text = rescue(run)
    assert path_of(new, 0).stat().st_size == size
    assert "continues from step 20 of attempt 5" in text
    assert len(document["files"][0]["repairs_made"]) == 3


def test_files_that_do_not_belong_together_stay_so(run: Path) -> None:
    rank_file(run, 0, 1, [(1, 10)], run=OTHER_RUN)
    new, document, text = rescue(run, status=4)
    assert "files do not belong together" in text and len(list(new.iterdir())) == 4
    assert [item["kind"] for item in document["decision"]["problems"]] == ["other-run"]


def test_another_number_of_ranks(run: Path) -> None:
    for rank in range(2):
        rank_file(run, rank, 2, [(6, 25)], watermark=(5, 20))
    without_superblocks(path_of(run, 1, 2))
    _, document, text = rescue(run)
    assert "continues from step 25 of attempt 6" in text and "on 2 ranks" in text
    assert [world["world_size"] for world in document["decision"]["worlds"]] == [3, 2]


def test_a_loss_that_repairs_would_hide_is_reported(tmp_path: Path) -> None:
    """Nobody knew yet that the first checkpoint was durable on all ranks. Its part on rank 1 is
    damaged, and with the superblocks what named it is gone: the job would begin again."""
    folder = tmp_path / "run"
    folder.mkdir()
    rank_file(folder, 0, 2, [(1, 20)])
    rank_file(folder, 1, 2, [(1, 10), (1, 20)])
    without_superblocks(path_of(folder, 1, 2))
    damage_payload(path_of(folder, 1, 2), 20)
    _, document, text = rescue(folder, status=4)
    assert document["decision"]["outcome"] == "begin"
    assert document["lost"] == {"attempt": 1, "step": 20}
    assert "step 20 of attempt 1, which may have been durable on all ranks, is lost" in text


def test_nothing_is_left_when_it_fails(run: Path, small_disk: Path) -> None:
    facts = os.statvfs(small_disk)
    room = 5 * path_of(run, 0).stat().st_size // 2
    (small_disk / "filler").write_bytes(bytes(facts.f_bavail * facts.f_frsize - room))
    made = run_tool("pccheck", "rescue", run, small_disk / "new")
    assert made.returncode == 8, made.stderr
    assert [item.name for item in small_disk.iterdir()] == ["filler"]
    taken = run.parent / "taken"
    taken.mkdir()
    made = run_tool("pccheck", "rescue", run, taken)
    assert made.returncode == 8 and "exists; choose another name" in made.stderr
    for rank in range(3):
        path_of(run, rank).write_bytes(b"nothing")
    made = run_tool("pccheck", "rescue", run, run.parent / "new")
    assert made.returncode == 4 and "no file can be read" in made.stderr
    assert sorted(item.name for item in run.parent.iterdir()) == ["run", "small", "taken"]


@pytest.mark.parametrize("options, text", [
    (["--step", 10, "--output", "x"], "the options are about one file"),
    (["new", "--step", 10], "leave the options out"),
    (["new", "--dry-run"], "leave the options out"),
])  # fmt: skip
def test_options_that_are_refused(run: Path, options: list[object], text: str) -> None:
    made = run_tool("pccheck", "rescue", run, *options)
    assert made.returncode == 16 and text in " ".join(made.stderr.split()), made.stderr
    made = run_tool("pccheck", "rescue", path_of(run, 0), run.parent / "new")
    assert made.returncode == 16 and "is no folder" in made.stderr
    assert [item.name for item in run.parent.iterdir()] == ["run"]


def test_a_job_that_runs_is_left_alone(job: Job, tmp_path: Path) -> None:
    code = """
    import time
    t = Training(rank)
    with pcd.Checkpointer(folder + "/run", timeout=30) as ckpt:
        ckpt.resume(**t.state)
        ckpt.save(0, **t.state).wait_group()
        say("ready")
        time.sleep(120)
    """
    gang = job(2, code)
    while not all(gang.said(rank, "ready") for rank in range(2)):
        time.sleep(0.05)
        assert None in gang.wait(0)
    made = run_tool("pccheck", "rescue", tmp_path / "run", tmp_path / "new")
    assert made.returncode == 8 and "end the job before the rescue" in made.stderr
    # What a reader may do meanwhile.
    out = tmp_path / "x.safetensors"
    made = run_tool("pcextract", tmp_path / "run", "-o", out)
    assert made.returncode == 0 and out.exists(), made.stderr
    gang.kill()
    assert not (tmp_path / "new").exists()


def test_ranks_of_torch_restart_from_what_was_rescued(job: Job, tmp_path: Path) -> None:
    code = "train(rank, folder, steps, every=2, retain=3)"
    first = ended(job(3, code, steps=7))
    losses = first.said(0, "loss")
    run = tmp_path / "run"
    for rank in range(3):
        without_superblocks(path_of(run, rank)) if rank == 1 else change(
            path_of(run, rank), (0, BLOCK))
    assert run_tool("pcfsck", run).returncode == 4
    made = run_tool("pccheck", "rescue", run, tmp_path / "new")
    assert made.returncode == 0, made.stdout + made.stderr
    assert "continues from step 6 of attempt 1" in made.stdout
    run.rename(tmp_path / "broken")
    (tmp_path / "new").rename(run)
    again = ended(job(3, code, steps=9))
    assert [again.said(rank, "start") for rank in range(3)] == [[["7"]]] * 3
    assert len(again.said(0, "loss")) == 2 and len(losses) == 7


def test_a_signal_leaves_nothing(run: Path) -> None:
    """The new folder is complete, or not there."""
    process = subprocess.Popen(
        [ROOT / "build/bin/pccheck", "rescue", run, run.parent / "new"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (0, 32, -signal.SIGINT)
    names = {item.name for item in run.parent.iterdir()}
    assert names == ({"run", "new"} if process.returncode == 0 else {"run"})
