"""What happens to all ranks when something happens to one: every wait ends, and names it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gang import Gang, ended

Job = Callable[..., Gang]

SAVE_FIVE = """
t = Training(rank)
with pcd.Checkpointer(folder + "/run") as ckpt:
    ckpt.resume(**t.state)
    for step in range(5):
        t.step()
        ckpt.save(step, **t.state).wait_group()
"""
RESUME = """
t = Training(rank)
try:
    with pcd.Checkpointer(folder + "/run", timeout=10) as ckpt:
        say("start", ckpt.resume(**t.state))
        t.step()
        say("all", ckpt.save(20, **t.state).wait_group().step)
except pccheck.CheckpointError as error:
    say("error", type(error).__name__, error)
"""


def error_of(gang: Gang, rank: int) -> str:
    """The error that a rank reported."""
    found = gang.said(rank, "error")
    assert len(found) == 1, gang.log(rank)
    return " ".join(found[0])


def file_of(tmp_path: Path, rank: int, world: int = 2) -> Path:
    return tmp_path / "run" / f"rank-{rank:05d}-of-{world:05d}.pcc"


def damage(path: Path, step: int) -> None:
    """Damages the payload of a step, and leaves its header alone."""
    import pccheck

    report = pccheck.report(path)
    (slot,) = [slot["slot"] for slot in report["slots"] if slot["step"] == step]
    size = (report["file_byte_count"] - report["slot_byte_count"] * 0) // len(report["slots"])
    content = bytearray(path.read_bytes())
    begin = len(content) - (len(report["slots"]) - slot) * size
    # Near the end of what the slot stores; the middle of a slot holds payload.
    payload = report["slots"][slot]["payload_byte_count"]
    needle = bytes(content[begin : begin + size])
    offset = begin + needle.find(b'{"') + payload // 2
    content[offset] ^= 0x40
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("victims", [[0], [1], [0, 1, 2, 3], [1, 3]])
def test_killed_ranks_cost_no_step_that_all_had(job: Job, victims: list[int]) -> None:
    code = "train(rank, folder, 40, pause=0.002); os._exit(0)"
    gang = job(4, code)
    deadline = time.monotonic() + 30
    while len(gang.said(2, "all")) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    for rank in victims:
        gang.signal(rank, signal.SIGKILL)
    time.sleep(0.05)
    gang.kill()
    newest = max(int(step) for rank in range(4) for (step,) in gang.said(rank, "all"))
    again = ended(job(4, code))
    starts = {again.said(rank, "start")[0][0] for rank in range(4)}
    assert len(starts) == 1
    assert int(starts.pop()) > newest >= 4


def test_a_rank_that_cannot_save_makes_the_save_void_everywhere(job: Job) -> None:
    code = """
    import resource
    t = Training(rank)
    with pcd.Checkpointer(folder + "/run") as ckpt:
        ckpt.resume(**t.state)
        ckpt.save(0, **t.state).wait_group()
        if rank == 1:
            # As a full disk would: the file cannot grow for the state.
            resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, resource.RLIM_INFINITY))
        more = torch.ones(1 << 19) * rank
        try:
            ckpt.save(1, **t.state, more=more).wait_group()
        except pccheck.CheckpointError as error:
            say("error", type(error).__name__, error)
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        say("all", ckpt.save(2, **t.state).wait_group().step)
        say("watermark", ckpt.stats()["group"]["watermark"]["step"])
    """
    gang = ended(job(2, code))
    assert error_of(gang, 0).startswith("VoidCheckpoint")
    assert "rank 1: " in error_of(gang, 0)
    assert "bytes beside the old file" in error_of(gang, 1)
    for rank in range(2):
        assert gang.said(rank, "all") == [["2"]]
        assert gang.said(rank, "watermark") == [["2"]]


def test_a_rank_that_saves_another_step_is_named_and_the_ranks_fall_in_again(job: Job) -> None:
    code = """
    t = Training(rank)
    with pcd.Checkpointer(folder + "/run") as ckpt:
        ckpt.resume(**t.state)
        ckpt.save(0, **t.state).wait_group()
        handles = []
        if rank == 1:
            handles.append(ckpt.save(3, **t.state))
        handles.append(ckpt.save(10, **t.state))
        for handle in handles:
            try:
                say("all", handle.wait_group().step)
            except pccheck.CheckpointError as error:
                say("error", type(error).__name__, error)
        say("all", ckpt.save(11, **t.state).wait_group().step)
    """
    gang = ended(job(2, code))
    assert "10 on rank 0; 3 on rank 1" in error_of(gang, 1)
    assert "10 on rank 0; 3 on rank 1" in gang.log(0)
    for rank in range(2):
        assert gang.said(rank, "all") == [["10"], ["11"]]


def test_a_stopped_rank_is_named_and_is_no_error_once_it_runs(job: Job) -> None:
    code = """
    t = Training(rank)
    with pcd.Checkpointer(folder + "/run", timeout=30) as ckpt:
        ckpt.resume(**t.state)
        ckpt.save(0, **t.state).wait_group()
        say("ready")
        if rank == 1:
            import time
            while not os.path.exists(folder + "/go"):
                time.sleep(0.01)
        handle = ckpt.save(1, **t.state)
        if rank == 0:
            try:
                handle.wait_group(3)
            except pccheck.CheckpointError as error:
                say("error", type(error).__name__, error)
        say("all", handle.wait_group().step)
    """
    gang = job(2, code)
    while not all(gang.said(rank, "ready") for rank in range(2)):
        time.sleep(0.01)
    gang.signal(1, signal.SIGSTOP)
    (gang.out.parent / "go").touch()
    deadline = time.monotonic() + 20
    while not gang.said(0, "error") and time.monotonic() < deadline:
        time.sleep(0.05)
    gang.signal(1, signal.SIGCONT)
    ended(gang)
    assert error_of(gang, 0).startswith("RanksMissing")
    assert "rank 1 did not end the save of step 1" in error_of(gang, 0)
    assert [gang.said(rank, "all") for rank in range(2)] == [[["1"]]] * 2


def test_a_rank_that_never_comes_to_the_restart_is_named(job: Job) -> None:
    code = """
    import time
    t = Training(rank)
    ckpt = pcd.Checkpointer(folder + "/run", timeout=2)
    if rank == 1:
        time.sleep(6)
    began = time.monotonic()
    try:
        ckpt.resume(**t.state)
    except pccheck.CheckpointError as error:
        say("error", type(error).__name__, error)
    say("seconds", time.monotonic() - began)
    os._exit(0)
    """
    gang = ended(job(2, code))
    assert error_of(gang, 0).startswith("RanksMissing rank 1 of 2 did not arrive in 2 s")
    assert float(gang.said(0, "seconds")[0][0]) < 5
    assert len(gang.said(1, "error")) == 1


def test_when_a_rank_dies_the_others_log_it_once_and_save_while_slots_last(job: Job) -> None:
    code = """
    import time
    t = Training(rank)
    ckpt = pcd.Checkpointer(folder + "/run", timeout=5)
    ckpt.resume(**t.state)
    ckpt.save(0, **t.state).wait_group()
    if rank == 1:
        os._exit(1)
    for step in range(1, 10):
        try:
            say("local", ckpt.save(step, **t.state).wait().step)
        except pccheck.CheckpointError as error:
            say("error", type(error).__name__, error)
            break
    began = time.monotonic()
    ckpt.close()
    say("closed", time.monotonic() - began)
    """
    gang = ended(job(2, code), [0, 1])
    assert len(gang.said(0, "local")) >= 2
    assert error_of(gang, 0).startswith("Busy")
    assert gang.log(0).count("cannot reach each other") == 1
    assert float(gang.said(0, "closed")[0][0]) < 5
    again = ended(job(2, RESUME))
    assert [again.said(rank, "start") for rank in range(2)] == [[["1"]]] * 2


def test_the_damaged_part_of_one_rank_takes_all_ranks_back(job: Job, tmp_path: Path) -> None:
    ended(job(2, SAVE_FIVE))
    damage(file_of(tmp_path, 1), 4)
    gang = ended(job(2, RESUME))
    for rank in range(2):
        assert gang.said(rank, "start") == [["4"]]
        assert "step 4 of attempt 1 (2 ranks) cannot be used: rank " in gang.log(rank)


def test_a_missing_file_is_named_and_nothing_is_overwritten(job: Job, tmp_path: Path) -> None:
    ended(job(2, SAVE_FIVE))
    away = tmp_path / "away"
    os.rename(file_of(tmp_path, 1), away)
    gang = ended(job(2, RESUME))
    for rank in range(2):
        assert error_of(gang, rank).startswith("NoCheckpoint")
        assert "rank 1: no file" in error_of(gang, rank)
    assert not file_of(tmp_path, 1).exists()
    os.rename(away, file_of(tmp_path, 1))
    again = ended(job(2, RESUME))
    assert [again.said(rank, "start") for rank in range(2)] == [[["5"]]] * 2


def test_a_file_of_another_run_is_refused_by_all(job: Job, tmp_path: Path) -> None:
    ended(job(2, SAVE_FIVE))
    own = file_of(tmp_path, 1).read_bytes()
    for rank in range(2):
        file_of(tmp_path, rank).rename(tmp_path / f"kept-{rank}")
    ended(job(2, SAVE_FIVE))
    file_of(tmp_path, 1).write_bytes(own)
    gang = ended(job(2, RESUME))
    for rank in range(2):
        assert "of run " in error_of(gang, rank)
        assert str(file_of(tmp_path, 0)) in error_of(gang, rank)


def test_the_file_of_another_rank_is_refused_by_all(job: Job, tmp_path: Path) -> None:
    ended(job(2, SAVE_FIVE))
    file_of(tmp_path, 1).write_bytes(file_of(tmp_path, 0).read_bytes())
    gang = ended(job(2, RESUME))
    for rank in range(2):
        assert "rank 0 of 2" in error_of(gang, rank)


def test_options_that_differ_are_named(job: Job) -> None:
    code = """
    t = Training(rank)
    try:
        with pcd.Checkpointer(folder + "/run", on_busy=["wait", "skip"][rank]) as ckpt:
            ckpt.resume(**t.state)
    except pccheck.CheckpointError as error:
        say("error", type(error).__name__, error)
    """
    gang = ended(job(2, code))
    for rank in range(2):
        text = error_of(gang, rank)
        assert "differ in on_busy: wait on rank 0; skip on rank 1" in text


def test_a_mismatch_on_one_rank_ends_the_resume_of_all(job: Job) -> None:
    ended(job(2, SAVE_FIVE))
    code = """
    t = Training(rank)
    if rank == 1:
        t.head = nn.Linear(24, 5)
    try:
        with pcd.Checkpointer(folder + "/run") as ckpt:
            ckpt.resume(model=t.model, head=t.head)
    except pccheck.CheckpointError as error:
        say("error", type(error).__name__, str(error).splitlines()[0])
    """
    gang = ended(job(2, code))
    assert error_of(gang, 1).startswith("StateMismatch")
    assert error_of(gang, 0).startswith("RankFailed rank 1: ")


def test_one_folder_twice_in_one_job_is_refused(job: Job) -> None:
    code = """
    t = Training(rank)
    first = pcd.Checkpointer(folder + "/run")
    first.resume(**t.state)
    first.save(0, **t.state).wait_group()
    second = pcd.Checkpointer(folder + "/run", timeout=10)
    try:
        second.resume(**t.state)
    except pccheck.CheckpointError as error:
        say("error", type(error).__name__, error)
    second.close()
    say("all", first.save(1, **t.state).wait_group().step)
    first.close()
    """
    gang = ended(job(2, code))
    for rank in range(2):
        assert error_of(gang, rank).startswith("Locked")
        assert gang.said(rank, "all") == [["1"]]


def test_the_plain_checkpointer_refuses_the_file_of_a_group(job: Job, tmp_path: Path) -> None:
    ended(job(2, SAVE_FIVE))
    import pccheck

    with pytest.raises(pccheck.InvalidArgument, match="whose ranks agree"):
        pccheck.Checkpointer(file_of(tmp_path, 0), rank=0, world_size=2)


def test_an_exception_on_one_rank_leaves_without_a_long_wait(job: Job) -> None:
    code = """
    import time
    t = Training(rank)
    began = time.monotonic()
    try:
        with pcd.Checkpointer(folder + "/run", timeout=60) as ckpt:
            ckpt.resume(**t.state)
            ckpt.save(0, **t.state).wait_group()
            if rank == 1:
                time.sleep(1)
                os._exit(7)
            ckpt.save(1, **t.state)
            began = time.monotonic()
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        say("left", time.monotonic() - began)
    """
    gang = ended(job(2, code), [0, 7])
    assert float(gang.said(0, "left")[0][0]) < 10


def test_a_step_that_a_rank_failed_to_begin_is_used_up_on_it_too(job: Job) -> None:
    """Else the parts of two saves would have one name, and a restart would take them for one."""
    code = """
    t = Training(rank)
    with pcd.Checkpointer(folder + "/run") as ckpt:
        ckpt.save(1, **t.state).wait_group()
        try:
            ckpt.save(2, wrong=print if rank else 0, **t.state).wait_group()
        except (TypeError, pccheck.CheckpointError) as error:
            say("first", type(error).__name__)
        try:
            ckpt.save(2, **t.state).wait_group()
        except pccheck.CheckpointError as error:
            say("error", type(error).__name__, error)
    """
    gang = ended(job(2, code))
    assert gang.said(0, "first") == [["VoidCheckpoint"]]
    assert gang.said(1, "first") == [["TypeError"]]
    for rank in range(2):
        assert error_of(gang, rank).startswith("StepBackwards")
        assert "step 2 is not above step 2" in error_of(gang, rank)
    again = ended(job(2, RESUME))
    assert [again.said(rank, "start") for rank in range(2)] == [[["2"]]] * 2


DIFFERING = """
t = Training(rank)
with pcd.Checkpointer(folder + "/run", shared=["same"]) as ckpt:
    if equal:
        ckpt.save(0, same=torch.zeros(9), **t.state).wait_group()
    handle = ckpt.save(1, same=torch.full((10,), float(rank)), **t.state)
    if killed:
        handle.wait()
        os._exit(0)
    try:
        handle.wait_group()
    except pccheck.CheckpointError as error:
        say("error", type(error).__name__, error)
