"""When to save: every so many steps, every so many seconds, or as often as a budget allows.

    ckpt = pccheck.torch.Checkpointer("run.pcc", policy=Auto(budget=0.02))
    for step in range(start, steps):
        train(step)
        ckpt.maybe_save(step, model=model, optimizer=optimizer)
"""

from __future__ import annotations

import ctypes
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ._core import native
from ._core.arguments import seconds as seconds_of
from ._core.arguments import whole
from .errors import CheckpointError, InvalidArgument

__all__ = ["Auto", "Choice", "Every", "Policy"]

log = logging.getLogger("pccheck")

#: Of a step or a checkpoint that was shorter than what a coarse clock can show.
_TICK = 1e-9


class Saving(Protocol):
    """What a policy asks of a checkpoint on its way."""

    def done(self) -> bool:
        """True when it ended, well or not."""
        ...

    def wait(self, timeout: float | None = None) -> Any:
        """How it ended, with `durable_seconds`; raises why it failed."""
        ...


class Policy:
    """Decides at which steps ``maybe_save`` saves. Not for use by several checkpointers."""

    def bind(self, path: str, in_flight: int) -> None:
        """Told once to which file it belongs, and how many checkpoints may be in flight."""

    def is_due(self, step: int) -> bool:
        """Called once at the end of every step; True when its state is to be saved."""
        raise NotImplementedError

    def began(self, step: int, saving: Saving) -> None:
        """Called after every save was begun, due or not."""


