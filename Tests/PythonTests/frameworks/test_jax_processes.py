"""JAX jobs of several processes: what comes back, on which processes, and after a kill."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transport_calls
from jax_job import Job

import pccheck

StartJob = Callable[..., Job]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[StartJob]:
    jobs: list[Job] = []

    def start(world: int, code: str, devices: int = 1, name: str = "job") -> Job:
        jobs.append(Job(tmp_path / name, world, code, devices))
        return jobs[-1]

    yield start
    for found in jobs:
        found.end()


# -- the network


def test_the_store_joins_names_who_is_late_and_does_not_grow(job: StartJob) -> None:
    before = '''
    from pccheck._jax.transport import JaxTransport
    from pccheck.errors import RanksMissing
    client = jax._src.distributed.global_state.client
    keys = lambda: {key for key, _ in client.key_value_dir_get_bytes("pccheck/")}
    ands, other = JaxTransport(), JaxTransport()
    ands.gather(b"", 60)
    transport = ands
    ands.open_channels(["ends", "calls"], 10)
    assert other.gather(b"other", 60) == [b"other"] * world
    '''
    after = '''
    # The last call of each channel, here and of the other transport, and two notes of each rank.
    deadline = time.monotonic() + 30
    while len(found := keys()) != 4 * (world + 1) + 2 * world:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    client.wait_at_barrier("counted", 60_000)
    ands.gather(b"", 60)
    if rank != 1:
        began = time.monotonic()
        try:
            ands.gather(b"", 1.5)
            raise AssertionError("nobody is missing")
        except RanksMissing as error:
            say("missing", error.ranks, 1.4 < time.monotonic() - began < 10)
            assert "rank 1 of 3 did not arrive in 1.5 s" in str(error), error
    other.gather(b"", 60)
    ands.close(); other.close(); other.close()
    client.wait_at_barrier("closed", 60_000)
    say("left", len(keys()))
    '''
    dedent = textwrap.dedent
    found = job(3, dedent(before) + transport_calls.CALLS + dedent(after)).ended()
    for rank in range(3):
        missing = [] if rank == 1 else ["missing [1] True"]
        assert found.lines(rank) == [*missing, "left 0"]


# -- what comes back

TREE = '''
def spread(value, spec, shape=(-1,), names=("x",)):
    """An array over all devices of the job."""
    value = np.asarray(value)
    sharding = NamedSharding(Mesh(np.array(jax.devices()).reshape(shape), names), spec)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

def tree(shift):
    base = np.arange(12 * 600, dtype=np.float32).reshape(12, 600) + shift
    keys = jax.random.key_data(jax.random.split(jax.random.key(3 + shift), 12))
    return {
        "rows": spread(base, P("x")), "everywhere": spread(base * 2, P()),
        "both": spread(base + 1, P("y", "x"), (-1, 1), ("x", "y")),
        "some": spread(base + 2, P("y"), (1, -1), ("x", "y")),
        "narrow": spread((base[:, :5] / 7).astype(jnp.bfloat16), P("x")),
        "complex": spread(base[:, :3] * 1j, P("x")), "flags": spread(base[:, 0] > 3, P()),
        "scalar": spread(np.float32(shift + 1), P()), "empty": spread(np.zeros((0, 3)), P()),
        "keys": jax.random.wrap_key_data(spread(keys, P("x"))), "key": jax.random.key(9 + shift),
        "local": jnp.arange(7.0) + shift, "host": np.arange(3) + shift, "count": 5 + shift,
        "name": "größe",
    }

def same(found, expected):
    assert jax.tree_util.tree_structure(found) == jax.tree_util.tree_structure(expected)
    for name, other in expected.items():
        one = found[name]
        if not isinstance(other, jax.Array):
            assert np.array_equal(one, other), name
            continue
        assert one.dtype == other.dtype and one.sharding == other.sharding, name
        assert one.committed == other.committed, name
        if name in ("key", "keys"):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        for mine, its in zip(one.addressable_shards, other.addressable_shards, strict=True):
            assert mine.index == its.index and mine.device == its.device, name
            assert np.asarray(mine.data).tobytes() == np.asarray(its.data).tobytes(), name
'''
SAVING = TREE + '''
with pccheck.jax.Checkpointer(folder + "/", timeout=60) as checkpoints:
    start, _ = checkpoints.resume(tree(100))
    handle = checkpoints.save(start, tree(start))
    assert handle.wait_group().durable
    say("saved", start, world)
'''
RESTORING = TREE + '''
with pccheck.jax.Checkpointer(folder + "/", timeout=60) as checkpoints:
    start, found = checkpoints.resume(tree(100))
    same(found, tree(start - 1))
    whole = checkpoints.load(start - 1)["tree"]
    assert np.array_equal(whole["rows"], np.arange(7200.0).reshape(12, 600) + start - 1)
    say("found", start, bool(checkpoints.resume_report.left_alone))
'''


def test_a_tree_comes_back_on_any_number_of_processes_and_any_mesh(job: StartJob) -> None:
    def run(code: str, world: int, devices: int) -> set[str]:
        found = job(world, code, devices).ended()
        return {line for rank in range(world) for line in found.lines(rank)}

    assert run(SAVING, 3, 1) == {"saved 0 3"}
    # Generators belong to a rank: another number of ranks leaves them alone.
    assert run(RESTORING, 3, 1) == {"found 1 False"}
    assert run(RESTORING, 2, 2) == {"found 1 True"}
    assert run(RESTORING, 1, 1) == {"found 1 True"}
    assert run(SAVING, 1, 4) == {"saved 1 1"}
    assert run(RESTORING, 3, 2) == {"found 2 True"}
    assert run(SAVING, 2, 3) == {"saved 2 2"}
    assert run(RESTORING, 2, 2) == {"found 3 False"}


def test_replicas_are_stored_once_and_parts_are_read_alone(job: StartJob, tmp_path: Path) -> None:
    code = TREE + '''
    value = np.arange(1200 * 1024, dtype=np.float32).reshape(1200, 1024)
    expected = {"rows": spread(value, P("x")), "everywhere": spread(value, P())}
    with pccheck.jax.Checkpointer(folder + "/", timeout=60) as checkpoints:
        start, found = checkpoints.resume(expected)
        if start == 0:
            checkpoints.save(0, expected).wait_group()
        else:
            same(found, expected)
            from pccheck._core.reader import Reader
            read, plain = [], Reader.read
            def counted(self, rows, devices=()):
                read.extend(row[1] for row in rows)
                plain(self, rows)
            Reader.read = counted
            checkpoints.resume({"rows": expected["rows"]}, rng=False)
            say("read", sum(read) / value.nbytes)
    '''.replace("\n    ", "\n")
    job(2, code).ended()
    folder = tmp_path / "job" / "run"
    paths = [folder / f"rank-0000{rank}-of-00002.pcc" for rank in range(2)]
    stored = [pccheck.checkpoints(path)[0].payload_byte_count for path in paths]
    # Each array once, and half of it in each file.
    assert all(1200 * 1024 * 4 < count < 1200 * 1024 * 4 + (64 << 10) for count in stored)
    for world in (2, 3):
        found = job(world, code).ended()
        assert {line for rank in range(world) for line in found.lines(rank)} == {
            f"read {1 / world}"
        }


# -- killed

TRAINING = TREE + '''
@jax.jit
def loss(state):
    # Integers: the same bits whatever number of devices computes them.
    return jnp.max(state["table"] ^ state["shared"])

step_of = jax.jit(lambda state, largest: {
    "table": state["table"] * 1664525 + largest, "shared": state["shared"] * 22695477 + largest,
    "key": jax.random.fold_in(state["key"], 1)}, donate_argnums=0)
base = np.arange(12 * 500, dtype=np.uint32).reshape(12, 500)
state = {"table": spread(base, P("x")), "shared": spread(base[0], P()),
         "key": jax.random.wrap_key_data(spread(jax.random.key_data(jax.random.key(4)), P()))}
with pccheck.jax.Checkpointer(folder + "/", timeout=60) as checkpoints:
    start, state = checkpoints.resume(state)
    say("start", start)
    for step in range(start, 40):
        largest = loss(state)
        draw = jax.random.uniform(state["key"]).addressable_data(0)
        say("loss", step, int(largest.addressable_data(0)), float(draw).hex())
        state = step_of(state, largest)
        handle = checkpoints.save(step, state)
        if step % 7 == 0:
            handle.wait_group()
'''


def test_a_killed_job_continues_with_the_same_bits_on_any_number(job: StartJob) -> None:
    def losses(found: Job, rank: int) -> dict[str, str]:
        said = [line.split(" ", 2) for line in found.lines(rank) if line.startswith("loss")]
        return {step: value for _, step, value in said}

    whole = losses(job(2, TRAINING, name="whole").ended(), 0)
    assert len(whole) == 40 and len(set(whole.values())) == 40
    first = 0
    for killed, world in ((1, 2), (0, 3), (2, 1)):
        # The world of the job that dies is that of the restart before.
        before = {1: 2, 0: 2, 2: 3}[killed]
        dying = job(before, TRAINING)
        last = first + 8
        while not losses(dying, killed).get(str(last)):
            assert dying.processes[killed].poll() is None, dying.log(killed)
        dying.kill(killed)
        # As a launcher does; what the others still save is not on all ranks.
        dying.end()
        seen = losses(dying, killed)
        assert seen.items() <= whole.items()
        first = max(map(int, seen)) - 1
    rest = job(1, TRAINING).ended()
    start = int(rest.lines(0)[0].split()[1])
    assert first - 6 <= start <= first + 3
    found = losses(rest, 0)
    assert list(found) == [str(step) for step in range(start, 40)]
    assert found.items() <= whole.items()


# -- what is refused


def test_a_missing_process_is_named_within_the_bound(job: StartJob) -> None:
    code = TREE + '''
    from pccheck.errors import RanksMissing
    tree_ = {"w": spread(np.zeros(6), P())}
    checkpoints = pccheck.jax.Checkpointer(folder + "/", timeout=60)
    checkpoints.resume(tree_)
    # The first save begins the attempt, on all ranks.
    checkpoints.save(0, tree_).wait_group()
    began = time.monotonic()
    if rank == 2:
        time.sleep(4)
    else:
        handle = checkpoints.save(1, tree_)
        try:
            handle.wait_group(1.5)
            raise AssertionError("it is on all ranks")
        except RanksMissing as error:
            assert "rank 2 did not end the save of step 1" in str(error), error
            say("waited", 1.4 < time.monotonic() - began < 8)
    if rank == 2:
        checkpoints.save(1, tree_)
    checkpoints.close()
    if rank != 1:
        late = pccheck.jax.Checkpointer(folder + "/", timeout=2)
        began = time.monotonic()
        try:
            late.resume(tree_)
            raise AssertionError("everybody came")
        except RanksMissing as error:
            say("missing", error.ranks, 1.9 < time.monotonic() - began < 10)
    else:
        time.sleep(3)
    '''.replace("\n    ", "\n")
    found = job(3, code).ended()
    assert found.lines(0) == ["waited True", "missing [1] True"]
    assert found.lines(1) == ["waited True"]
    assert found.lines(2) == ["missing [1] True"]


def test_what_differs_is_an_error_with_the_ranks(job: StartJob) -> None:
    code = TREE + '''
    from pccheck.errors import InvalidArgument, RankFailed, VoidCheckpoint
    def refused(kind, call):
        try:
            call()
        except kind as error:
            return str(error)
        raise AssertionError("it was accepted")

    same_ = spread(np.arange(6.0), P())
    local = [jax.device_put(np.arange(6.0) + rank, jax.local_devices()[0])]
    differing = jax.make_array_from_single_device_arrays((6,), same_.sharding, local)
    with pccheck.jax.Checkpointer(folder + "/", timeout=60) as checkpoints:
        checkpoints.save(0, {"a": same_, "b": same_}).wait_group()
        say(refused(VoidCheckpoint, checkpoints.save(1, {"a": same_, "c": differing}).wait_group))
        trees = [{"a": same_}, {"a": same_, "more": same_}]
        say(refused(VoidCheckpoint, checkpoints.save(2, trees[rank]).wait_group))
        kind = VoidCheckpoint if rank == 0 else TypeError
        odd = [{"a": same_}, {"a": same_, "odd": object()}][rank]
        say(refused(kind, lambda: checkpoints.save(3, odd).wait_group()))
        say(refused(InvalidArgument, lambda: checkpoints.resume({"a": same_}, step=rank)))
        shapes = [{"a": same_}, {"a": spread(np.arange(8.0), P())}][rank]
        kind = RankFailed if rank == 0 else pccheck.StateMismatch
        refused(kind, lambda: checkpoints.resume(shapes))
        start, found = checkpoints.resume({"a": differing, "b": same_})
        assert start == 1
        same(found, {"a": same_, "b": same_})
    say(refused(InvalidArgument, lambda: pccheck.jax.Checkpointer(folder + ".pcc")))
    say(refused(InvalidArgument, lambda: pccheck.jax.Checkpointer(folder + "/", rank=0)))
    '''.replace("\n    ", "\n")
    found = job(2, code).ended()
    for rank in range(2):
        lines = found.lines(rank)
        assert "'tree.c[0:6]' has other values on rank 0 than on rank 1" in lines[0]
        assert "'tree.more' is on rank 1 and not on rank 0" in lines[1]
        assert "tree.odd" in lines[2] and ("rank 1: TypeError" in lines[2]) == (rank == 0)
        assert "the ranks differ in step: 0 on rank 0; 1 on rank 1" in lines[3]
        assert "the job has 2 processes" in lines[4] and "give a folder" in lines[4]
        assert "rank comes from the group" in lines[5]


def test_a_folder_is_for_one_process_too(tmp_path: Path) -> None:
    import jax.numpy as jnp

    import pccheck.jax

    tree: dict[str, Any] = {"w": jnp.arange(6.0), "n": 3}
    with pccheck.jax.Checkpointer(f"{tmp_path}/run/") as checkpoints:
        assert isinstance(checkpoints, pccheck.jax.FolderCheckpointer)
        assert checkpoints.resume(tree)[0] == 0
        assert checkpoints.save(4, tree).wait_group().durable
        assert checkpoints.wait_group() is not None
    # A folder that exists needs no slash.
    with pccheck.jax.Checkpointer(tmp_path / "run") as checkpoints:
        start, found = checkpoints.resume({"w": jnp.zeros(6), "n": 3})
    assert start == 5 and found["w"].tolist() == [0, 1, 2, 3, 4, 5]
    # Who takes no part in the job changes nothing.
    before = [path.read_bytes() for path in (tmp_path / "run").iterdir()]
    empty = {"w": jnp.zeros(6), "n": 0}
    loaded = pccheck.jax.load(tmp_path / "run", empty)
    assert loaded["w"].tolist() == [0, 1, 2, 3, 4, 5] and loaded["n"] == 3
    assert [path.read_bytes() for path in (tmp_path / "run").iterdir()] == before
    with pytest.raises(pccheck.NoCheckpoint, match="step 9 is not durable on all ranks.*are: 4"):
        pccheck.jax.load(tmp_path / "run", empty, 9)


def test_donated_buffers_were_copied_into_a_folder(tmp_path: Path) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np

    import pccheck.jax

    change = jax.jit(lambda x: x * 2 + 1, donate_argnums=0)
    with pccheck.jax.Checkpointer(f"{tmp_path}/run/") as checkpoints:
        value = jnp.arange(1 << 22, dtype=jnp.float32)
        for step in range(6):
            expected = np.array(value)
            handle = checkpoints.save(step, {"x": value}, rng=False)
            value = change(value)
            assert handle.wait_group().durable
            assert np.array_equal(checkpoints.load(step)["tree"]["x"], expected)
