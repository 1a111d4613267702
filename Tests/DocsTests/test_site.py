"""The site of `make docs`: its links, and each of its pages in a real browser, from files."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, browser
from links import faults_of

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "site"
# Pictures of one page of each kind are kept to be looked at.
SCREENS = ROOT / "build" / "site-screens"
PROBE = (Path(__file__).parent / "probe.js").read_text()
# name, width, dark
SCREEN_SIZES = [("wide", 1280, False), ("narrow", 390, False), ("dark", 1280, True)]

PAGES = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html"))
KINDS = [
    "index.html",
    "how-it-works.html",
    "file-map.html",
    "compared.html",
    "tools/index.html",
    "tools/pcfsck.html",
    "spec/PYTHON.html",
    "spec/PYTHON-FAILURES.html",
    "spec/FORMAT.html",
    "spec/PERFORMANCE.html",
    "spec/schemas.html",
    "spec/decisions/index.html",
    "api/c.html",
    "api/python/torch.html",
    "api/swift/CheckpointWriter.html",
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.fail("chromium is not installed; run .ci/install-packages --with-tests")
    with browser(tmp_path_factory.mktemp("profile")) as shown:
        yield shown


def seen(page: Browser, file: Path, width: int, is_dark: bool) -> list[str]:
    """Everything that is wrong with a page at that width and in that theme."""
    scheme = "slate" if is_dark else "default"
    state = page.evaluate("[location.href, document.body.dataset.mdColorScheme]")
    if state == [file.as_uri(), scheme]:
        page.resize(width, is_dark)
    else:
        # A page chooses its theme once.
        page.show(file.as_uri(), width, is_dark)
        assert page.evaluate("document.body.dataset.mdColorScheme") == scheme
    faults: list[str] = page.evaluate(PROBE)
    away = [url for url in page.requests if not url.startswith(("file:", "data:", "about:"))]
    return faults + [f"requests {url}" for url in away] + page.complaints


def test_the_site_has_a_page_of_each_kind() -> None:
    assert not set(KINDS) - set(PAGES), "run make docs"


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere() -> None:
    assert faults_of(SITE) == []


def test_each_page_is_found_in_the_navigation() -> None:
    text = (SITE / "index.html").read_text()
    missing = [name for name in PAGES if f'href="{name}"' not in text]
    assert missing == []


@pytest.mark.parametrize("path", PAGES)
def test_a_page_fits_loads_and_can_be_read(page: Browser, path: str) -> None:
    faults = {}
    for name, width, is_dark in SCREEN_SIZES:
        # The themes differ in colours only, which pages of one kind share.
        if is_dark and path not in KINDS:
            continue
        found = seen(page, SITE / path, width, is_dark)
        if found:
            faults[name] = found
        if path in KINDS:
            page.screenshot(SCREENS / f"{path.replace('/', '-')[:-5]}-{name}.png")
    assert faults == {}


def test_search_finds_a_word_without_a_server(page: Browser) -> None:
    page.show((SITE / "index.html").as_uri(), 1280)
    page.evaluate(
        """(async () => {
          const input = document.querySelector("[data-md-component=search-query]");
          input.focus();
          input.value = "fdatasync";
          input.dispatchEvent(new Event("keyup"));
          for (let i = 0; i < 200; i++) {
            if (document.querySelector(".md-search-result__item")) return;
            await new Promise(done => setTimeout(done, 50));
          }
        })()"""
    )
    hits = page.evaluate(
        "[...document.querySelectorAll('.md-search-result__link')].map(link => link.href)"
    )
    assert any("spec/COMMIT.html" in hit for hit in hits), hits
    assert page.complaints == []


def test_no_page_holds_a_path_of_the_machine() -> None:
    texts = [*SITE.rglob("*.html"), *SITE.rglob("search_index.js")]
    assert [str(file) for file in texts if str(ROOT) in file.read_text()] == []


PLANTED = {
    "a link to no page": ('<a href="nowhere.html">x</a>', "does not exist"),
    "a link to no anchor": ('<a href="#nowhere">x</a>', "no such anchor"),
    "a link out of the site": ('<a href="../../secret.html">x</a>', "leaves the site"),
    "an image that is not there": ('<img src="nowhere.png">', "does not exist"),
    "a font of another host": (
        '<link rel="stylesheet" href="https://fonts.example/x.css">', "loads https"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("markup", "words"), PLANTED.values(), ids=PLANTED)
def test_a_planted_reference_is_found(tmp_path: Path, markup: str, words: str) -> None:
    shutil.copytree(SITE, tmp_path / "site", copy_function=os.link)
    plant(tmp_path / "site/guarantees.html", markup)
    faults = faults_of(tmp_path / "site")
    assert len(faults) == 1 and words in faults[0] and "guarantees.html" in faults[0]


SEEN = {
    "too wide": ("<div style='width: 2000px'>x</div>", "pixels wider"),
    "no image": ("<img src='nowhere.png'>", "no image"),
    "an error": ("<script>throw new Error('planted')</script>", "planted"),
    "a request": ("<script src='http://127.0.0.1:9/x.js'></script>", "requests http"),
    "pale words": ("<div class='md-typeset'><p style='color: #ccc; background: #fff'>x</p></div>",
                   "contrast"),
    "words over words": (
        "<figure class='drawing'><svg viewBox='0 0 100 20'><text y='9'>one</text>"
        "<text y='10'>two</text></svg></figure>",
        "over each other",
    ),
    "words out of a box": (
        "<figure class='drawing'><svg viewBox='0 0 300 20'><rect x='130' width='20' height='20'/>"
        "<text x='100' y='12'>words words</text></svg></figure>",
        "wider than its box",
    ),
}


@pytest.mark.parametrize(("markup", "words"), SEEN.values(), ids=SEEN)
def test_a_planted_fault_is_seen(
    page: Browser, tmp_path: Path, markup: str, words: str
) -> None:
    shutil.copytree(SITE, tmp_path / "site", copy_function=os.link)
    file = tmp_path / "site/guarantees.html"
    plant(file, markup)
    faults = seen(page, file, 390, False)
    assert any(words in fault for fault in faults), faults


def plant(file: Path, markup: str) -> None:
    """Into a copy: the others are links to the site."""
    text = file.read_text()
    file.unlink()
    file.write_text(re.sub("(?=</body>)", lambda _: markup, text, count=1))
