"""What of a file is damaged, out of the report of its recovery."""

from __future__ import annotations

from typing import Any

from .reader import Reader

# Reasons of a recovery report for a damaged slot, rather than an unused one or a torn write.
_DAMAGE_REASONS = {
    "header-damaged", "table-damaged", "payload-damaged", "foreign", "misdirected", "unreadable",
}  # fmt: skip


def describe_damage(report: dict[str, Any]) -> list[str]:
    """What of a recovery report is damage: slots that cannot be used, and an end that is lost.

    As for pcfsck, a slot that the superblock does not name may be torn by a crash or by the writer
    that is at work; only a clean close excludes both.
    """
    slots = [
        f"slot {slot['slot']} is {slot['reason']}"
        + (f" ({slot['detail']})" if slot.get("detail") else "")
        for slot in report["slots"]
        if slot["reason"] in _DAMAGE_REASONS and (slot["is_named"] or report["is_clean_close"])
    ]
    if report["has_lost_end"]:
        slots.append("the end of the file is missing; pcfsck -y restores it")
    return slots


def damaged_slots(path: str, fingerprint: bytes | None) -> list[str]:
    """None in a file that never held a durable checkpoint: a crash tears what is not finished."""
    with Reader(path, fingerprint) as reader:
        found = reader.report()
    return describe_damage(found) if found["may_hold_durable"] else []