class Every(Policy):
    """Every ``steps`` steps, every ``seconds`` seconds, or whichever comes first."""

    def __init__(
        self,
        steps: int | None = None,
        *,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Steps that are multiples of ``steps`` are due; when one was left out, the next is.

        Seconds count from the first step that is seen, and from the last save.
        """
        if steps is None and seconds is None:
            raise InvalidArgument(f"steps is {steps}; give at least 1, or seconds")
        if steps is not None:
            steps = whole(steps, "steps", 1)
        if seconds is not None and not 0 <= seconds < math.inf:
            raise InvalidArgument(f"seconds is {seconds}; give how long to train between saves")
        self._steps = steps
        self._seconds = seconds
        self._clock = clock
        self._last_step: int | None = None
        self._last_time: float | None = None

    def __repr__(self) -> str:
        given = {"steps": self._steps, "seconds": self._seconds}
        shown = ", ".join(f"{key}={value}" for key, value in given.items() if value is not None)
        return f"Every({shown})"

    def bind(self, path: str, in_flight: int) -> None:
        """Another training may begin with any step."""
        self._last_step = None

    @property
    def is_of_steps(self) -> bool:
        """True when it asks no clock, so that it decides alike on all ranks."""
        return self._seconds is None

    def is_due(self, step: int) -> bool:
        """True at a multiple, or after one that was not seen; or when the time is over."""
        is_due = False
        if self._steps is not None:
            last = self._last_step
            if last is None or step < last:
                last = step - 1
            is_due = step // self._steps > last // self._steps
            self._last_step = step
        if self._seconds is not None:
            now = self._clock()
            if self._last_time is None:
                self._last_time = now
            is_due = is_due or now - self._last_time >= self._seconds
        return is_due

    def began(self, step: int, saving: Saving) -> None:
        """Restarts the count of seconds."""
        self._last_time = self._clock()


@dataclass(frozen=True)
class Choice:
    """An interval that ``Auto`` chose, and the numbers behind it."""

    #: Steps from one save to the next.
    interval: int
    #: Median seconds of a step with nothing in flight.
    iteration_seconds: float
    #: Median seconds that one save cost the training: blocked, and steps that were slowed down.
    cost_seconds: float
    #: Median seconds from a save until it was durable.
    durable_seconds: float
    #: How much longer training takes at this interval, as a share: what the budget limits.
    overhead: float
    #: Why it is no shorter: ``budget``, ``throughput`` (a checkpoint would wait for a slot),
    #: ``failures`` (saving would cost more than it rescues), ``step`` (it is one step), or
    #: ``limit`` (``min_steps`` or ``max_steps`` decides).
    bound: str
    #: The useful share of the time; None without ``mtbf_seconds``.
    goodput: float | None
    #: What a failure takes in the mean: half an interval, and the time until durable.
    lost_seconds: float


class Auto(Policy):
    """As often as an overhead of ``budget`` allows, measured while the training runs.

    Steps are timed with nothing in flight, then with one save under way, the second: the first one
    makes the file. From then on every save reports what it cost. The interval is the shortest one
    at which saving takes no more than ``budget`` and no checkpoint waits for a slot, by the model
    of ``pccheck tune`` (spec/MODEL.md, "A running job"). With ``mtbf_seconds`` it is the one with
    the best goodput among those and longer ones. It adapts by at most a factor of two per save, and
    every change is logged with its numbers. Now and then a save is put off until enough steps
    without one have been timed.
    """

    #: Steps that are not counted at the beginning: caches, compilers and pools warm up.
    WARM_UP_STEP_COUNT = 3
    #: Steps with nothing in flight that make a baseline.
    BASELINE_STEP_COUNT = 8
    #: Saves that a median is taken of, and after which the baseline is too old.
    MEMORY_SAVE_COUNT = 7
    STALE_SAVE_COUNT = 20

    def __init__(
        self,
        budget: float = 0.02,
        *,
        min_steps: int = 1,
        max_steps: int | None = None,
        mtbf_seconds: float | None = None,
        restart_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``max_steps`` limits what a crash costs; a warning reports that it exceeds the budget.

        ``mtbf_seconds`` is the mean time between the failures that hit the job, on all its
        machines together. ``restart_seconds``, from a failure until training continues, is a part
        of the goodput and does not change the interval.
        """
        if not 0 < budget < 1:
            raise InvalidArgument(f"budget is {budget}; give a share of the time, such as 0.02")
        min_steps = whole(min_steps, "min_steps", 1)
        max_steps = None if max_steps is None else whole(max_steps, "max_steps", 1)
        if max_steps is not None and max_steps < min_steps:
            raise InvalidArgument(
                f"min_steps is {min_steps} and max_steps {max_steps}; give 1 <= min <= max"
            )
        restart_seconds = seconds_of(restart_seconds, "restart_seconds")
        if mtbf_seconds is not None:
            mtbf_seconds = seconds_of(mtbf_seconds, "mtbf_seconds")
            if mtbf_seconds == 0:
                raise InvalidArgument(
                    "mtbf_seconds is 0; give the mean time between failures, or None"
                )
        elif restart_seconds > 0:
            raise InvalidArgument(
                f"restart_seconds is {restart_seconds} without mtbf_seconds; give both, or neither"
            )
        self._budget = budget
        self._mtbf_seconds = mtbf_seconds
        # For the library, 0 is no limit, and no failures.
        self._wanted = native.IntervalOptions(
            struct_size=ctypes.sizeof(native.IntervalOptions),
            budget=budget,
            mtbf_seconds=mtbf_seconds or 0,
            restart_seconds=restart_seconds,
            min_steps=min_steps,
            max_steps=max_steps or 0,
        )
        self._clock = clock
        self._path, self._in_flight = "", 2
        self._seen_count = 0
        self._since_save = 0
        self._saves_since_baseline = 0
        self._step_began: float | None = None
        # Of steps with nothing in flight; enough for a median that a pause does not move.
        self._idle: deque[float] = deque(maxlen=4 * self.BASELINE_STEP_COUNT)
        self._fresh_idle_count = 0
        self._costs: deque[float] = deque(maxlen=self.MEMORY_SAVE_COUNT)
        self._durable: deque[float] = deque(maxlen=self.MEMORY_SAVE_COUNT)
        # Saves under way, and what the steps since the first of them took, with what blocked.
        self._savings: list[Saving] = []
        self._busy: list[float] = []
        self._blocked = 0.0
        self._begun_count = 0
        self._has_seen_first = False
        #: The interval in force and the numbers behind it; None while profiling.
        self.choice: Choice | None = None
        # What the model cannot compute with is refused here, and not in the middle of training.
        self._chosen(1.0, 0.0, 1.0)

    def __repr__(self) -> str:
        interval = "profiling" if self.choice is None else f"every {self.choice.interval} steps"
        return f"Auto(budget={self._budget}) <{interval}>"

    def bind(self, path: str, in_flight: int) -> None:
        """Told once to which file it belongs."""
        self._path, self._in_flight = path, in_flight

    def is_due(self, step: int) -> bool:
        """Times the step that ended, and returns whether the interval is over."""
        now = self._clock()
        if self._step_began is not None:
            self._seen_count += 1
            if self._seen_count > self.WARM_UP_STEP_COUNT:
                self._note_step(now - self._step_began)
        self._since_save += 1
        # `began` sets this later, when the step is saved: what blocks is no part of a step.
        self._step_began = now
        if self._savings or self._fresh_idle_count < self._wanted_idle_count():
            # One save at a time until its cost is known; then overlapping ones are fine.
            return self.choice is not None and self._is_interval_over() and not self._is_stale()
        if self.choice is None:
            return True
        return self._is_interval_over()

    def _is_interval_over(self) -> bool:
        return self.choice is not None and self._since_save >= self.choice.interval

    def _is_stale(self) -> bool:
        return self._saves_since_baseline >= self.STALE_SAVE_COUNT

    def _wanted_idle_count(self) -> int:
        return self.BASELINE_STEP_COUNT if self.choice is None or self._is_stale() else 0

    def began(self, step: int, saving: Saving) -> None:
        """Counts what the call blocked, and watches the checkpoint."""
        now = self._clock()
        if self._step_began is not None:
            self._blocked += now - self._step_began
        self._step_began = now
        self._since_save = 0
        if self._is_stale() and self._fresh_idle_count >= self.BASELINE_STEP_COUNT:
            self._saves_since_baseline = 0
        self._saves_since_baseline += 1
        self._savings.append(saving)
        self._begun_count += 1
        self._fresh_idle_count = 0

    def _note_step(self, seconds: float) -> None:
        if not self._savings:
            self._idle.append(seconds)
            self._fresh_idle_count += 1
            return
        self._busy.append(seconds)
        self._savings = [saving for saving in self._savings if not self._has_ended(saving)]
        if not self._savings:
            self._note_cost()

    def _has_ended(self, saving: Saving) -> bool:
        if not saving.done():
            return False
        try:
            seconds = saving.wait(timeout=0).durable_seconds
        except CheckpointError:
            # The handle and the log report it; it teaches nothing about time.
            seconds = None
        if seconds is not None:
            self._durable.append(seconds)
        return True

    def _note_cost(self) -> None:
        """All that was in flight has ended: what the steps meanwhile took beyond a quiet one."""
        if not self._has_seen_first:
            # It made the file and its pool, which no other save does.
            self._has_seen_first = True
            self._durable.clear()
        elif self._idle and self._durable:
            usual = statistics.median(self._idle)
            slowed = sum(self._busy) - usual * len(self._busy)
            # Steps vary, and may seem to gain; what blocked the caller is certain.
            self._costs.append((max(0.0, slowed) + self._blocked) / self._begun_count)
            self._choose(usual)
        self._busy.clear()
        self._blocked = 0.0
        self._begun_count = 0

    def _choose(self, iteration: float) -> None:
        cost, durable = statistics.median(self._costs), statistics.median(self._durable)
        measured = max(iteration, _TICK), cost, max(durable, _TICK)
        choice = self._chosen(*measured)
        before = self.choice
        if before is not None:
            low, high = before.interval // 2, before.interval * 2
            near = min(max(choice.interval, low), high)
            if near != choice.interval:
                choice = replace(self._chosen(*measured, steps=near), bound=choice.bound)
        self.choice = choice
        if before is None or before.interval != choice.interval:
            self._log(choice)

    def _chosen(
        self, iteration: float, cost: float, durable: float, steps: int | None = None
    ) -> Choice:
        """What the library chooses by these figures, or what it makes of ``steps``."""
        options = native.IntervalOptions.from_buffer_copy(self._wanted)
        options.in_flight = self._in_flight
        options.step_seconds, options.cost_seconds = iteration, cost
        options.durable_seconds = durable
        if steps is not None:
            options.min_steps = options.max_steps = steps
        found, error = native.Interval(), native.Error()
        status = native.library().pcc_choose_interval(
            ctypes.byref(options), ctypes.byref(found), ctypes.byref(error)
        )
        native.check(status, error)
        return Choice(
            interval=found.steps,
            iteration_seconds=iteration,
            cost_seconds=cost,
            durable_seconds=durable,
            overhead=found.overhead,
            bound=native.BOUNDS[found.bound],
            goodput=None if self._mtbf_seconds is None else found.goodput,
            lost_seconds=found.lost_seconds,
        )

    def _log(self, choice: Choice) -> None:
        is_over = choice.bound == "limit" and choice.overhead > self._budget
        log.log(
            logging.WARNING if is_over else logging.INFO,
            "%s: a save every %d steps, bound by the %s: a step takes %s, a save costs %s and is "
            "durable after %s with %d in flight; overhead %.2f %%, budget %.2f %%%s%s",
            self._path, choice.interval, choice.bound, _time(choice.iteration_seconds),
            _time(choice.cost_seconds), _time(choice.durable_seconds), self._in_flight,
            100 * choice.overhead, 100 * self._budget,
            "" if choice.goodput is None else f", goodput {100 * choice.goodput:.2f} %",
            "; raise max_steps or the budget" if is_over else "",
        )  # fmt: skip


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
