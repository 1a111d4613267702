"""How far predictions were from what was measured, and the tables that show it."""

from __future__ import annotations

import statistics
from typing import Any

from .environments import KINDS

Results = dict[str, Any]
Row = dict[str, Any]

#: What the model is to keep: median and worst relative error, and the loss of a recommendation.
MEDIAN_GOAL = 0.10
WORST_GOAL = 0.25
SWEEP_GOAL = 0.03


def error(predicted: float, measured: float) -> float:
    """Relative; above 0 where the prediction is too high."""
    return predicted / measured - 1


def comparisons(results: Results) -> list[Row]:
    """Each prediction beside its measurement: environment, quantity, setting and both figures."""
    rows = []
    for row in results["settings"]:
        if row["measured"] is None:
            continue
        for quantity, predicted, measured in (
            ("Tw", row["predicted"]["write_seconds"], row["measured"]["write_seconds"]),
            (
                "loop", 1 + row["predicted"]["overhead"]["value"],
                row["measured"]["loop_ratio"],
            ),
        ):  # fmt: skip
            is_saturated = row["setting"]["interval"] == 1
            if (quantity == "Tw") != is_saturated:
                continue
            rows.append(
                {
                    "environment": row["environment"], "quantity": quantity,
                    "text": row["text"], "predicted": predicted, "measured": measured,
                    "error": error(predicted, measured),
                    "device_megabytes_per_second": row["measured"][
                        "device_megabytes_per_second"
                    ],
                }
            )  # fmt: skip
    return rows


def summary(rows: list[Row]) -> Row:
    """Count, median and worst absolute error of some comparisons."""
    errors = [abs(row["error"]) for row in rows]
    return {
        "count": len(rows), "median": statistics.median(errors), "worst": max(errors),
        "kept": statistics.median(errors) <= MEDIAN_GOAL and max(errors) <= WORST_GOAL,
    }  # fmt: skip


def markdown(results: Results) -> str:
    """Every table."""
    lines = ["# Predictions of `pccheck tune` and measurements", "", *_head(results)]
    rows = comparisons(results)
    if rows:
        lines += ["", *_summary_table(rows), "", *_overhead_table(results)]
        lines += ["", *_misses(rows), "", *_all(rows)]
    if results["sweeps"]:
        lines += ["", *_sweep_table(results["sweeps"])]
    if results["left_out"]:
        lines += ["", "## Left out", ""]
        lines += [f"- {row['what']}: {row['reason']}" for row in results["left_out"]]
    return "\n".join(lines) + "\n"


def _head(results: Results) -> list[str]:
    machine = results["machine"]
    lines = [
        f"{results['time']}; {machine['core_count']} cores ({machine['processor']}), "
        f"{machine['memory_byte_count'] / (1 << 30):.0f} GiB of memory, "
        f"{machine['file_system']}, kernel {machine['kernel']}.",
        "",
        "Each prediction is in the journal before its measurement begins.",
        "Measured figures are medians over rounds and ranks.",
    ]
    if not results["profiles"]:
        return lines
    lines += [
        "",
        "| profile | fastest writes MB/s | memory MB/s | copy and digest MB/s | flush ms |",
        "|---|---|---|---|---|",
    ]
    for name, profile in results["profiles"].items():
        device = max(statistics.median(each["bytes_per_second"]) for each in profile["device"])
        memory, digest, flush = (
            statistics.median(profile[key])
            for key in (
                "memory_bytes_per_second", "digest_bytes_per_second", "flush_seconds",
            )
        )  # fmt: skip
        lines.append(
            f"| {KINDS[name].label} | {device / 1e6:.0f} | {memory / 1e6:.0f} | "
            f"{digest / 1e6:.0f} | {flush * 1e3:.2f} |"
        )
    return lines


