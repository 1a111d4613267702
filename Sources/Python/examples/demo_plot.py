"""The picture of the demo: the loss curve, and progress over time with every kill and resume."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INK, FAINT, RED, GREEN, BLUE = "#22303c", "#9aa7b1", "#d1495b", "#2e8b6f", "#30638e"


@dataclass
class Attempt:
    """One process of the run that gets killed: from its start to its end."""

    #: First step that it computed.
    start: int
    #: Seconds since the run began: when training began, and when the process ended.
    began: float
    ended: float = 0.0
    was_killed: bool = False
    #: Checkpoints that were in flight when it was killed.
    in_flight: int = 0
    #: Step, seconds since the run began, loss.
    points: list[tuple[int, float, float]] = field(default_factory=list)


def draw(path: Path, reference: dict[int, float], attempts: list[Attempt], verdict: str) -> None:
    """Writes the picture."""
    colors = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
    plt.rcParams.update({"font.size": 10, "axes.edgecolor": FAINT, **dict.fromkeys(colors, INK)})
    figure, (losses, progress) = plt.subplots(
        2, 1, figsize=(10, 8.2), height_ratios=(3, 2), constrained_layout=True
    )
    kill_count = sum(attempt.was_killed for attempt in attempts)
    figure.suptitle(
        f"A GPT learns Python, and is killed {kill_count} times in the middle of a checkpoint",
        fontsize=14, fontweight="bold", x=0.01, ha="left",
    )  # fmt: skip
    _draw_losses(losses, reference, attempts, verdict)
    _draw_progress(progress, attempts)
    for axes in (losses, progress):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6eaed", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_losses(
    axes: plt.Axes, reference: dict[int, float], attempts: list[Attempt], verdict: str
) -> None:
    axes.plot(
        list(reference), list(reference.values()), color="#f2c078", linewidth=6,
        solid_capstyle="round", label="never disturbed",
    )  # fmt: skip
    for index, attempt in enumerate(attempts):
        axes.plot(
            [step for step, _, _ in attempt.points], [loss for _, _, loss in attempt.points],
            color=BLUE, linewidth=1.4, label="killed and resumed" if index == 0 else None,
        )  # fmt: skip
    killed = [attempt for attempt in attempts if attempt.was_killed and attempt.points]
    for attempt in killed:
        axes.axvline(attempt.points[-1][0], color=RED, linewidth=0.8, alpha=0.35)
    axes.plot(
        [attempt.points[-1][0] for attempt in killed],
        [attempt.points[-1][2] for attempt in killed],
        "X", color=RED, markersize=10, markeredgecolor="white", label="SIGKILL",
    )  # fmt: skip
    resumed = [attempt for attempt in attempts[1:] if attempt.points]
    axes.plot(
        [attempt.points[0][0] for attempt in resumed],
        [attempt.points[0][2] for attempt in resumed],
        ">", color=GREEN, markersize=8, markeredgecolor="white", label="resumed",
    )  # fmt: skip
    axes.set_xlabel("training step")
    axes.set_ylabel("loss (nats per byte)")
    axes.set_xlim(left=0)
    axes.legend(loc="upper right", edgecolor="white", framealpha=1, title=verdict)


def _draw_progress(axes: plt.Axes, attempts: list[Attempt]) -> None:
    for index, attempt in enumerate(attempts):
        if not attempt.points:
            continue
        times = [seconds for _, seconds, _ in attempt.points]
        steps = [step for step, _, _ in attempt.points]
        axes.plot(times, steps, color=BLUE, linewidth=2)
        axes.plot(times[0], steps[0], ">", color=GREEN, markersize=7, markeredgecolor="white")
        if not attempt.was_killed:
            continue
        axes.plot(attempt.ended, steps[-1], "X", color=RED, markersize=10, markeredgecolor="white")
        following = attempts[index + 1] if index + 1 < len(attempts) else None
        if following is not None and following.points:
            axes.plot(
                [attempt.ended, following.points[0][1]], [steps[-1], following.points[0][0]],
                ":", color=FAINT, linewidth=1.2,
            )  # fmt: skip
            lost = steps[-1] + 1 - following.start
            is_near_left_edge = attempt.ended < attempts[-1].ended / 6
            axes.annotate(
                f"{attempt.in_flight} in flight\n{lost} step{'s' * (lost != 1)} repeated",
                (attempt.ended, steps[-1]), xytext=(0 if is_near_left_edge else -9, 7),
                textcoords="offset points", fontsize=8, color=INK,
                ha="center" if is_near_left_edge else "right",
            )  # fmt: skip
    axes.set_xlabel("seconds since the run began")
    axes.set_ylabel("training step")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