"""
RESUME_SAME = """
t, same = Training(rank), torch.full((9,), 5.0)
with pcd.Checkpointer(folder + "/run", shared=["same"]) as ckpt:
    say("start", ckpt.resume(same=same, **t.state), same[0].item())
if rank == 0:
    try:
        say("read", pcd.load(folder + "/run")["same"][0].item())
    except pccheck.CheckpointError as error:
        say("read", type(error).__name__)
"""


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("equal", [True, False])
def test_a_restart_takes_no_mixture_of_what_differed(
    job: Job, equal: bool, killed: bool
) -> None:
    """Each file has its part durable; what shows that they do not fit is what the ranks claimed."""
    gang = ended(job(2, DIFFERING, equal=equal, killed=killed))
    if not killed:
        assert error_of(gang, 0).startswith("VoidCheckpoint")
    again = ended(job(2, RESUME_SAME))
    start = ["1", "0.0"] if equal else ["0", "5.0"]
    assert [again.said(rank, "start") for rank in range(2)] == [[start]] * 2
    # Alone as well, from the files of both.
    assert again.said(0, "read") == [["0.0" if equal else "StateFormatError"]]
    alone = ended(job(1, RESUME_SAME))
    assert alone.said(0, "start") == [start]


SKEWED = """
t = Training(rank)
with pcd.Checkpointer(folder + "/run", shared=["same"]) as ckpt:
    first = ckpt.save(0, same=torch.zeros(9), **t.state)
    if rank == 0:
        # It knows that the layout was compared, and claims nothing when it saves again.
        first.wait_group()
    ckpt.save(1, same=torch.ones(9), **t.state).wait_group()
