"""Reads from what a stage printed how many checks passed, failed and were skipped, and why.

A count is never invented: it is what the tool itself printed. A run that broke off counts what it
finished, and one failure more.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Counts:
    """What one stage did. `reasons` counts the skipped checks by their reason."""

    passed: int = 0
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    #: Names of what failed, and why where the tool prints that.
    failures: list[str] = field(default_factory=list)
    #: False when the tool began and did not come to its closing line.
    is_complete: bool = True

    @property
    def skipped(self) -> int:
        return sum(self.reasons.values())

    @property
    def is_empty(self) -> bool:
        return self.passed + self.failed + self.skipped == 0


def count_swift(text: str) -> Counts:
    """swift-testing: its closing line counts every test, the failed and the skipped ones too."""
    counts = Counts()
    for name, reason in re.findall(r'^➜ +Test (.+?) skipped(?:: "?(.*?)"?)?\.?$', text, re.M):
        counts.reasons[reason or f"{name} gives no reason"] += 1
    names = re.findall(r"^✘ +Test (?!run with)(.+?) failed after", text, re.M)
    counts.failures = [name + _issues(name, text) for name in names]
    counts.failed = len(counts.failures)
    totals = re.findall(r"^\S +Test run with (\d+) tests?\b.* (?:passed|failed) after", text, re.M)
    if totals:
        total = sum(map(int, totals))
        counts.passed = max(0, total - counts.failed - counts.skipped)
    elif "Test run started" in text:
        passed = re.findall(r"^✔ +Test (?!run with).+ passed after", text, re.M)
        counts.passed = len(passed)
        counts.is_complete = False
    return counts


def _issues(name: str, text: str) -> str:
    """What swift-testing printed of the issues of a test, which may be far above its last line."""
    test = re.escape(re.sub(r" with \d+ test cases?$", "", name))
    issue = rf"^✘ +Test {test} recorded an issue (.*(?:\n↳ .*)*)"
    return "".join(f"\n{found}" for found in re.findall(issue, text, re.M))


def count_pytest(text: str) -> Counts:
    """pytest with `-rsfE`: its last line, and the list of reasons and failures above it."""
    counts = Counts()
    skipped = 0
    words = r"passed|failed|skipped|errors?|xfailed|xpassed|deselected|warnings?"
    line = rf"^=*\s*((?:\d+ (?:{words})(?:, )?)+) in [\d.]+s"
    for summary in re.findall(line, text, re.M):
        numbers = {word.rstrip("s"): int(n) for n, word in re.findall(r"(\d+) (\w+)", summary)}
        counts.passed += numbers.get("passed", 0) + numbers.get("xpassed", 0)
        counts.failed += numbers.get("failed", 0) + numbers.get("error", 0)
        skipped += numbers.get("skipped", 0) + numbers.get("xfailed", 0)
    for part in re.split(r"^=+ short test summary info =+$", text, flags=re.M)[1:]:
        for number, reason in re.findall(r"^SKIPPED \[(\d+)\] (?:\S+?: )?(.*)$", part, re.M):
            counts.reasons[reason] += int(number)
        counts.failures += re.findall(r"^(?:FAILED|ERROR) (.+)$", part, re.M)
    if skipped > counts.skipped:
        counts.reasons["pytest gives no reason"] += skipped - counts.skipped
    return counts


def count_lines(passing: str, failing: str = r"(?!)") -> Callable[[str], Counts]:
    """Counts each line that states a verdict as one check."""

    def count(text: str) -> Counts:
        counts = Counts(passed=len(re.findall(passing, text, re.M)))
        counts.failures = [match.group(0) for match in re.finditer(failing, text, re.M)]
        counts.failed = len(counts.failures)
        return counts

    return count


#: The stages whose tools print counts or verdicts. Any other stage is one check.
COUNTERS: dict[str, Callable[[str], Counts]] = {
    "swift": count_swift,
    "python": count_pytest,
    "frameworks": count_pytest,
    "packaging": count_pytest,
    "docs": count_pytest,
    # mypy and pyright, once for each version of Python.
    "types": count_lines(
        r"^Success: no issues found in .*$|^0 errors, .*$",
        r"^Found \d+ errors? in .*$|^[1-9]\d* errors?, .*$",
    ),
    # Bounds without an error, and mistakes that the model rejects.
    "model": count_lines(
        r"^(?:N=|group, )\d.* errors: 0$|^(?:group, )?BUG_\w+: (?!not found).*$",
        r"^(?:N=|group, )\d.* errors: (?!0$).*$|^(?:group, )?BUG_\w+: not found.*$",
    ),
    # All seeds together, each planted mistake, persistent memory.
    "simulation": count_lines(
        r"^(?:simulation|groups|persistent memory): .*, 0 violations.*$"
        r"|^\w+: after \d+ seeds: (?!MISSED).*$",
        r"^(?:simulation|groups|persistent memory): .*, [1-9]\d* violations.*$"
        r"|^\w+: after \d+ seeds: MISSED$",
    ),
    "fuzz": count_lines(
        r"^\w+: \d+ executions, .*, 0 crashes$", r"^\w+: \d+ executions, .*, [1-9]\d* crashes$"
    ),
    # All runs together.
    "threads": count_lines(r"^\d+ runs, .*, no violation$", r"^seed \d+: .*$"),
    # The numbered cases of cabi, and the run over persistent memory.
    "c": count_lines(r"^ok \d+ - .*$|^persistent memory: ok$"),
}


def count(stage: str, text: str, status: int) -> Counts:
    """What came of a stage that printed `text` and ended with `status`."""
    if stage not in COUNTERS:
        counts = Counts(passed=int(status == 0))
    else:
        counts = count_so_far(stage, text)
    if not counts.is_complete:
        counts.failed += 1
        counts.failures.append("the run broke off before its closing line")
    elif status != 0 and counts.failed == 0:
        counts.failed = 1
        counts.failures.append(_last_words(text) or f"it ended with status {status}")
    elif status == 0 and counts.is_empty:
        # A filter that matches nothing must not look like a success.
        counts.failed = 1
        counts.failures.append("it succeeded, but its output reports no check")
    return counts


def count_so_far(stage: str, text: str) -> Counts:
    """What an interrupted stage had counted: as a whole it has neither passed nor failed."""
    return COUNTERS[stage](text) if stage in COUNTERS else Counts()


def _last_words(text: str) -> str | None:
    """The last line of make or of a compiler that names an error."""
    lines = re.findall(r"^.*(?:\*\*\* |\berror: ).*$", text, re.M)
    return lines[-1].strip() if lines else None
