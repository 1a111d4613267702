"""The composed fixtures are those that their tables make, and each is another one."""

from __future__ import annotations

import collections
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = ROOT / "Fixtures"
sys.path.insert(0, str(ROOT / "Tests" / "Fixtures"))

import make  # noqa: E402

# What a file alone cannot show: a medium that fails, and a writer at work. FileCheckerTests does.
WITHOUT_FIXTURE = {"PCK-I012", "PCK-B008", "PCK-S007", "PCK-S009", "PCK-C005"}


def test_files_follow_from_the_tables() -> None:
    different = [str(path) for path, data in make.files() if not make.is_same(path, data)]
    assert not different, "run Tests/Fixtures/make.py"


def test_no_fixture_is_there_twice() -> None:
    names = [case.name for case in make.cases()]
    assert len(names) >= 350 and len(set(names)) == len(names)
    images = collections.defaultdict(list)
    for case in make.cases():
        images[bytes(case.image)].append(case.name)
    alike = [group for group in images.values() if len(group) > 1]
    # Two stories that leave the same bytes: told twice, because both must hold.
    assert alike == [], alike


def test_every_problem_is_found_somewhere() -> None:
    """Those of the files of a group together have tests in tools/test_group_folder.py."""
    text = (ROOT / "spec" / "PROBLEMS.md").read_text()
    known = set(re.findall(r"^\| (PCK-[A-FH-Z]\w+) \|", text, re.M))
    cases = [json.loads(path.read_text()) for path in (FIXTURES / "corrupt").glob("*.json")]
    shown = {finding["id"] for case in cases for finding in case["findings"]}
    assert known - shown == WITHOUT_FIXTURE, "problems that no fixture shows"
