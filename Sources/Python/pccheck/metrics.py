"""What a checkpointer did, for Prometheus, TensorBoard and progress bars.

    pccheck.metrics.write_textfile(ckpt, "/var/lib/node_exporter/textfile/pccheck.prom")
    prometheus_client.REGISTRY.register(pccheck.metrics.Collector(ckpt))
    for name, value in pccheck.metrics.scalars(ckpt).items():
        tensorboard.add_scalar(name, value, step)
    progress.set_postfix(pccheck.metrics.postfix(ckpt))
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpointer import BaseCheckpointer
from .errors import Closed, InvalidArgument

__all__ = ["Collector", "postfix", "prometheus_text", "scalars", "write_textfile"]

_NANO = 1e-9


@dataclass(frozen=True)
class _Metric:
    name: str
    kind: str
    help: str
    #: Key of ``stats()``, with a dot of a table in it; what one of its units is in that of the
    #: metric.
    key: str
    scale: float = 1

    def value(self, stats: Any) -> float | None:
        """Its value; None where there is nothing to report."""
        for key in self.key.split("."):
            stats = stats.get(key) if stats else None
        return None if stats is None else stats * self.scale


_METRICS = (
    _Metric("saves_total", "counter", "Checkpoints begun.", "saved_count"),
    _Metric("durable_total", "counter", "Checkpoints that became durable.", "durable_count"),
    _Metric(
        "superseded_total", "counter", "Checkpoints that a newer one overtook.", "superseded_count"
    ),
    _Metric("skipped_total", "counter", "Saves skipped because no slot was free.", "skipped_count"),
    _Metric("failed_total", "counter", "Checkpoints that failed.", "failed_count"),
    _Metric("in_flight", "gauge", "Checkpoints on their way.", "in_flight_count"),
    _Metric(
        "payload_bytes_total", "counter", "Bytes of state in finished checkpoints.",
        "payload_byte_count",
    ),
    _Metric(
        "stored_bytes_total", "counter", "Bytes written for them.", "stored_byte_count"
    ),
    _Metric(
        "blocked_seconds_total", "counter", "Time that save() took of its callers.",
        "blocked_nanoseconds", _NANO,
    ),
    _Metric(
        "staged_wait_seconds_total", "counter",
        "Time that optimizers and others waited for staged.", "staged_wait_nanoseconds", _NANO,
    ),
    _Metric(
        "busy_seconds_total", "counter", "Time that save() waited for a slot.",
        "busy_nanoseconds", _NANO,
    ),
    _Metric(
        "staging_stall_seconds_total", "counter", "Time that copying waited for the pool.",
        "staging_stall_nanoseconds", _NANO,
    ),
    _Metric(
        "write_seconds_total", "counter", "Time in writes, over all threads.",
        "write_nanoseconds", _NANO,
    ),
    *(
        metric
        for leg, way in (("device", "from devices to the pool"), ("medium", "to the medium"))
        for metric in (
            _Metric(
                f"{leg}_leg_bytes_total", "counter", f"Bytes that went {way}.",
                f"{leg}_leg.byte_count",
            ),
            _Metric(
                f"{leg}_leg_busy_seconds_total", "counter", f"Time in which some went {way}.",
                f"{leg}_leg.busy_nanoseconds", _NANO,
            ),
            _Metric(
                f"{leg}_leg_stall_seconds_total", "counter",
                f"Time in which some was due {way} and none went.",
                f"{leg}_leg.stall_nanoseconds", _NANO,
            ),
        )
    ),
    _Metric("flushes_total", "counter", "Flushes of the device.", "flush_count"),
    _Metric("flush_seconds_total", "counter", "Time in flushes.", "flush_nanoseconds", _NANO),
    _Metric("pool_bytes", "gauge", "Size of the staging pool.", "pool_byte_count"),
    _Metric("quarantined_slots", "gauge", "Slots out of use.", "quarantined_slot_count"),
    _Metric("fail_stop", "gauge", "1 when no more is saved.", "is_fail_stop"),
    _Metric(
        "durable_step", "gauge", "Step of the newest durable checkpoint.", "newest_durable_step"
    ),
    _Metric("staged_seconds", "gauge", "From save to staged, last.", "last_staged_seconds"),
    _Metric("durable_seconds", "gauge", "From save to durable, last.", "last_durable_seconds"),
    _Metric("interval_steps", "gauge", "Steps between saves, as chosen.", "interval_steps"),
)  # fmt: skip


def _samples(checkpointer: BaseCheckpointer) -> Iterator[tuple[_Metric, float]]:
    """What there is: a file that is not created yet, or was closed, has nothing to report."""
    try:
        stats = checkpointer.stats()
    except Closed:
        return
    recent = stats.get("recent") or []
    if recent:
        stats["last_staged_seconds"] = recent[-1]["staged_nanoseconds"] * _NANO
        stats["last_durable_seconds"] = recent[-1]["durable_nanoseconds"] * _NANO
    for metric in _METRICS:
        value = metric.value(stats)
        if value is not None:
            yield metric, value


def prometheus_text(
    checkpointer: BaseCheckpointer, labels: Mapping[str, str] | None = None
) -> str:
    """All metrics in the text format of Prometheus; ``labels`` are added to that of the file."""
    shown = {"file": str(checkpointer.path), **(labels or {})}
    for name in shown:
        if not (name.isascii() and name.isidentifier()):
            raise InvalidArgument(f"'{name}' is no name of a label; use letters, digits and _")
    text = ",".join(f'{name}="{_escaped(value)}"' for name, value in shown.items())
    lines = []
    for metric, value in _samples(checkpointer):
        lines.append(f"# HELP pccheck_{metric.name} {metric.help}")
        lines.append(f"# TYPE pccheck_{metric.name} {metric.kind}")
        lines.append(f"pccheck_{metric.name}{{{text}}} {_number(value)}")
    return "".join(line + "\n" for line in lines)


def write_textfile(
    checkpointer: BaseCheckpointer,
    path: str | os.PathLike[str],
    labels: Mapping[str, str] | None = None,
) -> None:
    """Writes the metrics to a file of node_exporter's textfile collector, in one piece.

    Everybody may read the file, whatever the umask: node_exporter runs as a user of its own.
    """
    target = Path(path)
    text = prometheus_text(checkpointer, labels)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class Collector:
    """A collector for ``prometheus_client``, which is imported when it is asked."""

    def __init__(
        self, checkpointer: BaseCheckpointer, labels: Mapping[str, str] | None = None
    ) -> None:
        self._checkpointer = checkpointer
        self._labels = {"file": str(checkpointer.path), **(labels or {})}

    def collect(self) -> Iterator[Any]:
        """Asked by the registry at each scrape."""
        from prometheus_client.core import (  # type: ignore[import-not-found,unused-ignore]
            CounterMetricFamily,
            GaugeMetricFamily,
        )

        names, values = list(self._labels), list(self._labels.values())
        for metric, value in _samples(self._checkpointer):
            family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            name = f"pccheck_{metric.name.removesuffix('_total')}"
            made = family(name, metric.help, labels=names)
            made.add_metric(values, value)
            yield made


def scalars(checkpointer: BaseCheckpointer, prefix: str = "pccheck/") -> dict[str, float]:
    """Names and values for ``SummaryWriter.add_scalar``."""
    return {prefix + metric.name: float(value) for metric, value in _samples(checkpointer)}


def postfix(checkpointer: BaseCheckpointer) -> dict[str, str]:
    """A few words for ``tqdm.set_postfix``: the newest durable step, and what is on its way."""
    values = {metric.name: value for metric, value in _samples(checkpointer)}
    if not values:
        return {}
    step = values.get("durable_step")
    shown = {"durable": "none" if step is None else str(int(step))}
    if values["in_flight"]:
        shown["in_flight"] = str(int(values["in_flight"]))
    if values["failed_total"]:
        shown["failed"] = str(int(values["failed_total"]))
    return shown


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
