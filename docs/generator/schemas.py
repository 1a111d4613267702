"""The schemas of what `--json` prints, on one page."""

from __future__ import annotations

import json

from repository import ROOT, Pages

_HEAD = """# JSON schemas

Every tool prints JSON for programs with `--json`.
These schemas describe it, and a test compares each with what its tool prints.

"""


def pages() -> Pages:
    text = _HEAD
    for path in sorted((ROOT / "spec/schemas").glob("*.json")):
        schema = path.read_text().strip()
        title = json.loads(schema).get("title", "")
        text += f"## {path.stem}\n\n"
        text += f"{title}\n\n" if title and title != path.stem else ""
        text += f"```json\n{schema}\n```\n\n"
    return {"spec/schemas.md": text}
