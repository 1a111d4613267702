"""When maybe_save saves: by steps, by time, and by what saving costs."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import pccheck
import pccheck.torch
from pccheck.policies import Auto, Every


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Saving:
    """A checkpoint that is durable at a certain time."""

    clock: Clock
    began_at: float
    durable_seconds: float | None
    is_failed: bool = False

    def done(self) -> bool:
        return self.clock.now >= self.began_at + (self.durable_seconds or 0)

    def wait(self, timeout: float | None = None) -> Saving:
        if self.is_failed:
            raise pccheck.DeviceError("the disk is gone")
        return self


class Training:
    """A loop with known times: what a step takes, and what a save costs."""

    def __init__(self, policy: Auto, clock: Clock, *, in_flight: int = 2) -> None:
        self.policy = policy
        self.clock = clock
        self.step_seconds, self.slowed_seconds = 0.1, 0.1
        self.blocked_seconds, self.durable_seconds = 0.01, 0.35
        self.savings: list[Saving] = []
        self.saved: list[int] = []
        self.step = 0
        policy.bind("run.pcc", in_flight)

    def run(self, count: int) -> float:
        """Trains; gives the share of the time that saving took."""
        began, ideal = self.clock.now, 0.0
        for _ in range(count):
            is_busy = any(not saving.done() for saving in self.savings)
            self.clock.now += self.slowed_seconds if is_busy else self.step_seconds
            ideal += self.step_seconds
            if self.policy.is_due(self.step):
                saving = Saving(self.clock, self.clock.now, self.durable_seconds)
                self.clock.now += self.blocked_seconds
                self.savings.append(saving)
                self.policy.began(self.step, saving)
                self.saved.append(self.step)
            self.step += 1
        return 1 - ideal / (self.clock.now - began)

    @property
    def interval(self) -> int:
        assert self.policy.choice is not None
        return self.policy.choice.interval


# -- fixed


def test_every_so_many_steps() -> None:
    policy = Every(steps=10)
    assert [step for step in range(35) if policy.is_due(step)] == [0, 10, 20, 30]
    # A loop that asks every fourth step saves at the first one after each multiple.
    policy = Every(steps=10)
    assert [step for step in range(0, 60, 4) if policy.is_due(step)] == [0, 12, 20, 32, 40, 52]
    # Resumed in the middle, and gone back.
    policy = Every(10)
    assert [step for step in range(25, 45) if policy.is_due(step)] == [30, 40]
    assert [step for step in range(18, 22) if policy.is_due(step)] == [20]


def test_every_so_many_seconds() -> None:
    clock = Clock()
    policy = Every(seconds=5, clock=clock)
    due = []
    for step in range(20):
        if policy.is_due(step):
            due.append(step)
            clock.now += 0.5
            policy.began(step, Saving(clock, clock.now, 1))
        clock.now += 1
    assert due == [5, 10, 15]
    both = Every(steps=3, seconds=2.5, clock=clock)
    assert [both.is_due(step) for step in (1, 2, 3, 4)] == [False, False, True, False]
    clock.now += 3
    assert both.is_due(5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Every(), lambda: Every(steps=0), lambda: Every(seconds=-1),
        lambda: Every(seconds=float("nan")), lambda: Auto(budget=0), lambda: Auto(budget=2),
        lambda: Auto(min_steps=0), lambda: Auto(min_steps=5, max_steps=4),
        lambda: Auto(budget=1e-7), lambda: Auto(budget=float("nan")),
        lambda: Auto(min_steps=10**9 + 1), lambda: Auto(max_steps=2**64 - 1),
        lambda: Auto(mtbf_seconds=0), lambda: Auto(mtbf_seconds=-1),
        lambda: Auto(mtbf_seconds=float("nan")), lambda: Auto(mtbf_seconds=float("inf")),
        lambda: Auto(mtbf_seconds=0.5), lambda: Auto(restart_seconds=5),
        lambda: Auto(mtbf_seconds=100, restart_seconds=-1),
        lambda: Auto(mtbf_seconds=100, restart_seconds=float("nan")),
        lambda: Auto(mtbf_seconds=100, restart_seconds=float("inf")),
    ],
)  # fmt: skip
def test_odd_policies(make: object) -> None:
    with pytest.raises(pccheck.InvalidArgument):
        make()  # type: ignore[operator]


def test_a_refusal_says_what_was_found() -> None:
    for message, make in (
        ("mtbf_seconds is 0;", lambda: Auto(mtbf_seconds=0)),
        ("the mean time between failures is inf, expected 1.0 to",
         lambda: Auto(mtbf_seconds=float("inf"))),
        ("the budget is 1e-07, expected 1e-06 to 1.0", lambda: Auto(budget=1e-7)),
        (f"max_steps is {2**64 - 1}, expected 1 to 1000000000",
         lambda: Auto(max_steps=2**64 - 1)),
        ("restart_seconds is 5.0 without mtbf_seconds", lambda: Auto(restart_seconds=5)),
    ):  # fmt: skip
        with pytest.raises(pccheck.InvalidArgument, match=message):
            make()
    with pytest.raises(TypeError, match="mtbf_seconds is 'x'"):
        Auto(mtbf_seconds="x")  # type: ignore[arg-type]


# -- automatic


def test_the_interval_keeps_the_budget() -> None:
    clock = Clock()
    training = Training(Auto(budget=0.02, clock=clock), clock)
    training.slowed_seconds = 0.12
    training.run(60)
    # Blocked for 10 ms, and 3 steps slowed by 20 ms each: 70 ms, of which 2 % are 35 steps.
    choice = training.policy.choice
    assert choice is not None and choice.bound == "budget"
    assert choice.iteration_seconds == pytest.approx(0.1)
    assert choice.cost_seconds == pytest.approx(0.07)
    assert choice.durable_seconds == pytest.approx(0.35)
    assert choice.interval == 35 and choice.overhead == pytest.approx(0.02)
    assert choice.goodput is None and choice.lost_seconds == pytest.approx(1.75 + 0.35)
    assert training.run(3500) <= 0.0205
    gaps = {b - a for a, b in zip(training.saved[3:], training.saved[4:], strict=False)}
    assert gaps == {35}


def test_the_device_sets_the_lower_bound() -> None:
    """Nothing slows the training down, but each save takes 3 s: f >= Tw / (N q t)."""
    for in_flight, expected in ((1, 30), (2, 15), (4, 8)):
        clock = Clock()
        training = Training(Auto(budget=0.02, clock=clock), clock, in_flight=in_flight)
        training.blocked_seconds, training.durable_seconds = 0.0, 3.0
        training.run(300)
        assert training.interval == expected, in_flight
        assert training.policy.choice is not None and training.policy.choice.bound == "throughput"


def test_no_save_waits_for_a_slot() -> None:
    """30 s for each of 2 in flight: a save every 15 s. A larger budget buys no shorter interval,
    only the wait for a slot: the bound of the paper, with q = 1.5, would be 10 s."""
    clock = Clock()
    training = Training(Auto(budget=0.5, clock=clock), clock)
    training.blocked_seconds, training.durable_seconds = 0.2, 30.0
    training.run(3000)
    choice = training.policy.choice
    assert choice is not None and choice.bound == "throughput"
    # 148 steps, and the cost of a save.
    assert choice.interval == 148 and choice.overhead == pytest.approx(0.2 / 14.8)


def test_failures_set_the_interval() -> None:
    """Where they are rare, the best interval is Young's: the square root of 2 · cost · M."""
    clock = Clock()
    training = Training(Auto(mtbf_seconds=2e5, restart_seconds=100, clock=clock), clock)
    training.blocked_seconds = 1.0
    training.run(12_000)
    choice = training.policy.choice
    assert choice is not None and choice.bound == "failures"
    assert choice.interval * 0.1 == pytest.approx((2 * 1.0 * 2e5) ** 0.5, rel=0.01)
    assert choice.overhead < 0.02
    # What saving takes, what failures take, and the restarts.
    share = 1 - choice.overhead - (choice.lost_seconds + 100) / 2e5
    assert choice.goodput == pytest.approx(share, abs=1e-4)
    # More of them ask for more saves than the budget allows.
    training = Training(Auto(mtbf_seconds=600, clock=clock), clock)
    training.blocked_seconds = 1.0
    training.run(3000)
    choice = training.policy.choice
    assert choice is not None and choice.bound == "budget" and choice.interval == 500
    assert choice.goodput is not None and choice.goodput < 0.98


