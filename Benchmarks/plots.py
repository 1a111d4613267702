"""The pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from .environments import KINDS
from .report import MIB, Results, durable_figures, loop_figures, sizes, states
from .validation_report import WORST_GOAL, comparisons

_OURS = "#0b6e4f"
_OTHERS = "#9aa5b1"
_INK = "#1f2933"
_GRID = "#e4e7eb"
_SERIES = ("#0b6e4f", "#d9822b", "#3e4c59", "#8a63d2")
_MARKERS = ("o", "s", "D", "^")
_AXIS_TITLES = {
    "size": "state", "in-flight": "checkpoints in flight", "writer-workers": "writer workers",
    "chunk": "chunk", "backend": "back end", "codec": "codec",
}  # fmt: skip


def draw(results: Results, output: Path) -> list[Path]:
    """Every picture for which there are figures."""
    return _saved(
        output,
        {
            "durable.png": lambda: _draw_durable(results),
            "cost.png": lambda: _draw_cost(results),
            "loop.png": lambda: _draw_loop(results),
            "sweep.png": lambda: _draw_sweep(results),
            "codec.png": lambda: _draw_codec(results),
        },
    )


def draw_validation(results: Results, output: Path) -> list[Path]:
    """Predictions against measurements, where there are any."""
    return _saved(output, {"validation.png": lambda: _draw_validation(results)})


def _saved(output: Path, pictures: dict[str, Callable[[], Figure | None]]) -> list[Path]:
    with pyplot.rc_context(
        {
            "font.size": 11, "axes.edgecolor": "#cbd2d9", "axes.labelcolor": _INK,
            "xtick.color": _INK, "ytick.color": _INK, "text.color": _INK,
            "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlelocation": "left",
            "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
            "figure.dpi": 150, "savefig.dpi": 150, "legend.frameon": False,
        }
    ):  # fmt: skip
        paths = []
        for name, draw_one in pictures.items():
            figure = draw_one()
            if figure is None:
                continue
            figure.savefig(output / name, facecolor="white")
            pyplot.close(figure)
            paths.append(output / name)
    return paths


def _color(peer: str) -> str:
    return _OURS if peer.startswith("pccheck") else _OTHERS


def _bars(
    axes: Axes, labels: list[str], values: list[float], texts: list[str], colors: list[str]
) -> None:
    """Horizontal bars, the first on top, each with its figure at its end."""
    places = range(len(labels))
    axes.barh(places, values, color=colors, height=0.66)
    axes.set_yticks(list(places), labels)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=_GRID)
    for place, value, text in zip(places, values, texts, strict=True):
        axes.annotate(
            text, (value, place), xytext=(5, 0), textcoords="offset points", va="center",
            fontsize=10,
        )  # fmt: skip


def _draw_durable(results: Results) -> Figure | None:
    found = [(state, durable_figures(results, state)) for state in states(results)]
    found = [(state, figures) for state, figures in found if figures]
    if not found:
        return None
    rows = max(len(figures) for _, figures in found)
    figure, panels = pyplot.subplots(
        len(found), 1, figsize=(9, len(found) * (1.3 + 0.42 * rows)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, (_, figures) in zip(panels[:, 0], found, strict=True):
        has_fio = all(row["of_fio"] is not None for row in figures)
        values = [row["of_fio"] if has_fio else row["rate"] for row in figures]
        texts = [
            f"{row['of_fio']:.2f}   {row['rate']:.0f} MB/s"
            if has_fio
            else f"{row['rate']:.0f} MB/s"
            for row in figures
        ]
        _bars(
            axes, [row["label"] for row in figures], values, texts,
            [_color(row["peer"]) for row in figures],
        )  # fmt: skip
        axes.set_xlim(0, max([*values, 1.0 if has_fio else 0]) * 1.28)
        axes.set_title(f"One durable save of {sizes(figures[0])}")
        if has_fio:
            axes.axvline(1, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                "fio", (1, 0), xycoords=("data", "axes fraction"), xytext=(3, 4),
                textcoords="offset points", fontsize=10,
            )  # fmt: skip
            axes.set_xlabel("throughput, as a share of the best fio setting in the same round")
        else:
            axes.set_xlabel("MB/s")
    return figure


def _draw_cost(results: Results) -> Figure | None:
    state = next(iter(states(results)), None)
    figures = durable_figures(results, state) if state else []
    if not figures:
        return None
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(11, 1.5 + 0.45 * len(figures)), layout="constrained"
    )
    figures = sorted(figures, key=lambda row: row["blocked"])
    blocked = [max(row["blocked"], 0.1) for row in figures]
    _bars(
        left, [row["label"] for row in figures], blocked,
        [f"{row['blocked']:,.0f} ms" for row in figures],
        [_color(row["peer"]) for row in figures],
    )  # fmt: skip
    left.set_xlim(0, max(blocked) * 1.25)
    left.set_title("Caller blocked")
    left.set_xlabel("ms until the state may change again")
    memory = [row["memory"] for row in figures]
    _bars(
        right, [""] * len(figures), memory, [f"{value:.2f}" for value in memory],
        [_color(row["peer"]) for row in figures],
    )  # fmt: skip
    right.set_xlim(0, max([*memory, 1]) * 1.15)
    right.set_title("Peak extra memory")
    right.set_xlabel("times the state")
    figure.suptitle(f"One durable save of {sizes(figures[0])}", x=0.01, ha="left", fontsize=12)
    return figure


def _draw_loop(results: Results) -> Figure | None:
    figures = loop_figures(results)
    if not figures:
        return None
    figure, axes = pyplot.subplots(
        figsize=(9.5, 1.9 + 0.46 * len(figures)), layout="constrained"
    )
    intervals = sorted({interval for row in figures for interval in row["intervals"]})
    for index, interval in enumerate(intervals):
        points = [
            (row["intervals"][interval]["slowdown"], place)
            for place, row in enumerate(figures)
            if interval in row["intervals"]
        ]
        axes.scatter(
            [max(slowdown, 1) for slowdown, _ in points], [place for _, place in points],
            label=f"every {interval} step{'s' if interval > 1 else ''}", s=70, zorder=3,
            color=_SERIES[(index + 1) % 4], marker=_MARKERS[index % 4], edgecolor="white",
        )  # fmt: skip
    for place, row in enumerate(figures):
        values = [max(entry["slowdown"], 1) for entry in row["intervals"].values()]
        axes.plot([1, max(values)], [place, place], color=_GRID, linewidth=3, zorder=1)
        axes.annotate(
            f"{max(values):.2f}", (max(values), place), xytext=(9, 0),
            textcoords="offset points", va="center", fontsize=10,
        )  # fmt: skip
    axes.set_yticks(range(len(figures)), [row["label"] for row in figures])
    for label, row in zip(axes.get_yticklabels(), figures, strict=True):
        if row["peer"].startswith("pccheck"):
            label.set_color(_OURS)
            label.set_fontweight("bold")
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    most = max(entry["slowdown"] for row in figures for entry in row["intervals"].values())
    axes.set_xscale("log")
    # Marks at figures that people read, however wide the range is.
    fine = (1, 1.1, 1.25, 1.5, 2) if most < 3 else (1, 1.5, 2, 3, 5, 10, 20, 50)
    ticks = [tick for tick in fine if tick <= most * 1.3]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ×"))
    axes.set_xlim(0.985, max(most * 1.25, 1.1))
    axes.grid(axis="x", color=_GRID)
    size = results["loop"][0]["byte_count"] / MIB
    axes.set_title(f"Training loop, steps of 50 ms, {size:.0f} MiB of state", pad=28)
    axes.set_xlabel("time of a step, as a multiple of a step without checkpoints")
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=len(intervals), handletextpad=0.2,
        borderaxespad=0.1,
    )  # fmt: skip
    return figure


def _draw_sweep(results: Results) -> Figure | None:
    rows = [row for row in results.get("sweep", []) if not row["skipped"]]
    names = list(dict.fromkeys(row["axis"] for row in rows))
    if not names:
        return None
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    figure, panels = pyplot.subplots(
        lines, columns, figsize=(4.2 * columns, 3.3 * lines + 0.5), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    series = (
        ("sustained", "pccheck, sustained"),
        ("durable", "pccheck, one at a time"),
        ("plain", "plain O_DIRECT writes"),
    )
    for axes, name in zip(panels.flat, names, strict=False):
        points = [row for row in rows if row["axis"] == name]
        labels = [row["label"].replace(" ", "\n") for row in points]
        is_scale = name not in ("backend", "codec")
        for index, (key, label) in enumerate(series):
            values = [statistics.median(row[key]) for row in points]
            color = _SERIES[index]
            places = list(range(len(points)))
            if is_scale:
                axes.plot(
                    places, values, color=color, marker=_MARKERS[index], markersize=5,
                    linestyle="--" if key.startswith("plain") else "-", label=label,
                )  # fmt: skip
            else:
                shifted = [place + (index - 1) * 0.27 for place in places]
                axes.bar(shifted, values, width=0.25, color=color, label=label)
        axes.set_xticks(range(len(points)), labels, fontsize=9)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color=_GRID)
        axes.set_title(_AXIS_TITLES.get(name, name))
    for axes in list(panels.flat)[len(names) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel("MB/s")
    # Lines rather than bars in the legend: they are what most panels show.
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(series))
    return figure


def _draw_codec(results: Results) -> Figure | None:
    groups = results.get("codecs")
    if not groups:
        return None
    figure, panels = pyplot.subplots(
        len(groups), 1, figsize=(4.8, 2.4 * len(groups) + 0.3), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for group, axes in zip(groups, panels[:, 0], strict=True):
        values = [statistics.median(row["durable"]) for row in group["codecs"]]
        winner = max(values)
        _bars(
            axes, [f"{row['codec']} ({row['ratio']:.2f} ×)" for row in group["codecs"]],
            values, [f"{value:.0f}" for value in values],
            [_OURS if value == winner else _OTHERS for value in values],
        )  # fmt: skip
        axes.set_xlim(0, winner * 1.15)
        axes.set_title(group["element_types"])
    panels[-1, 0].set_xlabel("durable MB/s")
    return figure


def _draw_validation(results: Results) -> Figure | None:
    rows = comparisons(results)
    titles = {
        "Tw": "Seconds until durable, all slots taken",
        "loop": "What checkpoints add to a loop, share",
    }
    quantities = [name for name in titles if any(row["quantity"] == name for row in rows)]
    if not quantities:
        return None
    figure, panels = pyplot.subplots(
        1, len(quantities), figsize=(5.6 * len(quantities), 5.8), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    colors = dict(zip(KINDS, (*_SERIES, "#c0392b", "#2b7bba"), strict=True))
    markers = dict(zip(KINDS, (*_MARKERS, "v", "P"), strict=True))
    for axes, quantity in zip(panels[0], quantities, strict=True):
        # A loop's time is near 1: only what is above it can be seen.
        base = 1 if quantity == "loop" else 0
        floor = 1e-4
        chosen = [row for row in rows if row["quantity"] == quantity]
        values = [
            max(row[key] - base, floor) for row in chosen for key in ("predicted", "measured")
        ]
        ends = [min(values) / 1.5, max(values) * 1.5]
        axes.plot(ends, ends, color=_INK, linewidth=1, zorder=1)
        if quantity == "Tw":
            axes.fill_between(
                ends, [end * (1 - WORST_GOAL) for end in ends],
                [end * (1 + WORST_GOAL) for end in ends], color=_GRID, zorder=0,
                label=f"within {WORST_GOAL:.0%}",
            )  # fmt: skip
        for name, kind in KINDS.items():
            mine = [row for row in chosen if row["environment"] == name]
            axes.scatter(
                [max(row["measured"] - base, floor) for row in mine],
                [max(row["predicted"] - base, floor) for row in mine],
                label=kind.label if mine else None, color=colors[name], marker=markers[name],
                s=48, edgecolor="white", zorder=3,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.set_aspect("equal")
        axes.grid(color=_GRID)
        axes.set_title(titles[quantity])
        below = f" (at {floor} what is less)" if base else ""
        axes.set_xlabel(f"measured{below}")
        axes.set_ylabel("predicted")
        axes.legend(fontsize=9, loc="upper left")
    return figure
