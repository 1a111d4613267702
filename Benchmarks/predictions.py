"""What `pccheck tune` predicts for a setting, and what `pccheck bench` measures at it."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .engine import Interrupted
from .environments import Environment

Row = dict[str, Any]

MIB = 1 << 20
_CANCELLED = 32
#: No failure comes while a setting is measured.
_MTBF_SECONDS = 86_400
#: Where only Tw is asked for, the next checkpoint is far away.
_FAR_STEP_SECONDS = 3_600


@dataclass(frozen=True)
class Setting:
    """What a user chooses, and the loop that it is measured in."""

    byte_count: int
    in_flight: int
    chunk_byte_count: int
    workers: int
    pool_byte_count: int
    codec: str = "none"
    backend: str = "direct"
    writes_per_worker: int = 1
    #: `sleep` or `busy`, as in `pccheck bench`.
    step: str = "sleep"
    step_milliseconds: int = 1
    #: 1 with steps of no length keeps all slots taken.
    interval: int = 1

    @property
    def text(self) -> str:
        """One line for tables and progress."""
        parts = [
            f"{self.byte_count // MIB} MiB", f"N {self.in_flight}",
            f"chunk {self.chunk_byte_count / MIB:g} MiB", f"workers {self.workers}",
            f"pool {self.pool_byte_count / MIB:g} MiB",
        ]  # fmt: skip
        if self.codec != "none":
            parts.append(self.codec)
        if self.backend != "direct":
            parts.append(f"{self.backend} × {self.writes_per_worker}")
        if self.interval > 1:
            parts.append(f"every {self.interval} × {self.step_milliseconds} ms {self.step}")
        return ", ".join(parts)

    @property
    def pins(self) -> list[str]:
        """The options that have `pccheck tune` predict this setting, not recommend one."""
        return [
            "--fix-in-flight", str(self.in_flight), "--fix-chunk", str(self.chunk_byte_count),
            "--fix-workers", str(self.workers), "--fix-pool", str(self.pool_byte_count),
            "--fix-codec", self.codec, "--fix-interval", str(self.interval),
            "--writes-per-worker", str(self.writes_per_worker),
        ]  # fmt: skip

    @property
    def json(self) -> Row:
        return asdict(self)


# ---------------------------------------------------------------- asking tune


def save_profile(tool: Path, environment: Environment, path: Path) -> None:
    """Has `pccheck tune` measure the machine where the environment keeps its files.

    What it recommends for the job, which it has to be given, is not used.
    """
    _run(
        environment,
        [
            str(tool), "tune", "--directory", str(environment.directory), "--save-profile",
            str(path), "--state", str(64 * MIB), "--step-seconds", "1", "--mtbf-seconds",
            str(_MTBF_SECONDS), *environment.load_options,
        ],
    )  # fmt: skip


def device_rate(profile: Path) -> float:
    """Bytes per second of the fastest way to write that the profile knows."""
    points = json.loads(profile.read_text())["device"]
    rates: list[float] = [statistics.median(point["bytes_per_second"]) for point in points]
    return max(rates)


def predict(tool: Path, environment: Environment, profile: Path, setting: Setting) -> Row:
    """The prediction for one setting."""
    step_seconds: float = setting.step_milliseconds / 1e3
    if setting.interval == 1:
        # The machine does not sustain what keeps every slot taken: it has no overhead to predict.
        step_seconds = _FAR_STEP_SECONDS
    return _tune(
        tool, environment, profile, setting.byte_count, step_seconds, setting.step,
        setting.pins,
    )  # fmt: skip


def recommend(
    tool: Path, environment: Environment, profile: Path, loop: Setting, budget: float,
    mtbf_seconds: float,
) -> tuple[Setting, Row]:  # fmt: skip
    """The setting that tune recommends for the state and the step of a loop, and all it says."""
    answer = _tune(
        tool, environment, profile, loop.byte_count, loop.step_milliseconds / 1e3, loop.step,
        ["--budget", str(budget), "--restart-seconds", "0", "--in-flight", "4"], mtbf_seconds,
    )  # fmt: skip
    found = answer["setting"]
    setting = Setting(
        loop.byte_count, found["in_flight_count"], found["chunk_byte_count"],
        found["writer_worker_count"], math.floor(found["pool_byte_count"]), found["codec"],
        step=loop.step, step_milliseconds=loop.step_milliseconds,
        interval=answer["interval_steps"],
    )  # fmt: skip
    return setting, answer


def _tune(
    tool: Path, environment: Environment, profile: Path, byte_count: int, step_seconds: float,
    step: str, options: list[str], mtbf_seconds: float = _MTBF_SECONDS,
) -> Row:  # fmt: skip
    kind = environment.kind
    busy = kind.busy_processors + (kind.ranks if step == "busy" else 0)
    # The loop of `pccheck bench` waits for the copy behind the step that follows the save, so
    # that all of a step hides it.
    (output,) = _run(
        environment,
        [
            str(tool), "tune", "--json", "--profile", str(profile), "--state", str(byte_count),
            "--step-seconds", str(step_seconds), "--mtbf-seconds", str(mtbf_seconds),
            "--busy-processors", str(busy), "--overlap", "1",
            *environment.tune_options, *options,
        ],
    )  # fmt: skip
    answer: Row = json.loads(output)
    return answer


# ---------------------------------------------------------------- measuring


def measure(
    tool: Path, environment: Environment, setting: Setting, save_count: int, rounds: int
) -> Row:
    """Tw(N), the time of the loop and its overhead: medians, each of one round and rank."""
    steps = loop_steps(setting, save_count)
    # Ranks that begin together: in each round the same part of all of them runs.
    several = environment.kind.ranks > 1
    answers = [
        _bench(tool, environment, setting, steps, 1 if several else rounds)
        for _ in range(rounds if several else 1)
    ]
    cases = [answer["loop"]["cases"][0] for ranks in answers for answer in ranks]
    rates = [
        rate
        for ranks in answers
        for answer in ranks
        for rate in answer["loop"]["device_megabytes_per_second"]["values"]
    ]
    return {"step_count": steps, **figures(cases, setting, steps, rates)}


def loop_steps(setting: Setting, save_count: int) -> int:
    """Steps of a loop with so many saves, the last of which is followed by steps as well."""
    return setting.interval * save_count + setting.interval - 1


def figures(cases: list[Row], setting: Setting, steps: int, rates: list[float]) -> Row:
    """The measured side of a comparison; Tw(N) of a loop that keeps every slot taken."""
    for case in cases:
        # One that a newer one overtook has cost as much.
        ended = case["durable_count"] + case["superseded_count"]
        if ended != case["wanted_count"]:
            raise RuntimeError(
                f"{case['wanted_count'] - ended} of {case['wanted_count']} saves did not become "
                "durable"
            )
    slowdowns = [value for case in cases for value in case["slowdown"]["values"]]
    loops = [1 + overhead(value, setting.interval, steps) for value in slowdowns]
    writes = [case["durable_milliseconds"]["median"] / 1e3 for case in cases]
    return {
        "write_seconds": statistics.median(writes) if setting.interval == 1 else None,
        "loop_ratio": statistics.median(loops),
        "write_seconds_values": writes if setting.interval == 1 else [],
        "loop_ratio_values": loops,
        "blocked_milliseconds_mean": statistics.mean(
            case["blocked_milliseconds_mean"] for case in cases
        ),
        "device_megabytes_per_second": statistics.median(rates),
    }


def overhead(slowdown: float, interval: int, steps: int) -> float:
    """The overhead of a long loop, from that of a short one.

    The first steps of a loop come before its first save: ``steps`` of them have the cost of
    ``steps // interval`` saves, each of which stands for ``interval`` steps.
    """
    return (slowdown - 1) * steps / (steps // interval * interval)


def _bench(
    tool: Path, environment: Environment, setting: Setting, steps: int, rounds: int
) -> list[Row]:
    """What `pccheck bench` prints for each rank; they run side by side, each in its folder."""
    commands = []
    for rank in range(environment.kind.ranks):
        folder = environment.directory / f"rank-{rank}"
        folder.mkdir(exist_ok=True)
        commands.append(
            [
                str(tool), "bench", "--json", "--only", "loop", "--directory", str(folder),
                "--loop-size", str(setting.byte_count), "--loop-steps", str(steps),
                "--step", setting.step, "--step-milliseconds", str(setting.step_milliseconds),
                "--interval", str(setting.interval), "--policy", "wait",
                "--in-flight", str(setting.in_flight), "--chunk", str(setting.chunk_byte_count),
                "--writer-workers", str(setting.workers), "--codec", setting.codec,
                "--pool", str(setting.pool_byte_count), "--backend", setting.backend,
                "--queue-depth", str(setting.writes_per_worker), "--rounds", str(rounds),
            ]
        )  # fmt: skip
    answers: list[Row] = [json.loads(output) for output in _run(environment, *commands)]
    for answer in answers:
        reason = answer["settings"]["backend_fallback_reason"]
        if reason:
            raise RuntimeError(f"{setting.backend} is not available: {reason}")
    return answers


def _run(environment: Environment, *commands: Iterable[str]) -> list[str]:
    """What programs print that run at once; a `RuntimeError` has the error of the first to fail."""
    children = [
        subprocess.Popen(
            [*environment.prefix, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]  # fmt: skip
    try:
        # What they print is shorter than a pipe holds.
        ended = [(child, *child.communicate()) for child in children]
    except BaseException:
        _end(children)
        raise
    for child, _, errors in ended:
        if child.returncode in (_CANCELLED, -signal.SIGINT):
            raise Interrupted
        if child.returncode != 0:
            lines = errors.strip().splitlines() or [f"exit status {child.returncode}"]
            raise RuntimeError(lines[0])
    return [output for _, output, _ in ended]


def _end(children: list[subprocess.Popen[str]]) -> None:
    """They remove their files when they are asked to end."""
    for child in children:
        if child.poll() is None:
            child.terminate()
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=30)
        child.kill()
        child.wait()


# ---------------------------------------------------------------- what was written down


class Journal:
    """Lines of JSON that are on the disk before anything comes after them."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w")
        self._began = time.monotonic()

    def write(self, what: str, **members: Any) -> None:
        line = {"what": what, "seconds": round(time.monotonic() - self._began, 3), **members}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
