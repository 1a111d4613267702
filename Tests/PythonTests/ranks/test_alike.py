"""Decisions that depend on time, which all ranks make alike."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from gang import Gang, ended

Job = Callable[..., Gang]


def test_ranks_skip_the_same_saves(job: Job) -> None:
    code = """
    import time
    t = Training(rank)
    with pcd.Checkpointer(folder + "/run", on_busy="skip", timeout=30) as ckpt:
        ckpt.resume(**t.state)
        for step in range(60):
            t.step()
            if rank == 1 and step % 20 == 10:
                # A disk that is slow for a moment, on one rank.
                time.sleep(0.05)
            handle = ckpt.save(step, **t.state)
            say("save", step, handle.state == "skipped")
        last = ckpt.wait_group()
        say("void", ckpt.stats()["group"]["void_count"])
    """
    gang = ended(job(2, code))
    assert gang.said(0, "save") == gang.said(1, "save")
    skipped = [step for step, is_skipped in gang.said(0, "save") if is_skipped == "True"]
    assert 0 < len(skipped) < 60
    assert [gang.said(rank, "void") for rank in range(2)] == [[["0"]]] * 2


def test_an_interval_that_is_measured_is_the_same_on_all_ranks(job: Job) -> None:
    code = """
    import time
    t = Training(rank)
    with pcd.Checkpointer(folder + "/run", policy=pccheck.policies.Auto(0.2)) as ckpt:
        ckpt.resume(**t.state)
        for step in range(150):
            t.step()
            time.sleep(0.002 * (rank + 1))
            if ckpt.maybe_save(step, **t.state) is not None:
                say("save", step)
        ckpt.wait_group()
        say("void", ckpt.stats()["group"]["void_count"])
    """
    gang = ended(job(2, code))
    assert gang.said(0, "save") == gang.said(1, "save")
    assert len(gang.said(0, "save")) > 1
    assert [gang.said(rank, "void") for rank in range(2)] == [[["0"]]] * 2


def test_seconds_are_over_for_all_ranks_at_once(job: Job) -> None:
    code = """
    import time
    t = Training(rank)
    policy = pccheck.policies.Every(seconds=0.05)
    with pcd.Checkpointer(folder + "/run", policy=policy) as ckpt:
        ckpt.resume(**t.state)
        time.sleep(0.03 * rank)
        for step in range(60):
            t.step()
            time.sleep(0.005)
            if ckpt.maybe_save(step, **t.state) is not None:
                say("save", step)
        ckpt.wait_group()
    """
    gang = ended(job(2, code))
    assert gang.said(0, "save") == gang.said(1, "save")
    assert len(gang.said(0, "save")) > 2


def test_a_signal_to_one_rank_ends_all_at_one_step(job: Job) -> None:
    code = """
    import time
    t = Training(rank)
    with pcd.Checkpointer(folder + "/run", policy=50, on_sigterm="save") as ckpt:
        start = ckpt.resume(**t.state)
        say("start", start)
        for step in range(start, 100000):
            t.step()
            time.sleep(0.002)
            if ckpt.maybe_save(step, **t.state) is not None:
                say("save", step)
            if step == start + 20:
                say("ready")
    """
    gang = job(2, code)
    while not gang.said(1, "ready"):
        time.sleep(0.01)
        assert None in gang.wait(0)
    gang.signal(1, signal.SIGTERM)
    ended(gang, [143, 143])
    logs = [gang.log(rank) for rank in range(2)]
    steps = {log.split("SIGTERM: step ")[1].split(" ")[0] for log in logs}
    assert len(steps) == 1
    step = steps.pop()
    assert all(f"INFO step {step} is durable on all ranks (2)" in log for log in logs)
    again = job(2, code)
    while not (again.said(0, "start") and again.said(1, "start")):
        time.sleep(0.01)
        assert None in again.wait(0)
    assert {again.said(rank, "start")[0][0] for rank in range(2)} == {str(int(step) + 1)}


def test_a_call_costs_the_loop_some_tens_of_microseconds(job: Job) -> None:
    code = """
    import time
    t = Training(rank)
    policy = pccheck.policies.Auto(0.2)
    with pcd.Checkpointer(folder + "/run", policy=policy, on_sigterm="save") as ckpt:
        ckpt.resume(**t.state)
        ckpt.save(0, **t.state).wait_group()
        costs = []
        for step in range(1, 200):
            dist.barrier()
            time.sleep(0.001)
            began = time.perf_counter()
            ckpt.is_due(step)
            costs.append(time.perf_counter() - began)
        say("median", sorted(costs)[len(costs) // 2] * 1e6)
    """
    gang = ended(job(2, code))
    # A machine that tests share is slow; what this finds is a wait for another rank.
    assert float(gang.said(0, "median")[0][0]) < 2000
    print(gang.said(0, "median"))
