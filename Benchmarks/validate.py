"""Checks the predictions of `pccheck tune`: each is written down before it is measured.

    python -m Benchmarks.validate --directory /data --output validate-output

``--sweep`` compares what tune recommends with the best of many settings. spec/MODEL.md describes
the model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from . import environments, machine, predictions, validation_report
from .engine import Interrupted
from .environments import KINDS, Environment, Unavailable
from .predictions import MIB, Journal, Row, Setting

#: A loop is measured for about as long, in each round.
_LOOP_SECONDS = 2.0
#: Ranks begin their loops at slightly different times: they must be together for most of them.
_RANKS_SECONDS = 5.0
_MOST_SAVES = 60
_MOST_SAVES_OF_RANKS = 400
_FEWEST_SAVES = 5
#: Failures so often that only the budget or the device keeps tune from a shorter interval.
_SWEEP_MTBF_SECONDS = 1
#: So large that a wrong choice shows in the time of the loop.
_SWEEP_BUDGET = 0.10


@dataclass(frozen=True)
class Plan:
    """How much of it is measured."""

    rounds: int = 3
    #: All states are smaller by this factor.
    shrink: int = 1
    #: Settings of an environment, at most, of each of its two lists.
    most: int | None = None
    sweep_rounds: int = 1
    #: Of the sweep, those that are measured again beside what was recommended.
    finalists: int = 3
    final_rounds: int = 5
    sweep_counts: tuple[int, ...] = (1, 2, 4)
    sweep_chunks: tuple[int, ...] = (1 * MIB, 4 * MIB)
    sweep_workers: tuple[int, ...] = (1, 3)
    sweep_pool_shares: tuple[float, ...] = (0.5, 1.0)


FULL = Plan()
QUICK = Plan(
    rounds=1, shrink=8, most=1, sweep_rounds=1, final_rounds=1, sweep_counts=(1, 2),
    sweep_chunks=(4 * MIB,), sweep_workers=(1,), sweep_pool_shares=(1.0,),
)  # fmt: skip


def _setting(
    mebibytes: int, in_flight: int, chunk: int, workers: int, codec: str = "none",
    pool: float = 1.0, ring: bool = False,
) -> Setting:  # fmt: skip
    return Setting(
        mebibytes * MIB, in_flight, chunk * MIB, workers, round(mebibytes * pool) * MIB, codec,
        "io_uring" if ring else "direct", 4 if ring else 1,
    )  # fmt: skip


def _taken(
    mebibytes: int, in_flight: int, chunk: int, workers: int, codec: str = "none",
    pool: float | None = None, ring: bool = False,
) -> Setting:  # fmt: skip
    """By default with a pool for every slot: in a smaller one the copy of a checkpoint waits, the
    loop waits for the copy, and slots stay free."""
    return _setting(mebibytes, in_flight, chunk, workers, codec, pool or in_flight, ring)


#: Measured with every slot taken, for Tw; some with a pool that is too small for that.
SATURATED = {
    "disk": [
        _taken(64, 1, 1, 1), _taken(64, 2, 1, 3), _taken(64, 4, 4, 3),
        _taken(256, 1, 4, 3), _taken(256, 2, 4, 3), _taken(256, 4, 1, 1),
        _taken(256, 2, 4, 1, pool=0.25), _taken(256, 2, 4, 3, "zstd"),
        _taken(256, 1, 1, 1, ring=True), _taken(1024, 1, 4, 3),
        _taken(1024, 2, 4, 3, pool=0.5),
    ],
    "ranks": [
        _taken(64, 1, 1, 3), _taken(64, 2, 4, 1), _taken(256, 1, 4, 3),
        _taken(256, 2, 4, 3),
    ],
    "processor": [
        _taken(64, 2, 1, 1), _taken(256, 1, 4, 3), _taken(256, 2, 4, 3),
        _taken(256, 1, 4, 3, "zstd"),
    ],
    "loader": [
        _taken(64, 2, 1, 3), _taken(256, 1, 4, 3), _taken(256, 2, 4, 1),
        _taken(256, 4, 4, 3),
    ],
    "memory": [
        _taken(64, 1, 1, 1), _taken(64, 2, 4, 3), _taken(256, 1, 4, 3),
        _taken(256, 2, 1, 3), _taken(256, 4, 4, 1), _taken(256, 2, 4, 3, "zstd"),
    ],
    "throttled": [
        _taken(64, 1, 1, 1), _taken(64, 2, 4, 3), _taken(64, 4, 1, 3),
        _taken(64, 1, 4, 3, "zstd"), _taken(64, 1, 1, 1, ring=True),
        _taken(128, 2, 4, 1, pool=0.25),
    ],
}  # fmt: skip

#: Setting, kind of step, and the interval as a multiple of the shortest that is sustained.
SUSTAINED: dict[str, list[tuple[Setting, str, float]]] = {
    "disk": [
        (_setting(256, 2, 4, 3), "busy", 1.5), (_setting(64, 1, 1, 1), "sleep", 2.0),
        (_setting(256, 1, 4, 3), "sleep", 2.0), (_setting(256, 4, 1, 1), "busy", 3.0),
        (_setting(256, 2, 4, 3, "zstd"), "busy", 2.0),
        (_setting(1024, 2, 4, 3, pool=0.25), "sleep", 1.5),
    ],
    "ranks": [
        (_setting(64, 2, 4, 3), "sleep", 2.0), (_setting(256, 1, 4, 3), "busy", 3.0),
    ],
    "processor": [
        (_setting(256, 2, 4, 3), "sleep", 2.0), (_setting(256, 2, 4, 1), "busy", 2.0),
    ],
    "loader": [
        (_setting(256, 2, 4, 3), "sleep", 2.0), (_setting(256, 1, 4, 3), "busy", 2.0),
    ],
    "memory": [
        (_setting(256, 2, 4, 3), "busy", 1.5), (_setting(256, 1, 4, 3), "sleep", 2.0),
        (_setting(64, 2, 1, 1), "busy", 3.0),
    ],
    "throttled": [
        (_setting(64, 2, 4, 3), "busy", 1.5), (_setting(64, 1, 4, 3), "sleep", 2.0),
        (_setting(64, 1, 1, 1, pool=0.25), "sleep", 1.5),
    ],
}  # fmt: skip


class Validation:
    """Runs a plan and collects its results."""

    def __init__(
        self, plan: Plan, tool: Path, directory: Path, output: Path,
        profiles: dict[str, Path],
    ) -> None:  # fmt: skip
        self.plan = plan
        self.tool = tool
        self.directory = directory
        self.output = output
        self.profiles = dict(profiles)
        self.journal = Journal(output / "journal.jsonl")
        self.began = time.monotonic()
        self.results: dict[str, Any] = {
            "schema_version": 1,
            "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "machine": machine.describe(directory),
            "profiles": {}, "settings": [], "sweeps": [], "left_out": [],
        }  # fmt: skip

    def run(self, names: list[str], part: Callable[[str, Environment, Path], None]) -> None:
        """One part in each environment."""
        for name in names:
            try:
                with environments.opened(name, self.directory) as environment:
                    share = environment.kind.loader_share
                    if share:
                        disk = self._disk_profile()
                        rate = share * predictions.device_rate(disk)
                        environment.loader_bytes_per_second = rate
                    part(name, environment, self._profile(environment))
            except Unavailable as reason:
                self._leave_out(KINDS[name].label, str(reason))

    def _disk_profile(self) -> Path:
        with environments.opened("disk", self.directory) as environment:
            return self._profile(environment)

    def _profile(self, environment: Environment) -> Path:
        """Measured where an environment keeps its files, beside the reads of its loader."""
        key = environment.kind.profile
        if key not in self.profiles:
            self._show(f"measuring the profile of {KINDS[key].label}")
            path = self.output / f"profile-{key}.json"
            predictions.save_profile(self.tool, environment, path)
            self.profiles[key] = path
        if key not in self.results["profiles"]:
            profile = json.loads(self.profiles[key].read_text())
            self.results["profiles"][key] = profile
            self.journal.write("profile", name=key, profile=profile)
        return self.profiles[key]

    # -- predictions

    def predict_and_measure(self, name: str, environment: Environment, profile: Path) -> None:
        """Writes down all predictions of an environment, then measures each."""
        rows = list(self._predicted(name, environment, profile))
        with environments.loaded(environment):
            for number, row in enumerate(rows, 1):
                setting = Setting(**row["setting"])
                label = f"{KINDS[name].label}: {row['text']}"
                self._show(f"[{number}/{len(rows)}] {label}")
                try:
                    row["measured"] = predictions.measure(
                        self.tool, environment, setting, row["save_count"], self.plan.rounds
                    )
                except RuntimeError as problem:
                    self._leave_out(label, str(problem))
                    continue
                self.journal.write("measurement", id=row["id"], measured=row["measured"])
                self._show(_verdict(self.results, row))

    def _predicted(
        self, name: str, environment: Environment, profile: Path
    ) -> Iterator[Row]:
        for setting, load in self._settings(name):
            label = f"{KINDS[name].label}: {setting.text}"
            try:
                predicted = predictions.predict(self.tool, environment, profile, setting)
                if load:
                    setting = _sustained(setting, load, predicted)
                    predicted = predictions.predict(self.tool, environment, profile, setting)
            except RuntimeError as problem:
                self._leave_out(label, str(problem))
                continue
            row: Row = {
                "id": len(self.results["settings"]), "environment": name,
                "setting": setting.json, "text": setting.text,
                "save_count": _save_count(environment, setting, predicted["write_seconds"]),
                "predicted": predicted, "measured": None,
            }  # fmt: skip
            self.results["settings"].append(row)
            self.journal.write("prediction", **row)
            yield row

    def _settings(self, name: str) -> Iterator[tuple[Setting, float]]:
        for setting in SATURATED[name][: self.plan.most]:
            yield self._sized(setting), 0.0
        for setting, step, load in SUSTAINED[name][: self.plan.most]:
            yield replace(self._sized(setting), step=step), load

    def _sized(self, setting: Setting) -> Setting:
        shrink = self.plan.shrink
        return replace(
            setting, byte_count=setting.byte_count // shrink,
            # A chunk for each write under way, or the writer has to refuse it.
            pool_byte_count=max(
                setting.pool_byte_count // shrink,
                setting.workers * setting.writes_per_worker * setting.chunk_byte_count,
            ),
        )  # fmt: skip

    # -- the sweep

    def sweep(self, name: str, environment: Environment, profile: Path) -> None:
        """The recommended setting against the best one that can be found."""
        size = (64 if environment.kind.profile == "throttled" else 256) * MIB
        loop = Setting(
            size // self.plan.shrink, 1, 4 * MIB, 1, size, step="sleep", step_milliseconds=20
        )
        recommended, answer = predictions.recommend(
            self.tool, environment, profile, loop, _SWEEP_BUDGET, _SWEEP_MTBF_SECONDS
        )
        row: Row = {
            "environment": name, "recommended": recommended.json,
            "recommended_text": recommended.text, "bound": answer["bound"],
            "predicted": answer,
        }  # fmt: skip
        self.journal.write("recommendation", **row)
        settings = [each for each in self._grid(recommended) if each != recommended]
        everything = [recommended, *settings]
        with environments.loaded(environment):
            loops = self._in_turn(name, environment, everything, self.plan.sweep_rounds)
            middle = {each: statistics.median(loops[each]) for each in settings}
            # The lowest of many medians is lower than it is: the best ones have to show it again.
            best = sorted(settings, key=lambda each: middle[each])[: self.plan.finalists]
            final = self._in_turn(
                name, environment, [recommended, *best], self.plan.final_rounds
            )
        winner = min(best, key=lambda each: statistics.median(final[each]))
        row |= {
            "setting_count": len(everything),
            "sweep": [{"setting": each.json, "loop_ratios": loops[each]} for each in everything],
            "final": [{"setting": each.json, "loop_ratios": final[each]} for each in final],
            "recommended_loop_ratio": statistics.median(final[recommended]),
            "best": winner.json, "best_text": winner.text,
            "best_loop_ratio": statistics.median(final[winner]),
            "loss": statistics.median(
                ours / theirs
                for ours, theirs in zip(final[recommended], final[winner], strict=True)
            ) - 1,
        }  # fmt: skip
        self.results["sweeps"].append(row)
        self.journal.write("sweep", **row)

    def _grid(self, recommended: Setting) -> Iterator[Setting]:
        """Settings at the interval, and with the codec, that tune recommends."""
        plan = self.plan
        for count, chunk, workers, share in itertools.product(
            plan.sweep_counts, plan.sweep_chunks, plan.sweep_workers, plan.sweep_pool_shares
        ):
            pool = max(round(share * recommended.byte_count), workers * chunk)
            yield replace(
                recommended, in_flight=count, chunk_byte_count=chunk, workers=workers,
                pool_byte_count=pool,
            )  # fmt: skip

    def _in_turn(
        self, name: str, environment: Environment, settings: list[Setting], rounds: int
    ) -> dict[Setting, list[float]]:
        """Loop times by setting: another one is first in each round."""
        loops: dict[Setting, list[float]] = {each: [] for each in settings}
        for number in range(rounds):
            shift = number % len(settings)
            for place, each in enumerate(settings[shift:] + settings[:shift], 1):
                self._show(
                    f"[{place}/{len(settings)}, round {number + 1}/{rounds}] "
                    f"{KINDS[name].label}: {each.text}"
                )
                count = _save_count(environment, each, 0)
                measured = predictions.measure(self.tool, environment, each, count, 1)
                loops[each].append(measured["loop_ratio"])
        return loops

    # -- reporting

    def _leave_out(self, what: str, reason: str) -> None:
        self.results["left_out"].append({"what": what, "reason": reason})
        self.journal.write("left_out", label=what, reason=reason)
        self._show(f"left out: {what}: {reason}")

    def _show(self, text: str) -> None:
        gone = int(time.monotonic() - self.began)
        print(f"{gone // 60:2}:{gone % 60:02} {text}", file=sys.stderr, flush=True)


def _sustained(setting: Setting, load: float, predicted: Row) -> Setting:
    """The same in a loop whose cycles are so many times the shortest that is sustained."""
    span = predicted["write_seconds"] / setting.in_flight
    # About five steps in the shortest cycle, so that cycles can be told apart on any machine.
    milliseconds = max(10, math.ceil(span * 1e3 / 5))
    interval = max(2, math.ceil(load * span * 1e3 / milliseconds))
    return replace(setting, step_milliseconds=milliseconds, interval=interval)


def _save_count(environment: Environment, setting: Setting, write_seconds: float) -> int:
    """Saves of one measured loop, each of which takes so long when every slot is taken."""
    several = environment.kind.ranks > 1
    if setting.interval == 1:
        # Each slot is used as often as the others: saves that end together leave no rest.
        least = max(6, 4 * setting.in_flight)
        if not several:
            return least
        enough = math.ceil(_RANKS_SECONDS * setting.in_flight / max(write_seconds, 1e-3))
        return max(least, min(_MOST_SAVES_OF_RANKS, enough))
    cycle_seconds = setting.interval * setting.step_milliseconds / 1e3
    wanted = math.ceil((_RANKS_SECONDS if several else _LOOP_SECONDS) / cycle_seconds)
    return max(_FEWEST_SAVES, min(_MOST_SAVES, wanted))


def _verdict(results: Row, row: Row) -> str:
    (found,) = validation_report.comparisons({**results, "settings": [row]})
    unit = " s" if found["quantity"] == "Tw" else ""
    return (
        f"  {found['quantity']} predicted {found['predicted']:.3f}{unit}, measured "
        f"{found['measured']:.3f}{unit}: {found['error']:+.1%}"
    )


# ---------------------------------------------------------------- the command line


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m Benchmarks.validate",
        description="Checks predictions of `pccheck tune` against measurements.",
    )
    parser.add_argument("--directory", type=Path, default=Path("."), help="on the disk to measure")
    parser.add_argument("--output", type=Path, default=Path("validate-output"))
    parser.add_argument("--tool", type=Path, default=Path("build/bin/pccheck"))
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--quick", action="store_true", help="proves that all of it runs")
    parser.add_argument("--rounds", type=int, help="of each setting")
    parser.add_argument(
        "--sweep", action="store_true", help="the recommendation against a sweep, instead"
    )
    parser.add_argument(
        "--profile", action="append", default=[], metavar="ENV=FILE",
        help="a profile of disk, loader, memory or throttled; the others are measured",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="prints JSON, not tables")
    return parser


def main() -> int:
    """The exit status: 0 done, 8 it failed, 16 usage, 32 cancelled."""
    parser = _arguments()
    options = parser.parse_args()
    profiles = {}
    names = list(dict.fromkeys(kind.profile for kind in KINDS.values()))
    for text in options.profile:
        name, _, path = text.partition("=")
        if name not in names or not Path(path).is_file():
            parser.exit(
                16, f"error: --profile {text}: expected one of {', '.join(names)}, =, a file\n"
            )
        profiles[name] = Path(path)
    if options.rounds is not None and options.rounds < 1:
        parser.exit(16, f"error: --rounds {options.rounds}: expected 1 or more\n")
    plan = QUICK if options.quick else FULL
    if options.rounds:
        plan = replace(plan, rounds=options.rounds, final_rounds=options.rounds)
    signal.signal(signal.SIGTERM, _cancel)
    try:
        needed = {KINDS[name].profile for name in options.only}
        if any(KINDS[name].loader_share for name in options.only):
            needed.add("disk")
        needed -= profiles.keys()
        _check_tool(options.tool, bool(needed), not options.sweep)
        options.directory.mkdir(parents=True, exist_ok=True)
        options.output.mkdir(parents=True, exist_ok=True)
        _check_room(options.directory)
        with _validation(plan, options, profiles) as validation:
            part = validation.sweep if options.sweep else validation.predict_and_measure
            validation.run(options.only, part)
    except (Interrupted, KeyboardInterrupt):
        print("\ncancelled; nothing is left behind", file=sys.stderr)
        return 32
    except RuntimeError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 8
    return _write(validation.results, options.output, options.json)


def _cancel(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _validation(
    plan: Plan, options: argparse.Namespace, profiles: dict[str, Path]
) -> Iterator[Validation]:
    validation = Validation(
        plan, options.tool.resolve(), options.directory.resolve(), options.output.resolve(),
        profiles,
    )  # fmt: skip
    try:
        yield validation
    finally:
        validation.journal.close()


def _check_tool(tool: Path, measures_profiles: bool, predicts: bool) -> None:
    """Before minutes go by."""
    if not tool.is_file():
        raise RuntimeError(f"{tool}: no such program; run `make tools`")
    text = subprocess.run([tool, "tune", "--help"], capture_output=True, text=True).stdout
    wanted = ["--save-profile"] * measures_profiles + ["--fix-in-flight"] * predicts
    for option in wanted:
        if option not in text:
            raise RuntimeError(f"{tool} tune has no {option}; build it again with `make tools`")


def _check_room(directory: Path) -> None:
    # Three slots of the largest state, a plain file, and the image or the file of the loader.
    needed = 6 * 1024 * MIB
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise RuntimeError(
            f"{directory}: {free // MIB} MiB are free, and {needed // MIB} MiB are needed; "
            "choose another --directory"
        )


def _write(results: Row, output: Path, prints_json: bool) -> int:
    from .plots import draw_validation

    text = json.dumps(results, indent=1) + "\n"
    (output / "validation.json").write_text(text)
    tables = validation_report.markdown(results)
    (output / "validation.md").write_text(tables)
    draw_validation(results, output)
    print(text if prints_json else tables, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
