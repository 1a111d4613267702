"""The drawings of pccheck tune and pccheck goodput: the marks lie where the figures say."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from pccheck_commands import TOOL
from test_schema_tune import PROFILE

SVG = "{http://www.w3.org/2000/svg}"
FAILURES = (
    "# node_count: 8\n# end_seconds: 864000\nnode,start_seconds,end_seconds\n"
    "a,40000,90000\nb,400000,410000\nc,500000,500100\n"
)

Arguments = list[str | Path]


@pytest.fixture
def tune(tmp_path: Path) -> Arguments:
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(PROFILE))
    return [
        "tune", "--profile", profile, "--state", "10GB", "--step-seconds", "0.5",
        "--mtbf-seconds", "20000",
    ]  # fmt: skip


@pytest.fixture
def goodput(tmp_path: Path) -> Arguments:
    trace = tmp_path / "failures.csv"
    trace.write_text(FAILURES)
    return ["goodput", trace, "--replications", "200"]


def run(arguments: Arguments, *more: str | Path, status: int = 0) -> Any:
    if not TOOL.exists():
        pytest.skip(f"{TOOL} is not built; run make tools")
    done = subprocess.run(
        [TOOL, *arguments, *more], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == status, done.stderr
    return done


def drawn(arguments: Arguments, folder: Path, *more: str | Path) -> tuple[ET.Element, Any]:
    """The drawing, and the figures of the same run."""
    path = folder / "drawing.svg"
    document = json.loads(run(arguments, *more, "--json", "--plot", path).stdout)
    return ET.fromstring(path.read_bytes()), document


def group(element: ET.Element, kind: str) -> ET.Element:
    found = [part for part in element.iter(f"{SVG}g") if part.get("class") == kind]
    assert len(found) == 1, kind
    return found[0]


def marks(element: ET.Element, kind: str) -> list[ET.Element]:
    return [part for part in element.iter() if kind in part.get("class", "").split()]


def points(path: ET.Element) -> list[tuple[float, float]]:
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.get("d", ""))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


class Scale:
    """An axis as its ticks show it: the outer two give the scale, the others must lie on it."""

    def __init__(self, panel: ET.Element, kind: str, *, is_logarithmic: bool = False) -> None:
        self._place = math.log if is_logarithmic else float
        coordinate = "y" if kind == "y-tick" else "x"
        # A label is 4 pixels below the line of its tick.
        shift = 4 if kind == "y-tick" else 0
        ticks = [
            (float((tick.text or "").replace(" ", "")), float(tick.get(coordinate, "")) - shift)
            for tick in marks(panel, kind)
        ]
        assert len(ticks) >= 2
        (first, start), (last, end) = ticks[0], ticks[-1]
        self._start, self._first = start, self._place(first)
        self._slope = (end - start) / (self._place(last) - self._first)
        for value, pixel in ticks:
            assert self(value) == pytest.approx(pixel, abs=0.05)

    def __call__(self, value: float) -> float:
        return self._start + (self._place(value) - self._first) * self._slope


def place(dot: ET.Element) -> tuple[float, float]:
    return float(dot.get("cx", "")), float(dot.get("cy", ""))


def chosen(panel: ET.Element) -> tuple[float, float]:
    """The dot on the chart, which follows the one in the legend."""
    return place(marks(panel, "chosen")[-1])


def test_tune_draws_the_time_of_a_checkpoint(tune: Arguments, tmp_path: Path) -> None:
    picture, document = drawn(tune, tmp_path)
    panel = group(picture, "write")
    x, y = Scale(panel, "x-tick"), Scale(panel, "y-tick")
    alone, busiest = document["alone_write_seconds"], document["busiest_seconds"]
    dots = [place(dot) for dot in marks(panel, "point")[1:]]
    assert len(dots) >= 4
    for count, dot in enumerate(dots, 1):
        under_way = min(count, document["most_under_way"])
        expected = (x(count), y(max(alone, under_way * busiest)))
        assert dot == pytest.approx(expected, abs=0.05)
    count = document["setting"]["in_flight_count"]
    assert chosen(panel) == pytest.approx((x(count), y(document["write_seconds"])), abs=0.05)
    # The line of a busy device is straight through all of its length.
    ends = points(marks(panel, "busy")[-1])
    assert len(ends) == 2 and ends[0][0] == pytest.approx(x(0.5), abs=0.05)
    height = y(1 * busiest) - y(0)
    for across, down in ends:
        counts = (across - x(0)) / (x(1) - x(0))
        assert down == pytest.approx(y(0) + counts * height, abs=0.1)
    flat = points(marks(panel, "alone")[-1])
    assert [height for _, height in flat] == pytest.approx([y(alone)] * 2, abs=0.05)
    for at, height in points(marks(panel, "busy")[-1])[:1]:
        assert (at, height) == pytest.approx((x(0.5), y(busiest / 2)), abs=0.05)


def test_tune_draws_overhead_and_goodput(tune: Arguments, tmp_path: Path) -> None:
    picture, document = drawn(tune, tmp_path)
    steps = document["interval_steps"]
    overhead, goodput = group(picture, "overhead"), group(picture, "goodput")
    for panel in (overhead, goodput):
        x = Scale(panel, "x-tick", is_logarithmic=True)
        y = Scale(panel, "y-tick")
        name = panel.get("class", "")
        value = 100 * document[name]["value"]
        assert chosen(panel) == pytest.approx((x(steps), y(value)), abs=0.05)
        # The curve passes the chosen point.
        near = min(points(marks(panel, "curve")[-1]), key=lambda point: abs(point[0] - x(steps)))
        assert near == pytest.approx((x(steps), y(value)), abs=0.05)
    budget = points(marks(overhead, "budget")[-1])
    y = Scale(overhead, "y-tick")
    assert [height for _, height in budget] == pytest.approx([y(3)] * 2, abs=0.05)
    band = marks(goodput, "band")[-1]
    x = Scale(goodput, "x-tick", is_logarithmic=True)
    best = document["best_interval_steps"]
    left = float(band.get("x", ""))
    assert left == pytest.approx(x(best["low"]), abs=0.05)
    assert left + float(band.get("width", "")) == pytest.approx(x(best["high"]), abs=0.05)
    # Goodput has one top, and the chosen interval is it.
    heights = [height for _, height in points(marks(goodput, "curve")[-1])]
    assert min(heights) == pytest.approx(chosen(goodput)[1], abs=0.05)


def test_tune_marks_what_no_machine_sustains(tune: Arguments, tmp_path: Path) -> None:
    arguments = [*tune, "--overlap", "1", "--budget", "0.5", "--restart-seconds", "1"]
    arguments[arguments.index("20000")] = "60"
    picture, document = drawn(arguments, tmp_path)
    panel = group(picture, "overhead")
    x = Scale(panel, "x-tick", is_logarithmic=True)
    end = points(marks(panel, "waits")[-1])[-1]
    assert end == points(marks(panel, "curve")[-1])[0]
    seconds = max(
        document["busiest_seconds"],
        document["alone_write_seconds"] / document["setting"]["in_flight_count"],
    )
    # Two points of the curve are at most a thirtieth apart.
    assert end[0] == pytest.approx(x(seconds / 0.5), rel=0.04)


def test_goodput_draws_every_policy(goodput: Arguments, tmp_path: Path) -> None:
    picture, document = drawn(goodput, tmp_path, "--synthetic", "--synthetic-nodes", "20")
    sections = marks(picture, "section")
    assert len(sections) == len(document["traces"]) == 2
    for section, trace in zip(sections, document["traces"], strict=True):
        rows = sorted(trace["policies"], key=lambda row: -row["goodput"]["value"])
        drawings = marks(section, "row")
        assert len(drawings) == len(rows)
        x = Scale(group(section, "goodput"), "x-tick")
        loss = Scale(group(section, "losses"), "x-tick")
        for drawing, row in zip(drawings, rows, strict=True):
            name = marks(drawing, "name")[0].text or ""
            assert name.startswith(row["policy"])
            dots = list(drawing.iter(f"{SVG}circle"))
            whiskers = marks(drawing, "whisker")
            if row["rule"] is None:
                # It never saves: an arrow leads to it.
                assert not dots and len(whiskers) == 2
                continue
            value, low, high = (100 * row["goodput"][part] for part in ("value", "low", "high"))
            assert place(dots[0])[0] == pytest.approx(x(value), abs=0.05)
            ends = [at for at, _ in points(whiskers[0])]
            assert ends == pytest.approx([x(low), x(high)], abs=0.05)
            lost = 0.0
            for part in ("blocked", "redone", "restart", "waiting"):
                bar = marks(drawing, part)[0]
                assert float(bar.get("x", "")) == pytest.approx(loss(lost), abs=0.05)
                lost += 100 * row[part]
                right = float(bar.get("x", "")) + float(bar.get("width", ""))
                assert right == pytest.approx(loss(lost), abs=0.05)


def test_goodput_draws_pooled_traces(goodput: Arguments, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text(FAILURES.replace("40000,", "30000,"))
    picture, document = drawn([*goodput[:2], other, *goodput[2:]], tmp_path)
    headings = [heading.text for heading in marks(picture, "h")]
    assert headings == ["failures.csv", "other.csv", "all of llm"]
    assert len(document["pooled"]) == 1


def test_a_reader_without_eyes_has_the_figures(tune: Arguments, tmp_path: Path) -> None:
    picture, document = drawn(tune, tmp_path)
    title, description = picture.find(f"{SVG}title"), picture.find(f"{SVG}desc")
    assert title is not None and description is not None
    assert picture.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert picture.get("role") == "img"
    assert f"{document['interval_steps']} steps" in (description.text or "")
    style = picture.findtext(f"{SVG}style") or ""
    assert "prefers-color-scheme:dark" in style
    used = {kind for part in picture.iter() for kind in part.get("class", "").split()}
    for kind in ("curve", "budget", "band", "chosen", "point"):
        assert kind in used and f".{kind}" in style
    assert "http" not in ET.tostring(picture, encoding="unicode").replace(SVG[1:-1], "")


def test_a_hostile_name_stays_text(tmp_path: Path) -> None:
    trace = tmp_path / "<script>&\"'\x1b\u202e]]>.csv"
    trace.write_text(FAILURES)
    picture, _ = drawn(["goodput", trace, "--replications", "100"], tmp_path)
    assert marks(picture, "h")[0].text == "<script>&\"'\\u{1b}\\u{202e}]]>.csv"
    assert not list(picture.iter(f"{SVG}script"))


def test_standard_output_holds_the_drawing_alone(tune: Arguments, goodput: Arguments) -> None:
    for arguments in (tune, goodput):
        output = run(arguments, "--plot", "-").stdout
        assert ET.fromstring(output.encode()).tag == f"{SVG}svg"
        refused = run(arguments, "--plot", "-", "--json", status=16)
        assert not refused.stdout and "name a file" in refused.stderr


def test_the_text_is_the_same_with_a_drawing(tune: Arguments, tmp_path: Path) -> None:
    assert run(tune, "--plot", tmp_path / "a.svg").stdout == run(tune).stdout


def test_an_existing_file_stays(tune: Arguments, goodput: Arguments, tmp_path: Path) -> None:
    path = tmp_path / "drawing.svg"
    for arguments in (tune, goodput):
        path.write_text("mine")
        refused = run(arguments, "--plot", path, status=8)
        assert "exists already" in refused.stderr and "--replace" in refused.stderr
        assert not refused.stdout and path.read_text() == "mine"
        run(arguments, "--plot", path, "--replace")
        assert ET.fromstring(path.read_bytes()).tag == f"{SVG}svg"
    assert "--replace goes with --plot" in run(tune, "--replace", status=16).stderr


def test_what_is_read_is_never_replaced(
    tune: Arguments, goodput: Arguments, tmp_path: Path
) -> None:
    for arguments, name in ((tune, "profile.json"), (goodput, "failures.csv")):
        path = tmp_path / name
        before = path.read_bytes()
        refused = run(arguments, "--plot", path, "--replace", status=16)
        assert "a file that is read" in refused.stderr and path.read_bytes() == before


def test_a_place_that_takes_no_file(tune: Arguments, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "is a directory" in run(tune, "--plot", folder, status=16).stderr
    for path in (tmp_path / "none" / "a.svg", tmp_path / "profile.json" / "a.svg"):
        refused = run(tune, "--plot", path, status=8)
        assert str(path) in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "profile.json"]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    if not TOOL.exists():
        pytest.skip(f"{TOOL} is not built; run make tools")
    trace, path = tmp_path / "trace", tmp_path / "drawing.svg"
    os.mkfifo(trace)
    with subprocess.Popen(
        [TOOL, "goodput", trace, "--plot", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        # It has opened the trace, and so handles signals, when this returns.
        with trace.open("w") as writer:
            process.send_signal(signal.SIGINT)
            writer.write(FAILURES)
        _, diagnostics = process.communicate(timeout=60)
    assert process.returncode == 32, diagnostics
    assert b"cancelled" in diagnostics
    assert [path.name for path in tmp_path.iterdir()] == ["trace"]
