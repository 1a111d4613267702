"""Kills ranks of a job at any moment, restarts the job, and checks what all ranks continue from.

    python Tests/PythonTests/ranks/kills.py --world 2 --restarts 1000

After every restart: no rank ends by itself before one is killed; all ranks resume one step; it is
not older than the newest step that any rank was told to be durable on all ranks; and every loss
has the bits of an undisturbed run. It prints one line of JSON at the end; the exit status is 1 when
a check failed, and the line has the seed.

``--plant`` makes a mistake on purpose, which the checks must find. ``--saver dcp`` trains through
torch.distributed.checkpoint instead, with a folder for each save, and ``--saver dcp-one`` with one
folder for all; its restarts then count what they lose.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

from gang import Gang, Nursery

STEPS = 120
RUN = """
planted(plant)
connect(rank, world, folder)
train(rank, folder, steps, pause=0.002)
os._exit(0)
"""


STOCK = """
from stock import train_with_dcp
connect(rank, world, folder)
train_with_dcp(rank, folder, steps, pause=0.002, keeps_one=keeps_one)
"""


# In the log of a rank: nothing that another rank's death explains.
SIGNS = (
    "NoCheckpoint", "InvalidArgument", "StateMismatch", "Corrupt", "Segmentation",
    # Of torch.distributed.checkpoint.
    "CheckpointException", "FileNotFoundError", "EOFError", "UnpicklingError", "StreamReader",
)  # fmt: skip


class Wrong(Exception):
    """A check failed."""


class Harness:
    """Restarts of one run after another, against an undisturbed one."""

    def __init__(
        self, nursery: Nursery, folder: Path, world: int, seed: int, plant: str, saver: str
    ) -> None:
        self._nursery, self._folder, self._world = nursery, folder, world
        self._code = RUN if saver == "pccheck" else STOCK
        self._arguments = (
            {"plant": plant} if saver == "pccheck" else {"keeps_one": saver == "dcp-one"}
        )
        self._random = random.Random(seed)
        self.counts = {"restarts": 0, "runs": 0, "killed_ranks": 0, "resumed": 0, "acked_steps": 0}
        self._expected = self._undisturbed()
        self._begin_run()

    def _undisturbed(self) -> list[dict[str, str]]:
        """The loss of each rank at each step."""
        place = self._folder / "undisturbed"
        arguments = {**self._arguments, **({"plant": ""} if self._code == RUN else {})}
        gang = Gang(self._nursery, place, self._world, self._code, steps=STEPS, **arguments)
        statuses = gang.wait(120)
        if statuses != [0] * self._world:
            raise Wrong(f"the undisturbed run ended with {statuses}: {gang.log(0)[-2000:]}")
        losses = [dict(gang.said(rank, "loss")) for rank in range(self._world)]
        shutil.rmtree(place)
        return losses

    def _begin_run(self) -> None:
        self._place = self._folder / f"run-{self.counts['runs']}"
        #: The newest step that any rank knew to be durable on all ranks.
        self._newest = -1

    def restart(self) -> None:
        """One start, the death of some ranks at some moment, and the checks."""
        gang = Gang(
            self._nursery, self._place, self._world, self._code, steps=STEPS, **self._arguments
        )
        is_over = self._disturb(gang)
        gang.kill()
        self.counts["restarts"] += 1
        self._check(gang)
        if is_over or all(gang.said(rank, "done") for rank in range(self._world)):
            shutil.rmtree(self._place)
            self.counts["runs"] += 1
            self._begin_run()

    def begin_again(self) -> None:
        """After a loss that is counted."""
        self.counts["losses"] = self.counts.get("losses", 0) + 1
        shutil.rmtree(self._place)
        self.counts["runs"] += 1
        self._begin_run()

    def _disturb(self, gang: Gang) -> bool:
        """True when the job came to its end before anything happened to it."""
        if self._random.random() < 0.75:
            self._wait_for_a_step(gang)
        wait = self._random.uniform(0, 0.3)
        victims = [rank for rank in range(self._world) if self._random.random() < 0.6]
        stopped = [rank for rank in range(self._world) if self._random.random() < 0.15]
        statuses = gang.wait(wait)
        self._refuse_ends_of_their_own(gang)
        if all(status == 0 for status in statuses):
            return True
        for rank in stopped:
            if gang.statuses[rank] is None:
                gang.signal(rank, SIGSTOP)
        if stopped:
            gang.wait(self._random.uniform(0, 0.1))
        for rank in victims:
            if gang.statuses[rank] is None:
                gang.signal(rank, SIGKILL)
                self.counts["killed_ranks"] += 1
        for rank in stopped:
            if gang.statuses[rank] is None:
                gang.signal(rank, SIGCONT)
        # The others run on for a moment, until the launcher ends them.
        gang.wait(self._random.uniform(0, 0.1))
        return False

    def _refuse_ends_of_their_own(self, gang: Gang) -> None:
        """A job that cannot begin again would otherwise pass every check."""
        for rank, status in enumerate(gang.statuses):
            if status:
                raise Wrong(
                    f"rank {rank} ended with status {status} while all others ran: "
                    f"{gang.log(rank)[-3000:]}"
                )

    def _wait_for_a_step(self, gang: Gang) -> None:
        """Most deaths come while saves are under way, and some during the restart."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and not gang.said(0, "loss"):
            if None not in gang.wait(0.01):
                return

    def _check(self, gang: Gang) -> None:
        starts = {
            rank: int(said[0][0])
            for rank in range(self._world)
            if (said := gang.said(rank, "start"))
        }
        if len(set(starts.values())) > 1:
            raise Wrong(f"the ranks resumed different steps: {starts}")
        for rank, start in starts.items():
            self.counts["resumed"] += 1
            if start <= self._newest:
                raise Wrong(
                    f"rank {rank} began at step {start}, and step {self._newest} was durable on "
                    "all ranks"
                )
        for rank in range(self._world):
            self._check_rank(gang, rank)

    def _check_rank(self, gang: Gang, rank: int) -> None:
        for step, loss in gang.said(rank, "loss"):
            if loss != self._expected[rank][step]:
                raise Wrong(
                    f"rank {rank}, step {step}: the loss is {loss}, and in an undisturbed run "
                    f"{self._expected[rank][step]}"
                )
        for (step,) in gang.said(rank, "all"):
            self.counts["acked_steps"] += 1
            self._newest = max(self._newest, int(step))
        log = gang.log(rank)
        for sign in SIGNS:
            if sign in log:
                raise Wrong(f"rank {rank}: {log[-3000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so long")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--plant", default="")
    parser.add_argument("--saver", default="pccheck", choices=["pccheck", "dcp", "dcp-one"])
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if given.seed is None else given.seed
    folder = Path(tempfile.mkdtemp(prefix="pccheck-kills-", dir=given.folder))
    nursery = Nursery()
    result: dict[str, Any] = {
        "world": given.world, "seed": seed, "plant": given.plant, "saver": given.saver,
    }  # fmt: skip
    began = time.monotonic()
    harness = None
    try:
        harness = Harness(nursery, folder, given.world, seed, given.plant, given.saver)
        end = time.monotonic() + given.seconds
        while harness.counts["restarts"] < given.restarts and time.monotonic() < end:
            try:
                harness.restart()
            except Wrong as error:
                if given.saver == "pccheck":
                    raise
                harness.begin_again()
                result.setdefault("first_loss", str(error)[:2000])
    except Wrong as error:
        result["wrong"] = str(error)
    finally:
        if harness is not None:
            result.update(harness.counts)
        result["seconds"] = round(time.monotonic() - began, 1)
        nursery.close()
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result))
    return 1 if "wrong" in result else 0


if __name__ == "__main__":
    sys.exit(main())
