"""What is behind an engine whose file was closed and opened again, as when it was resized."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# What `stats()` only ever adds to.
_COUNTERS = (
    "saved_count", "durable_count", "superseded_count", "skipped_count", "failed_count",
    "payload_byte_count", "stored_byte_count", "metadata_write_count", "chunk_write_count",
    "flush_count", "flush_nanoseconds", "write_nanoseconds", "compress_nanoseconds",
    "copy_nanoseconds", "staging_stall_nanoseconds", "busy_nanoseconds", "broken_pin_count",
)  # fmt: skip
# As many as one writer remembers.
_RECENT_COUNT = 16


@dataclass(frozen=True)
class Past:
    """What an engine leaves to the next engine of its file."""

    #: Of the last save, or what training went back to.
    last_step: int | None = None
    staged_wait_nanoseconds: int = 0
    stats: dict[str, Any] = field(default_factory=dict)

    def joined(self, stats: dict[str, Any]) -> dict[str, Any]:
        """What both engines counted."""
        then = self.stats
        if not then:
            return stats
        joined = {**stats, **{key: then[key] + stats[key] for key in _COUNTERS}}
        for leg in ("device_leg", "medium_leg"):
            joined[leg] = {key: then[leg][key] + value for key, value in stats[leg].items()}
        joined["devices"] = list(dict.fromkeys(then["devices"] + stats["devices"]))
        key = "write_queue_count_maximum"
        joined[key] = max(then[key], stats[key])
        joined["recent"] = [*then["recent"], *stats["recent"]][-_RECENT_COUNT:]
        for key in ("newest_durable_step", "newest_durable_sequence", "last_error"):
            if stats[key] is None:
                joined[key] = then[key]
        return joined
