"""Hooks of mkdocs: they add every page that is made from something else, so that none is stale.

The pages of spec/ keep their places, so that the links between them are right as they stand.
"""

from __future__ import annotations

from typing import Any

import c_api
import drawings
import file_map
import manual
import python_api
import schemas
import sections
import swift_api
import tables
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from repository import ROOT, Pages

_pages: Pages = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Makes the pages once for each build, and puts them into the navigation."""
    _pages.clear()
    _pages.update(_project_pages())
    for module in (manual, c_api, python_api, swift_api, schemas):
        _pages.update(module.pages())
    named = set(_names(config.nav))
    config.nav = _expanded(config.nav, named)
    # Its links need the address of a server, and the site is read from files.
    config.theme.static_templates.discard("404.html")
    return config


def _project_pages() -> Pages:
    paths = [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("spec/**/*.md"))]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def _names(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    children = nav.values() if isinstance(nav, dict) else nav
    return [name for child in children for name in _names(child)]


def _expanded(nav: Any, named: set[str]) -> Any:
    """The navigation with what each `folder/*` stands for in its place."""
    if isinstance(nav, dict):
        return {title: _expanded(child, named) for title, child in nav.items()}
    if isinstance(nav, str):
        return nav
    result: list[Any] = []
    for child in nav:
        if isinstance(child, str) and child.endswith("/*"):
            folder = child[:-2]
            result += [n for n in _pages if n.rpartition("/")[0] == folder and n not in named]
        else:
            result.append(_expanded(child, named))
    return result


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, text in _pages.items():
        files.append(File.generated(config, name, content=text))
    for image in sorted(ROOT.glob("spec/images/*")):
        name = str(image.relative_to(ROOT))
        files.append(File.generated(config, name, abs_src_path=str(image)))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    markdown = sections.included(markdown)
    markdown = drawings.placed(markdown)
    markdown = file_map.placed(markdown)
    return sections.linked(markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return tables.with_widths(html)
