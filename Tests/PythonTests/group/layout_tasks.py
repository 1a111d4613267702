"""More that the ranks of ``layout_child.py`` do."""

from __future__ import annotations

TASKS = {}