def _summary_table(rows: list[Row]) -> list[str]:
    lines = [
        f"## Relative errors (goal: median {MEDIAN_GOAL:.0%}, worst {WORST_GOAL:.0%})",
        "",
        "*Tw* is the time until a checkpoint is durable while every slot is taken.",
        "*loop* is the time of a loop with checkpoints over that without.",
        "",
        "| environment | quantity | settings | median | worst | goal |",
        "|---|---|---|---|---|---|",
    ]
    groups = [
        (KINDS[name].label, quantity, [row for row in rows if row["environment"] == name])
        for name in KINDS
        for quantity in ("Tw", "loop")
    ] + [("all", quantity, rows) for quantity in ("Tw", "loop")]
    for label, quantity, members in groups:
        chosen = [row for row in members if row["quantity"] == quantity]
        if chosen:
            figures = summary(chosen)
            lines.append(
                f"| {label} | {quantity} | {figures['count']} | {figures['median']:.1%} | "
                f"{figures['worst']:.1%} | {'kept' if figures['kept'] else 'missed'} |"
            )
    return lines


def _overhead_table(results: Results) -> list[str]:
    """A loop's time is near 1 in any case; what checkpoints add to it shows more."""
    lines = [
        "## Overhead: what checkpoints add to a loop",
        "",
        "A small overhead has a large relative error where the loop's time has a small one.",
        "",
        "| environment | settings | predicted, median | measured, median | error, median points "
        "| error, worst points |",
        "|---|---|---|---|---|---|",
    ]
    loops = [row for row in comparisons(results) if row["quantity"] == "loop"]
    for name, kind in KINDS.items():
        chosen = [row for row in loops if row["environment"] == name]
        if not chosen:
            continue
        points = [abs(row["predicted"] - row["measured"]) for row in chosen]
        predicted, measured = (
            statistics.median(row[key] for row in chosen) - 1
            for key in ("predicted", "measured")
        )
        lines.append(
            f"| {kind.label} | {len(chosen)} | {predicted:.1%} | {measured:.1%} | "
            f"{100 * statistics.median(points):.1f} | {100 * max(points):.1f} |"
        )
    return lines


def _misses(rows: list[Row]) -> list[str]:
    missed = [row for row in rows if abs(row["error"]) > WORST_GOAL]
    lines = [f"## Errors above {WORST_GOAL:.0%}: {len(missed)} of {len(rows)}"]
    return lines + (["", *_rows(missed)] if missed else [])


def _all(rows: list[Row]) -> list[str]:
    return ["## All settings", "", *_rows(rows)]


def _rows(rows: list[Row]) -> list[str]:
    lines = [
        "| environment | setting | quantity | predicted | measured | error | plain writes MB/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        predicted, measured = (
            f"{row[key] * 1e3:.0f} ms" if row["quantity"] == "Tw" else f"{row[key]:.3f}"
            for key in ("predicted", "measured")
        )
        lines.append(
            f"| {KINDS[row['environment']].label} | {row['text']} | {row['quantity']} | "
            f"{predicted} | {measured} | {row['error']:+.1%} | "
            f"{row['device_megabytes_per_second']:.0f} |"
        )
    return lines


def _sweep_table(sweeps: list[Row]) -> list[str]:
    lines = [
        f"## Recommendation against the best of a sweep (goal: {SWEEP_GOAL:.0%} of loop time)",
        "",
        "The sweep has all its settings in turn within each round.",
        "The recommended one and the best ones were then measured again in turn; *loss* is the "
        "median of the ratios within a round.",
        "",
        "| environment | recommended | bound | loop | best of the sweep | loop | settings | loss "
        "| goal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sweeps:
        lines.append(
            f"| {KINDS[row['environment']].label} | {row['recommended_text']} | {row['bound']} | "
            f"{row['recommended_loop_ratio']:.3f} | {row['best_text']} | "
            f"{row['best_loop_ratio']:.3f} | {row['setting_count']} | {row['loss']:+.1%} | "
            f"{'kept' if row['loss'] <= SWEEP_GOAL else 'missed'} |"
        )
    return lines