"""


def test_a_rank_may_claim_what_another_one_need_not(job: Job) -> None:
    """The slower rank saves after the comparison of the first save, the faster one before."""
    ended(job(2, SKEWED))
    again = ended(job(2, RESUME_SAME))
    assert [again.said(rank, "start") for rank in range(2)] == [[["2", "1.0"]]] * 2
    assert again.said(0, "read") == [["1.0"]]


SECOND_DIFFERS = """
import threading
from pccheck._group.exchange import Exchange
both_began, exchange = threading.Event(), Exchange._exchange
Exchange._exchange = lambda self, save: both_began.wait(60) and exchange(self, save)
t = Training(rank)
with pcd.Checkpointer(folder + "/run", shared=["same"]) as ckpt:
    first = ckpt.save(0, same=torch.zeros(9), **t.state)
    second = ckpt.save(1, same=torch.full((9,), float(rank)), **t.state)
    both_began.set()
    say("first", first.wait_group().durable)
    try:
        say("second", second.wait_group().durable)
    except pccheck.VoidCheckpoint as error:
        say("error", error)
"""


def test_what_is_told_to_be_durable_on_all_ranks_is_not_void_at_a_restart(job: Job) -> None:
    """Both saves began before any was compared, so both have claims, which a restart compares."""
    gang = ended(job(2, SECOND_DIFFERS))
    assert gang.said(0, "first") == gang.said(1, "first") == [["True"]]
    assert all("'same' has other values" in error_of(gang, rank) for rank in range(2))
    again = ended(job(2, RESUME_SAME))
    assert [again.said(rank, "start") for rank in range(2)] == [[["1", "0.0"]]] * 2


EMPTY = """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.register_buffer("unused", torch.empty(0))
net = torch.nn.parallel.DistributedDataParallel(Net())
own = torch.empty(0) if rank == 0 else torch.ones(5)
with pcd.Checkpointer(folder + "/run") as ckpt:
    ckpt.save(0, net=net, own=own).wait_group()
    say("own", ckpt.load()["own"].numel())
"""


def test_an_empty_tensor_is_not_taken_for_another_one(job: Job) -> None:
    gang = ended(job(2, EMPTY))
    assert [gang.said(rank, "own") for rank in range(2)] == [[["0"]], [["5"]]]
