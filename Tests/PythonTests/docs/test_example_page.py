"""spec/EXAMPLE.md shows what pcinspect prints of the fixtures that it names.

`PCCHECK_WRITE_EXAMPLE=1` writes the page anew.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import zstandard
from conftest import ROOT

PAGE = ROOT / "spec" / "EXAMPLE.md"
TOOL = Path(os.environ.get("PCINSPECT", ROOT / "build" / "bin" / "pcinspect"))
BLOCK = re.compile(r"```console\n\$ pcinspect (.*)\n((?:(?!```).*\n)*)```\n")


def output(arguments: str, folder: Path) -> str:
    """What the command prints; files are fixtures, unpacked into `folder`."""
    for name in re.findall(r"([\w-]+)\.pcc", arguments):
        archive = ROOT / "Fixtures" / "composed" / f"{name}.pcc.zst"
        image = zstandard.ZstdDecompressor().decompress(archive.read_bytes())
        (folder / f"{name}.pcc").write_bytes(image)
    run = subprocess.run([TOOL, *arguments.split()], capture_output=True, text=True, cwd=folder,
                         timeout=60, check=True)
    return run.stdout


@pytest.mark.skipif(not TOOL.exists(), reason=f"{TOOL} is not built; run make tools")
def test_the_page_shows_what_is_printed(tmp_path: Path) -> None:
    text = PAGE.read_text()
    assert len(BLOCK.findall(text)) >= 5

    def renewed(match: re.Match[str]) -> str:
        return f"```console\n$ pcinspect {match[1]}\n{output(match[1], tmp_path)}```\n"

    now = BLOCK.sub(renewed, text)
    if os.environ.get("PCCHECK_WRITE_EXAMPLE"):
        PAGE.write_text(now)
    assert now == PAGE.read_text(), "run this test with PCCHECK_WRITE_EXAMPLE=1"


def test_every_field_of_the_format_is_shown() -> None:
    """The page has each field of each table, where the table puts it."""
    text = (ROOT / "spec" / "FORMAT.md").read_text()
    rows = re.findall(r"^\| (\d+) \| \d+ \| (\w+) \| (?:refused|ignored) \|", text, re.M)
    shown = set(re.findall(r"^ +[✔·] (\w+) = ", PAGE.read_text(), re.M))
    assert len(rows) > 70
    # The retained slots of this file are none.
    assert {name for _, name in rows} - shown == {"reserved_4"}
