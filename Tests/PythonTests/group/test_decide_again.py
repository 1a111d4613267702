"""A checkpoint that cannot be loaded is no reason to take the next one of the same decision."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from rank_files import damage, jobs, payload, rank_file, values

import pccheck
import pccheck.distributed as pcd
from pccheck._dcp.search import Search
from pccheck.errors import Corrupt, NoCheckpoint

sys.path.insert(0, str(ROOT / "Tests" / "PythonTests" / "ranks"))

from gang import Gang, ended  # noqa: E402


def own_file(folder: Path) -> Path:
    return folder / "rank-00000-of-00001.pcc"


def slots_of(path: Path) -> Any:
    """What the file keeps, and in which attempt."""
    report = pccheck.report(path)
    return report["attempt"], report["slots"]


@pytest.fixture
def away(tmp_path: Path) -> tuple[Path, bytes]:
    """The file of a rank that is away. One rank wrote step 10, two wrote step 20, and one rank was
    writing step 30 when the power was cut."""
    jobs(tmp_path, 1, [(1, 10), (3, 30)], unnamed=1)
    damage(own_file(tmp_path), 30)
    path = jobs(tmp_path, 2, [(2, 20)])[1]
    contents = path.read_bytes()
    path.unlink()
    return path, contents


def resumed(folder: Path) -> Any:
    with pcd.Checkpointer(folder) as ckpt:
        return ckpt.load()


def saved(folder: Path) -> Any:
    with pcd.Checkpointer(folder) as ckpt:
        ckpt.save(40, x=torch.zeros(3)).wait_group()


def rewound(folder: Path) -> Any:
    with pcd.Checkpointer(folder) as ckpt:
        ckpt.rewind(35)


def searched(folder: Path) -> Any:
    return Search(f"{folder}/", None).next()


@pytest.mark.parametrize("use", [resumed, saved, rewound, pcd.load, searched])
def test_a_torn_checkpoint_does_not_hide_that_a_file_is_away(
    use: Callable[[Path], Any], tmp_path: Path, away: tuple[Path, bytes]
) -> None:
    before = slots_of(own_file(tmp_path))
    with pytest.raises(NoCheckpoint, match="step 20 of attempt 2 is missing on rank 1: no file"):
        use(tmp_path)
    assert slots_of(own_file(tmp_path)) == before


def test_what_was_away_is_loaded_when_it_is_back(
    tmp_path: Path, away: tuple[Path, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    away[0].write_bytes(away[1])
    with caplog.at_level(logging.WARNING, "pccheck"):
        assert pcd.load(tmp_path)["x"].unique().tolist() == [20]
    assert "step 30 of attempt 3 (1 rank) cannot be used" in caplog.text
    assert resumed(tmp_path)["x"].unique().tolist() == [20]


def test_an_older_step_is_loaded_when_it_is_named(
    tmp_path: Path, away: tuple[Path, bytes]
) -> None:
    assert pcd.load(tmp_path, 10)["x"].unique().tolist() == [10]
    with pcd.Checkpointer(tmp_path) as ckpt:
        assert ckpt.load(10)["x"].unique().tolist() == [10]


def test_a_torn_first_save_was_never_durable(tmp_path: Path) -> None:
    jobs(tmp_path, 1, [(1, 10)], unnamed=1)
    damage(own_file(tmp_path), 10)
    with pytest.raises(Corrupt, match="digest"):
        pcd.load(tmp_path)
    with pcd.Checkpointer(tmp_path) as ckpt:
        assert ckpt.resume(x=torch.zeros(3)) == 0
        ckpt.save(0, x=torch.ones(3)).wait_group()
    assert pcd.load(tmp_path)["x"].tolist() == [1, 1, 1]


def test_a_durable_one_that_is_damaged_ends_the_job(tmp_path: Path) -> None:
    jobs(tmp_path, 1, [(1, 10)])
    damage(own_file(tmp_path), 10)
    with pytest.raises(Corrupt, match="digest"), pcd.Checkpointer(tmp_path) as ckpt:
        ckpt.resume(x=torch.zeros(3))


def test_nothing_begins_behind_a_torn_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The superblock of an attempt names what it continues from, which nobody has loaded here."""
    jobs(tmp_path, 1, [(1, 10), (1, 30)], unnamed=1)
    damage(own_file(tmp_path), 30)
    with caplog.at_level(logging.WARNING, "pccheck"), pcd.Checkpointer(tmp_path) as ckpt:
        ckpt.save(40, x=torch.zeros(3)).wait_group()
    assert "step 30 of attempt 1 (1 rank) cannot be used" in caplog.text
    assert pcd.load(tmp_path, 10)["x"].unique().tolist() == [10]
    with pytest.raises((NoCheckpoint, Corrupt)):
        pcd.load(tmp_path, 30)


def test_a_void_one_does_not_hide_what_is_lost(job: Callable[..., Gang], tmp_path: Path) -> None:
    """The ranks held different values in step 2; of step 1, which was durable, a part is lost."""
    folder = tmp_path / "run"
    folder.mkdir()
    for rank in range(2):
        claims = [[[0, 1], "ab"[rank] * 32]]
        path = rank_file(folder, rank, 2, {
            (1, 1): payload({"w": values(8)}), (1, 2): payload({"w": values(8)}, claims=claims),
        })  # fmt: skip
    data = bytearray(path.read_bytes())
    data[4 * 4096 + 100] ^= 1  # in the header of slot 0
    path.write_bytes(data)
    # Nor does a restart that failed hide it from the next one.
    for _ in range(2):
        expect_refusal(job)


def expect_refusal(job: Callable[..., Gang]) -> None:
    gang = ended(job(2, """
try:
    with pcd.Checkpointer(folder + "/run", timeout=10) as ckpt:
        say("start", ckpt.resume(x=torch.zeros(8)))
except pccheck.CheckpointError as error:
    say("error", type(error).__name__, error)
"""))
    for rank in range(2):
        (said,) = gang.said(rank, "error") or pytest.fail(gang.log(rank))
        assert said[0] == "NoCheckpoint" and "step 1 of attempt 1" in " ".join(said)
