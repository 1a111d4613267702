"""The page of pcinspect --html, in a real browser: Debian's chromium without a window."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, flip_byte_of, pattern

import pccheck
import pccheck.torch

TOOL = ROOT / "build" / "bin" / "pcinspect"
CHROMIUM = shutil.which("chromium")

# Names that try to become markup, to leave an attribute, and to turn the reading direction.
HOSTILE = [
    "<script>document.title='broken out'</script>",
    "<img src=x onerror=\"document.title='broken out'\">",
    "\"><svg onload=\"document.title='broken out'\">",
    "</code></td></table><h1>broken out",
    "a\u202edlrow\u2066",
    "nul\u0000esc\u001b[31m",
    "' style='position:fixed",
]

# Added to a copy of the page, with the policy opened for it: presses each header of each table
# and says what the page has become.
PROBE = """
<script>
addEventListener("load", () => {
  const tables = [...document.querySelectorAll("table.sortable")];
  const sorted = tables.every(table => [...table.tHead.rows[0].cells].every((head, column) => {
    for (const direction of ["ascending", "descending"]) {
      head.firstChild.click();
      if (head.getAttribute("aria-sort") !== direction) return false;
      const keys = [...table.tBodies[0].rows].map(row => row.cells[column])
        .map(cell => cell.dataset.value === undefined ? cell.textContent
                                                      : Number(cell.dataset.value));
      for (let i = 1; i < keys.length; i++)
        if (direction === "ascending" ? keys[i - 1] > keys[i] : keys[i - 1] < keys[i])
          return false;
    }
    return true;
  }));
  const root = document.documentElement;
  const names = [...document.querySelectorAll("td.name")].map(cell => cell.textContent);
  const result = document.createElement("pre");
  result.id = "probe";
  result.textContent = btoa(unescape(encodeURIComponent(JSON.stringify({
    sorted, tables: tables.length, names, title: document.title,
    overflow: root.scrollWidth - root.clientWidth, width: innerWidth,
    rows: document.querySelectorAll("tbody tr").length,
    scripts: document.scripts.length, images: document.images.length,
    headings: [...document.querySelectorAll("h2")].map(head => head.textContent),
    unlabelled: document.querySelectorAll("svg:not([aria-label]), th:not([scope])").length,
    requests: performance.getEntriesByType("resource").map(entry => entry.name),
    accent: getComputedStyle(document.querySelector(".verdict")).color,
  }))));
  document.body.append(result);
});
</script>
"""


def report(file: Path, page: Path, *arguments: str, status: int = 0) -> str:
    if not TOOL.exists():
        pytest.skip(f"{TOOL} is not built; run make tools")
    run = subprocess.run(
        [TOOL, file, "--html", page, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == status, run.stderr
    return page.read_text()


def browse(page: Path, width: int) -> dict[str, object]:
    """What the probe says of the page in a frame `width` pixels wide."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed; run .ci/install-packages --with-tests")
    digest = base64.b64encode(hashlib.sha256(PROBE.strip()[8:-9].encode()).digest()).decode()
    html = page.read_text()
    probed = html.replace("script-src ", f"script-src &#39;sha256-{digest}&#39; ", 1)
    assert probed != html and "</body>" in probed
    # Headless windows are at least 500 pixels wide, so the page lies in a frame.
    inner = page.with_suffix(".probed.html")
    inner.write_text(probed.replace("</body>", PROBE.strip() + "</body>", 1))
    outer = page.with_suffix(".frame.html")
    outer.write_text(
        f"<iframe src='{inner.as_uri()}' width={width} height=900 frameborder=0></iframe><script>"
        "onload=()=>{const d=frames[0].document;"
        "document.body.append(d.getElementById('probe'))}</script>"
    )
    run = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--allow-file-access-from-files",
            "--enable-logging=stderr",
            f"--user-data-dir={page.parent / 'profile'}",
            "--virtual-time-budget=10000",
            "--dump-dom",
            outer.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    assert not console, console
    found = re.search(r'<pre id="probe">([^<]*)</pre>', run.stdout)
    assert found, run.stdout[-2000:] + run.stderr[-2000:]
    result: dict[str, object] = json.loads(base64.b64decode(found[1]))
    return result


def test_the_policy_names_the_style_and_the_script(path: Path, tmp_path: Path) -> None:
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, state={"x": pattern(1, 5000)})
    html = report(path, tmp_path / "page.html")
    for tag in ("style", "script"):
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        assert len(parts) == 1
        digest = base64.b64encode(hashlib.sha256(parts[0].encode()).digest()).decode()
        assert f"{tag}-src &#39;sha256-{digest}&#39;" in html
    assert not re.search(r"(src|href)=", html), "nothing is loaded"


def test_hostile_names_are_text(path: Path, tmp_path: Path) -> None:
    with pccheck.torch.Checkpointer(path, fingerprint=HOSTILE[0]) as checkpointer:
        checkpointer.save(1, state={name: np.arange(4) for name in HOSTILE})
    page = tmp_path / "<b>page&'.html"
    html = report(path, page)
    assert not set("\u202e\u2066\u0000\u001b") & set(html)
    seen = browse(page, 1280)
    assert seen["title"] != "broken out" and seen["images"] == 0
    assert seen["scripts"] == 2, "the page's own and the probe"
    names = [name for name in seen["names"] if name.startswith("state.")]
    assert len(names) == len(HOSTILE)
    assert sum("broken out" in name for name in names) == 4
    assert seen["requests"] == []


@pytest.mark.parametrize("width", [400, 1280])
def test_a_page_fits_and_sorts(path: Path, tmp_path: Path, width: int) -> None:
    with pccheck.torch.Checkpointer(path, retain=3) as checkpointer:
        for step in range(1, 6):
            state = {f"model.layers.{i}.weight_{'x' * i}": pattern(i, i + 1) for i in range(60)}
            checkpointer.save(step, state=state)
    page = tmp_path / "page.html"
    report(path, page, "--verify", "full")
    seen = browse(page, width)
    assert seen["width"] == width and seen["overflow"] == 0
    assert seen["sorted"] and seen["tables"] >= 1
    assert seen["unlabelled"] == 0 and seen["requests"] == []
    assert seen["headings"] == [
        "Slots",
        "Findings",
        "Timeline",
        "Tensors",
        "Chunks",
        "Superblocks",
        "Identity",
    ]


def test_many_tensors_are_folded(path: Path, tmp_path: Path) -> None:
    state = {f"model.layers.{i // 40}.t{i % 40}": np.zeros(1) for i in range(10_000)}
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.save(1, state=state)
    page = tmp_path / "page.html"
    html = report(path, page)
    assert html.count("<summary><code>state.model.layers.") == 250
    names = [name for name in browse(page, 1280)["names"] if name.startswith("state.")]
    assert len(names) == 10_000


def test_damage_is_shown(path: Path, tmp_path: Path) -> None:
    with pccheck.torch.Checkpointer(path, retain=2) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, state={"x": pattern(step)})
    flip_byte_of(path, 2)
    html = report(path, tmp_path / "page.html", "--verify", "full", status=4)
    assert "Damaged" in html and 'class="broken"' in html
    assert "loads <strong>step 1</strong>" in html


def test_a_wreck_has_a_page(tmp_path: Path) -> None:
    wreck = tmp_path / "wreck"
    wreck.write_bytes(b"\x00" * 100_000)
    page = tmp_path / "page.html"
    html = report(wreck, page, status=4)
    assert "cannot be used" in html and "PCK-" in html
    assert browse(page, 400)["overflow"] == 0