def test_a_quick_loop_saves_at_each_step() -> None:
    clock = Clock()
    training = Training(Auto(budget=0.5, clock=clock), clock)
    training.blocked_seconds, training.durable_seconds = 0.001, 0.05
    training.run(100)
    choice = training.policy.choice
    assert choice is not None and choice.interval == 1 and choice.bound == "step"


def test_steps_that_take_no_time() -> None:
    """No interval keeps to the budget: the longest one is chosen, and reported as too short."""
    clock = Clock()
    training = Training(Auto(budget=0.5, clock=clock), clock)
    training.step_seconds = training.slowed_seconds = training.durable_seconds = 0.0
    training.blocked_seconds = 2.0
    training.run(40)
    choice = training.policy.choice
    assert choice is not None and choice.interval == 10**9 and choice.bound == "limit"
    assert choice.overhead == pytest.approx(2.0)


def test_it_moves_by_a_factor_of_two() -> None:
    """And the figures are those of the interval in force, not of the one that it moves to."""
    clock = Clock()
    training = Training(Auto(budget=0.02, clock=clock), clock)
    training.run(2000)
    assert training.interval == 5
    training.blocked_seconds = 4.0
    seen = []
    for _ in range(30_000):
        training.run(1)
        choice = training.policy.choice
        assert choice is not None
        if not seen or choice.interval != seen[-1]:
            seen.append(choice.interval)
            # Not the limit that the factor of two is.
            assert choice.bound == "budget"
            assert choice.overhead == pytest.approx(
                choice.cost_seconds / (choice.interval * choice.iteration_seconds)
            )
    assert seen == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2000]


