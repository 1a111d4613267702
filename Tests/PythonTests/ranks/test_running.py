"""Jobs of two and four ranks that nothing happens to, and the calls of the checkpointer."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from gang import Gang, ended


Job = Callable[..., Gang]


@pytest.mark.parametrize("world", [2, 4])
def test_a_run_that_is_resumed_is_the_same_run(job: Job, tmp_path: Path, world: int) -> None:
    straight = ended(job(world, "train(rank, folder + '/a', 12)"))
    losses = [straight.said(rank, "loss") for rank in range(world)]
    assert len({loss for _, loss in (rank[0] for rank in losses)}) == world
    first = ended(job(world, "train(rank, folder + '/b', 5)"))
    assert all(first.said(rank, "start") == [["0"]] for rank in range(world))
    second = ended(job(world, "train(rank, folder + '/b', 12)"))
    for rank in range(world):
        assert second.said(rank, "start") == [["5"]]
        assert second.said(rank, "loss") == losses[rank][5:]
    names = sorted(path.name for path in (tmp_path / "b" / "run").glob("*.pcc"))
    assert names == [f"rank-0000{rank}-of-0000{world}.pcc" for rank in range(world)]


def test_handles_stats_and_the_log_tell_the_same(job: Job) -> None:
    code = """
    t = Training(rank)
    with pcd.Checkpointer(folder + "/run") as ckpt:
        ckpt.resume(**t.state)
        handle = ckpt.save(3, **t.state, metadata={"loss": 0.5})
        say("local", handle.wait().kind)
        outcome = handle.wait_group()
        say("outcome", outcome.durable, outcome.step, outcome.attempt)
        group = ckpt.stats()["group"]
        say("group", group["attempt"], group["watermark"]["step"], group["undecided_count"],
            group["exchange_count"], group["exchange_nanoseconds"] > 0)
    """
    gang = ended(job(2, code))
    for rank in range(2):
        assert gang.said(rank, "local") == [["durable"]]
        assert gang.said(rank, "outcome") == [["True", "3", "1"]]
        assert gang.said(rank, "group") == [["1", "3", "0", "1", "True"]]
        log = gang.log(rank)
        assert re.search(r"INFO step 3: .* durable in [\d.]+ ms", log)
        assert re.search(r"INFO step 3 is durable on all ranks \(2\)", log)


def test_a_rewind_begins_an_attempt_and_steps_are_named_by_it(job: Job) -> None:
    code = """
    t = Training(rank)
    with pcd.Checkpointer(folder + "/run", retain=3) as ckpt:
        ckpt.resume(**t.state)
        for step in range(4):
            t.step()
            ckpt.save(step, **t.state).wait_group()
        state = ckpt.load(2)
        say("attempt", ckpt.stats()["group"]["attempt"], sorted(state))
        t.step()
        ckpt.save(3, **t.state).wait_group()
        say("again", ckpt.wait_group().attempt)
        ckpt.rewind(3)
        say("third", ckpt.stats()["group"]["attempt"])
    """
    gang = ended(job(2, code))
    for rank in range(2):
        assert gang.said(rank, "attempt")[0][0] == "2"
        assert gang.said(rank, "again") == [["2"]]
        assert gang.said(rank, "third") == [["3"]]


def test_a_file_that_grows_goes_on_with_its_attempt(job: Job) -> None:
    code = """
    t = Training(rank)
    with pcd.Checkpointer(folder + "/run") as ckpt:
        ckpt.resume(**t.state)
        ckpt.save(0, **t.state).wait_group()
        more = torch.full((1 << (18 + rank),), float(rank))
        handle = ckpt.save(1, **t.state, more=more)
        say("attempt", handle.wait_group().attempt)
    u = Training(rank)
    with pcd.Checkpointer(folder + "/run") as ckpt:
        more = torch.zeros(1 << (18 + rank))
        say("resumed", ckpt.resume(**u.state, more=more), float(more.mean()))
    """
    gang = ended(job(2, code))
    for rank in range(2):
        assert gang.said(rank, "attempt") == [["1"]]
        assert gang.said(rank, "resumed") == [["2", f"{rank}.0"]]
        # The state of rank 0 still fits.
        assert ("resized" in gang.log(rank)) == (rank == 1)


def test_another_number_of_ranks_continues_the_run(job: Job, tmp_path: Path) -> None:
    code = """
    t = Training(rank)
    with pcd.Checkpointer(folder + "/run", shared=("model", "head", "optimizer")) as ckpt:
        start = ckpt.resume(**t.state, strict=False)
        say("start", start, float(t.head.weight.sum()).hex())
        for step in range(start, start + 3):
            t.step()
            ckpt.save(step, **t.state)
        say("end", float(t.head.weight.sum()).hex())
    """
    end = ended(job(2, code)).said(0, "end")[0][0]
    four = ended(job(4, code))
    assert {tuple(four.said(rank, "start")[0]) for rank in range(4)} == {("3", end)}
    end = four.said(0, "end")[0][0]
    two = ended(job(2, code))
    assert [two.said(rank, "start") for rank in range(2)] == [[["6", end]]] * 2
    assert len(list((tmp_path / "run").glob("*.pcc"))) == 6


def test_copies_are_of_complete_checkpoints(job: Job, tmp_path: Path) -> None:
    code = """
    t = Training(rank)
    keep = pccheck.Keep(every=2)
    with pcd.Checkpointer(folder + "/run", in_flight=3, keep=keep) as ckpt:
        ckpt.resume(**t.state)
        for step in range(5):
            t.step()
            ckpt.save(step, **t.state).wait_group()
        ckpt.keep(4, folder + "/milestone").wait()
    """
    ended(job(2, code))
    for rank in range(2):
        name = f"rank-0000{rank}-of-00002"
        kept = tmp_path / "run" / f"{name}-kept"
        assert (kept / "step-000000002.pcc").exists()
        assert (tmp_path / "milestone" / f"{name}.pcc").exists()


def test_one_process_needs_no_torch_distributed(job: Job) -> None:
    code = """
    dist.destroy_process_group()
    t = Training(0)
    for turn in range(2):
        with pcd.Checkpointer(folder + "/run") as ckpt:
            say("start", ckpt.resume(**t.state), ckpt.rank, ckpt.world_size)
            ckpt.save(turn, **t.state)
            say(ckpt.wait_group().kind)
    """
    gang = ended(job(1, code))
    assert gang.said(0, "start") == [["0", "0", "1"], ["1", "0", "1"]]
    assert gang.said(0, "durable") == [["on", "all", "ranks"]] * 2


def test_a_rank_that_closes_leaves_no_other_without_its_verdict(job: Job) -> None:
    """Its connections stay until the slower rank has heard the same."""
    code = """
    import time
    from pccheck._group.exchange import Exchange
    if rank == 0:
        settle = Exchange._settle
        def settle_late(self, save, error):
            time.sleep(1)
            say("closed", os.path.exists(folder + "/closed"))
            settle(self, save, error)
        Exchange._settle = settle_late
    t = Training(0)
    with pcd.Checkpointer(folder + "/run") as ckpt:
        ckpt.save(0, **t.state)
    if rank == 1:
        open(folder + "/closed", "w").close()
    """
    assert ended(job(2, code)).said(0, "closed") == [["False"]]


def test_a_rank_that_stays_keeps_no_other_for_long(job: Job) -> None:
    code = """
    import time
    t = Training(0)
    ckpt = pcd.Checkpointer(folder + "/run")
    ckpt.save(0, **t.state).wait_group()
    if rank == 1:
        while not os.path.exists(folder + "/closed"):
            time.sleep(0.05)
    ckpt.close()
    open(folder + "/closed", "w").close()
    say("ended")
    """
    gang = ended(job(2, code))
    assert gang.said(0, "ended") == gang.said(1, "ended") == [[]]


def test_connections_that_are_closed_are_no_riddle(job: Job) -> None:
    """As at the end of a program that does not close its checkpointer."""
    code = """
    transport = pcd.TorchTransport()
    transport.open_channels(["ends"], 10)
    transport.close()
    for call in ("transport.begin_and('ends', [1])", "transport.gather(b'', None, 'ends')"):
        try:
            eval(call)
        except pccheck.TransportFailed as error:
            say("error", error)
    """
    errors = ended(job(1, code)).said(0, "error")
    assert len(errors) == 2
    assert all("closed its connections" in " ".join(words) for words in errors)


def test_a_checkpointer_that_is_dropped_closes_its_file(job: Job) -> None:
    code = """
    import gc
    t = Training(rank)
    ckpt = pcd.Checkpointer(folder + "/run")
    ckpt.resume(**t.state)
    ckpt.save(0, **t.state).wait_group()
    del ckpt
    gc.collect()
    say("start", pcd.Checkpointer(folder + "/run").resume(**t.state))
    """
    gang = ended(job(2, code))
    assert [gang.said(rank, "start") for rank in range(2)] == [[["1"]]] * 2


def test_a_forked_child_is_refused_and_does_no_harm(job: Job) -> None:
    code = """
    t = Training(rank)
    with pcd.Checkpointer(folder + "/run") as ckpt:
        ckpt.resume(**t.state)
        ckpt.save(0, **t.state).wait_group()
        child = os.fork()
        if child == 0:
            try:
                ckpt.save(1, **t.state)
            except pccheck.errors.Forked:
                say("forked")
            ckpt.close()
            os._exit(0)
        say("child", os.waitpid(child, 0)[1])
        say("after", ckpt.save(1, **t.state).wait_group().durable)
    """
    gang = ended(job(2, code))
    for rank in range(2):
        assert gang.said(rank, "forked") == [[]]
        assert gang.said(rank, "child") == [["0"]]
        assert gang.said(rank, "after") == [["True"]]


def test_the_page_names_the_rank_files() -> None:
    assert "rank-00003-of-00008.pcc" in (ROOT / "spec" / "GROUP.md").read_text()


def test_what_a_module_stores_beside_its_tensors_is_each_ranks_own(job: Job) -> None:
    """DDP keeps neither the extra state of a module alike, nor what a hook adds."""
    code = """
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"rank": rank, "seen": torch.full((3,), float(rank))}
        def set_extra_state(self, state):
            say("extra", state["rank"], state["seen"].tolist())
    model = nn.parallel.DistributedDataParallel(Odd(2, 2))
    with pcd.Checkpointer(folder + "/run") as ckpt:
        ckpt.resume(model=model)
        say("kind", ckpt.save(0, model=model).wait_group().kind)
    with pcd.Checkpointer(folder + "/run") as ckpt:
        say("start", ckpt.resume(model=model))
    """
    gang = ended(job(2, code))
    for rank in range(2):
        assert gang.said(rank, "start") == [["1"]]
        assert gang.said(rank, "extra")[-1][0] == str(rank)
