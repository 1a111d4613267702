"""The file of a rank grows in the middle of an attempt, and the group loses nothing with it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import pccheck
import pccheck.distributed as pcd
from pccheck._group.transport import PendingAnd
from pccheck.errors import InvalidArgument, VoidCheckpoint

SMALL, LARGE = torch.zeros(1000), torch.zeros(3_000_000)


class OtherRank(pcd.LocalTransport):
    """A network on which another rank answers late, or has failed to save."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.has_failed = False

    def begin_and(self, channel: str, words: Sequence[int]) -> PendingAnd:
        words = [words[0] & ~1, *words[1:]] if self.has_failed else words
        return Answer(self.answers, super().begin_and(channel, words))


class Answer:
    def __init__(self, answers: threading.Event, own: PendingAnd) -> None:
        self._answers, self._own = answers, own

    def wait(self, timeout: float | None) -> list[int] | None:
        return self._own.wait(timeout) if self._answers.wait(timeout) else None


def steps(folder: Path) -> list[int]:
    infos = pccheck.checkpoints(folder / "run" / "rank-00000-of-00001.pcc")
    return sorted(info.step for info in infos if info.is_anchored)


def test_the_last_complete_one_outlives_a_growth_of_a_full_file(tmp_path: Path) -> None:
    network = OtherRank()
    with pcd.Checkpointer(tmp_path / "run", transport=network, retain=1, timeout=30) as ckpt:
        ckpt.save(0, x=SMALL).wait_group()
        network.answers.clear()
        for step in (1, 2):
            ckpt.save(step, x=SMALL).wait()
        assert steps(tmp_path) == [0, 1, 2]
        kept: list[int] = []

        def answer() -> None:
            kept.extend(steps(tmp_path))
            network.answers.set()

        timer = threading.Timer(1, answer)
        timer.start()
        assert ckpt.save(3, x=LARGE).wait_group().durable
        timer.join()
        # No slot was free meanwhile, and nothing was known of 1 and 2.
        assert kept == [0, 1, 2]


def test_a_void_one_keeps_no_slot_after_a_growth(tmp_path: Path) -> None:
    network = OtherRank()
    with pcd.Checkpointer(tmp_path / "run", transport=network, retain=1, timeout=30) as ckpt:
        ckpt.save(0, x=SMALL).wait_group()
        network.has_failed = True
        with pytest.raises(VoidCheckpoint):
            ckpt.save(1, x=SMALL).wait_group()
        network.has_failed = False
        ckpt.save(2, x=LARGE).wait_group()
        assert ckpt.stats()["group"]["undecided_count"] == 0
        for step in range(3, 8):
            ckpt.save(step, x=LARGE).wait_group(timeout=10)
        assert 1 not in steps(tmp_path)


def test_ranks_without_a_process_group_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them would take itself for the whole job."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidArgument, match="init_process_group"):
        pcd.Checkpointer(tmp_path / "run")
    with pcd.Checkpointer(tmp_path / "run", transport=pcd.LocalTransport()) as ckpt:
        ckpt.save(0, x=SMALL).wait_group()
