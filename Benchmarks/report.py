"""Figures out of rows, and the tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

Results = dict[str, Any]
MIB = 1 << 20


def median(values: Iterable[float]) -> float | None:
    """None of nothing."""
    found = list(values)
    return statistics.median(found) if found else None


def best_fio(results: Results, state: str) -> dict[int, float]:
    """MB/s of the best setting, by round."""
    best: dict[int, float] = {}
    for row in results["fio"]:
        if row["state"] == state:
            rate = row["megabytes_per_second"]
            best[row["round"]] = max(best.get(row["round"], 0), rate)
    return best


def states(results: Results) -> list[str]:
    """The kinds of state that were saved, in order."""
    return list(dict.fromkeys(row["state"] for row in results["durable"]))


def durable_figures(results: Results, state: str) -> list[dict[str, Any]]:
    """One row per peer, the fastest first; ratios are medians of ratios within one round."""
    fio = best_fio(results, state)
    rows = [row for row in results["durable"] if row["state"] == state]
    ours = {row["round"]: row["megabytes_per_second"] for row in rows if row["peer"] == "pccheck"}
    figures = []
    for name, label in results["peers"].items():
        mine = [row for row in rows if row["peer"] == name]
        if not mine:
            continue

        def middle(
            value: Callable[[dict[str, Any]], float], mine: list[dict[str, Any]] = mine
        ) -> float:
            return statistics.median(value(row) for row in mine)

        figures.append(
            {
                "peer": name, "label": label, "rounds": len(mine),
                "tensor_count": mine[0]["tensor_count"], "byte_count": mine[0]["byte_count"],
                "rate": middle(lambda row: row["megabytes_per_second"]),
                "lowest": min(row["megabytes_per_second"] for row in mine),
                "highest": max(row["megabytes_per_second"] for row in mine),
                "of_fio": median(
                    row["megabytes_per_second"] / fio[row["round"]]
                    for row in mine if row["round"] in fio
                ),
                "we_are": median(
                    ours[row["round"]] / row["megabytes_per_second"]
                    for row in mine if row["round"] in ours
                ),
                "blocked": middle(lambda row: row["blocked_milliseconds"]),
                "call": middle(lambda row: row["call_milliseconds"]),
                "cpu": middle(
                    lambda row: row["cpu_seconds"] * (1 << 30) / row["byte_count"]
                ),
                "memory": middle(lambda row: row["extra_byte_count"] / row["byte_count"]),
            }
        )  # fmt: skip
    return sorted(figures, key=lambda figure: -figure["rate"])


def loop_figures(results: Results, part: str = "loop") -> list[dict[str, Any]]:
    """One row per peer with its slowdown by interval, the least slowed first."""
    figures = []
    for name, label in results["peers"].items():
        mine = [row for row in results[part] if row["peer"] == name]
        if not mine:
            continue
        intervals = sorted({row["interval"] for row in mine})
        by_interval = {}
        for interval in intervals:
            rows = [row for row in mine if row["interval"] == interval]
            by_interval[interval] = {
                "slowdown": statistics.median(row["slowdown"] for row in rows),
                "drain_seconds": statistics.median(row["drain_seconds"] for row in rows),
                "durable_share": sum(row["durable_count"] for row in rows)
                / sum(row["saved_count"] for row in rows),
            }
        figures.append({"peer": name, "label": label, "intervals": by_interval})
    return sorted(
        figures,
        key=lambda figure: sum(row["slowdown"] for row in figure["intervals"].values()),
    )


def markdown(results: Results) -> str:
    """Every table."""
    lines = ["# Benchmark", "", *_head(results)]
    for state in states(results):
        lines += ["", *_durable_table(results, state)]
    for part in ("loop", "training"):
        if results.get(part):
            lines += ["", *_loop_table(results, part)]
    lines += _codec_tables(results)
    lines += _device_table(results)
    if results["skipped"]:
        lines += ["", "## Left out", ""]
        lines += [f"- {name}: {reason}" for name, reason in results["skipped"].items()]
    return "\n".join(lines) + "\n"


def _head(results: Results) -> list[str]:
    machine = results["machine"]
    packages = ", ".join(
        f"{name} {version}" for name, version in machine["packages"].items() if version
    )
    lines = [
        f"{results['time']}; {machine['core_count']} cores ({machine['processor']}), "
        f"{machine['memory_byte_count'] / (1 << 30):.0f} GiB of memory, "
        f"{machine['file_system']}, kernel {machine['kernel']}; Python {machine['python']}, "
        f"{packages}, {machine['fio'] or 'no fio'}.",
        "",
        "Within a round everything that is compared ran in turn, each in a process of its own. "
        "Figures are medians; ratios are medians of ratios within one round.",
    ]
    weights = results.get("weights")
    if weights:
        lines += [
            "",
            f"Weights for the codecs: a GPT of {weights['parameter_count']:,} parameters after "
            f"{weights['step_count']} steps; its loss fell from {weights['first_loss']:.2f} to "
            f"{weights['last_loss']:.2f}.",
        ]
    return lines


def _durable_table(results: Results, state: str) -> list[str]:
    figures = durable_figures(results, state)
    if not figures:
        return []
    first = figures[0]
    lines = [
        f"## One durable save, {state} state: {sizes(first)}",
        "",
        "| | MB/s | lowest–highest | of fio | pccheck is | caller blocked ms | CPU s/GiB | "
        "extra memory × state | rounds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for figure in figures:
        we_are = "" if figure["peer"] == "pccheck" else _decimal(figure["we_are"], 2, " ×")
        lines.append(
            f"| {figure['label']} | {figure['rate']:.0f} | {figure['lowest']:.0f}–"
            f"{figure['highest']:.0f} | {_decimal(figure['of_fio'])} | {we_are} | "
            f"{figure['blocked']:.0f} | {figure['cpu']:.2f} | {figure['memory']:.2f} | "
            f"{figure['rounds']} |"
        )
    fio = median(best_fio(results, state).values())
    if fio is not None:
        lines.append(f"| fio, best setting | {fio:.0f} | | 1 | | | | | |")
    return lines


def sizes(figure: dict[str, Any]) -> str:
    """What was saved, such as `1024 MiB in 1 tensor`."""
    count = figure["tensor_count"]
    return f"{figure['byte_count'] / MIB:.0f} MiB in {count} tensor{'s' if count > 1 else ''}"


def _loop_table(results: Results, part: str) -> list[str]:
    figures = loop_figures(results, part)
    intervals = sorted({interval for figure in figures for interval in figure["intervals"]})
    rows = results[part]
    size = rows[0]["byte_count"] / MIB
    step = statistics.median(row["plain_step_seconds"] for row in rows) * 1e3
    kind = "real training on these cores" if part == "training" else "a training loop elsewhere"
    lines = [
        f"## Slowdown of {kind}: steps of {step:.0f} ms, {size:.0f} MiB of state in "
        f"{rows[0]['tensor_count']} tensors",
        "",
        "Saves that became durable are in brackets where some did not.",
        "",
        "| | " + " | ".join(f"every {interval}" for interval in intervals) + " |",
        "|---" * (len(intervals) + 1) + "|",
    ]
    for figure in figures:
        cells = []
        for interval in intervals:
            row = figure["intervals"].get(interval)
            if row is None:
                cells.append("–")
                continue
            share = row["durable_share"]
            cells.append(f"{row['slowdown']:.3f}" + (f" ({share:.0%})" if share < 1 else ""))
        lines.append(f"| {figure['label']} | " + " | ".join(cells) + " |")
    return lines


def _codec_tables(results: Results) -> list[str]:
    groups = results.get("codecs")
    if not groups:
        return []
    lines = [
        "", "## Codecs on real weights", "",
        "| weights | codec | compression | MB/s per worker | durable MB/s | of none |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for group in groups:
        none = group["codecs"][0]["durable"]
        for row in group["codecs"]:
            ratios = [own / other for own, other in zip(row["durable"], none, strict=True)]
            lines.append(
                f"| {group['element_types']} | {row['codec']} | {row['ratio']:.3f} | "
                f"{_decimal(median(row['compress']), 0)} | {_decimal(median(row['durable']), 0)} | "
                f"{_decimal(median(ratios))} |"
            )
    return lines


def _device_table(results: Results) -> list[str]:
    entries = results.get("device")
    if not entries:
        return []
    lines = [
        "", "## From a GPU and back", "",
        "| state | device | device to pool MB/s | of a plain pinned copy | save call ms | "
        "step waits ms | durable MB/s | load MB/s | memory beyond the pool MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for entry in entries:
        middle = {
            key: value["median"]
            for key, value in entry.items()
            if isinstance(value, dict) and "median" in value
        }
        beyond = entry["resident_above_pool_byte_count"]
        lines.append(
            f"| {entry['byte_count'] / MIB:.0f} MiB | {entry['model']} | "
            f"{middle['to_pool_megabytes_per_second']:.0f} | {middle['ratio_to_plain']:.2f} | "
            f"{middle['save_call_milliseconds']:.2f} | {middle['queued_milliseconds']:.2f} | "
            f"{middle['durable_megabytes_per_second']:.0f} | "
            f"{middle['load_megabytes_per_second']:.0f} | {beyond / MIB:.0f} |"
        )
    return lines


def _decimal(value: float | None, digits: int = 2, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"
