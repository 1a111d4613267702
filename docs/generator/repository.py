"""Where things are, and how the programs that describe them are run."""

from __future__ import annotations

import subprocess
from pathlib import Path

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"

#: The Markdown of pages by their names in the site.
Pages = dict[str, str]


class DocumentationError(PluginError):
    """Something that a page is made from is not as the generator expects it."""


def output_of(*command: str | Path) -> str:
    """What a command prints. One that fails ends the build with its words."""
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        words = " ".join(map(str, command))
        raise DocumentationError(f"{words} ended with {run.returncode}: {run.stderr.strip()}")
    return run.stdout