def test_it_profiles_before_it_chooses() -> None:
    clock = Clock()
    policy = Auto(clock=clock)
    training = Training(policy, clock)
    training.run(policy.WARM_UP_STEP_COUNT + policy.BASELINE_STEP_COUNT)
    assert training.saved == [] and policy.choice is None
    assert "profiling" in repr(policy)
    training.run(1)
    assert training.saved == [policy.WARM_UP_STEP_COUNT + policy.BASELINE_STEP_COUNT]
    # The first save makes the file: what it cost says nothing.
    training.run(4)
    assert policy.choice is None
    training.run(20)
    assert training.saved[1] == 23 and policy.choice is not None


def test_it_adapts_while_the_training_changes(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    training = Training(Auto(budget=0.02, clock=clock), clock)
    with caplog.at_level(logging.INFO, "pccheck"):
        training.run(2000)
        before = training.interval
        # The disk gets slower, and blocks longer.
        training.blocked_seconds, training.durable_seconds = 0.04, 1.0
        training.run(3000)
        slower = training.interval
        # Steps get four times as long: the same cost is a smaller share.
        training.step_seconds = training.slowed_seconds = 0.4
        training.run(6000)
    assert before == 5 and slower == 20 and training.interval == 5
    assert caplog.records[0].getMessage() == (
        "run.pcc: a save every 5 steps, bound by the budget: a step takes 100 ms, a save costs "
        "10 ms and is durable after 350 ms with 2 in flight; overhead 2.00 %, budget 2.00 %"
    )
    assert training.run(2000) <= 0.021


def test_a_pause_does_not_move_the_interval() -> None:
    clock = Clock()
    training = Training(Auto(budget=0.02, clock=clock), clock)
    training.run(400)
    before = training.interval
    for _ in range(3):
        clock.now += 60  # An evaluation, say.
        training.run(40)
    assert training.interval == before


def test_limits_and_failed_saves(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    training = Training(Auto(budget=0.02, max_steps=10, clock=clock), clock)
    training.blocked_seconds = 1.0
    with caplog.at_level(logging.WARNING, "pccheck"):
        training.run(100)
    assert training.interval == 10 and "raise max_steps or the budget" in caplog.text
    # Blocked for 1 s of each second.
    assert "overhead 100.00 %" in caplog.text
    training = Training(Auto(budget=0.1, min_steps=5, clock=clock), clock)
    training.run(300)
    choice = training.policy.choice
    assert choice is not None and choice.interval == 5 and choice.bound == "limit"
    training = Training(Auto(budget=0.05, clock=clock), clock)
    training.run(300)
    assert training.interval == 2
    policy = Auto(clock=clock)
    policy.began(0, Saving(clock, clock.now, None, is_failed=True))
    for step in range(50):
        clock.now += 0.1
        policy.is_due(step)
    assert policy.choice is None


# -- real


def test_maybe_save(path: Path) -> None:
    with pccheck.torch.Checkpointer(path, policy=3) as checkpointer:
        model = torch.nn.Linear(2, 2)
        handles = [checkpointer.maybe_save(step, model=model) for step in range(7)]
        assert [handle is not None for handle in handles] == [True, False, False] * 2 + [True]
    with pccheck.Checkpointer(path, policy=Every(seconds=0)) as plain:
        assert plain.maybe_save(8, {"x": 1}) is not None
    with pccheck.torch.Checkpointer(path) as checkpointer:
        with pytest.raises(pccheck.InvalidArgument, match=r"policy=10"):
            checkpointer.maybe_save(9)


def test_auto_in_a_real_loop(path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(4)])
    optimizer = torch.optim.AdamW(model.parameters())
    policy = Auto(budget=0.2, max_steps=50)
    saved = 0
    with pccheck.torch.Checkpointer(path, policy=policy) as checkpointer:
        deadline = time.monotonic() + 20
        step = 0
        while time.monotonic() < deadline and (policy.choice is None or saved < 4):
            optimizer.zero_grad()
            model(torch.randn(64, 256)).square().mean().backward()
            optimizer.step()
            handle = checkpointer.maybe_save(step, model=model, optimizer=optimizer)
            saved += handle is not None
            step += 1
    choice = policy.choice
    assert choice is not None and saved >= 4
    assert 1 <= choice.interval <= 50
    assert 0 < choice.iteration_seconds < 1 and 0 < choice.durable_seconds < 20
