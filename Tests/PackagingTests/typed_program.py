# pyright: strict
"""What a strict checker sees of the installed package: `make typecheck` runs it on this file."""

from __future__ import annotations

from typing import assert_type

import numpy as np
import torch

import pccheck
import pccheck.numpy
import pccheck.torch
from pccheck import metrics
from pccheck.policies import Auto, Every


def of_torch(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    with pccheck.torch.Checkpointer("run.pcc", in_flight=2, policy=Auto(budget=0.02)) as ckpt:
        assert_type(ckpt, pccheck.torch.Checkpointer)
        start = ckpt.resume(model=model, optimizer=optimizer, strict=False)
        assert_type(start, int)
        report = ckpt.resume_report
        if report is not None and not report.is_exact:
            assert_type(report.missing, list[str])
        handle = ckpt.save(start, model=model, urgent=True)
        assert_type(handle, pccheck.SaveHandle)
        later = ckpt.maybe_save(start + 1, model=model)
        assert_type(later, pccheck.SaveHandle | None)
        outcome = handle.wait(timeout=1.5)
        assert_type(outcome, pccheck.Outcome)
        assert_type(outcome.durable_seconds, float | None)
        assert_type(ckpt.steps(), list[int])
        assert_type(metrics.prometheus_text(ckpt), str)
        return start


def of_numpy(weights: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> list[int]:
    with pccheck.numpy.Checkpointer("arrays.pcc", policy=Every(steps=10, seconds=60)) as ckpt:
        ckpt.resume(weights=weights)
        try:
            ckpt.save(3, weights=weights).wait_staged()
        except pccheck.NoSpace as error:
            assert_type(error.errno, int | None)
            assert_type(error.slot, int | None)
        except pccheck.StateMismatch as mismatch:
            print(mismatch.report)
    return [info.step for info in pccheck.checkpoints("arrays.pcc")]


def of_anything(state: dict[str, object]) -> int:
    with pccheck.Checkpointer("plain.pcc", on_sigterm="save") as ckpt:
        start, _ = ckpt.resume()
        assert_type(start, int)
        ckpt.save(start, state, metadata="a note")
        assert_type(ckpt.should_stop(), bool)
    assert_type(pccheck.close_all(), int)
    return start
