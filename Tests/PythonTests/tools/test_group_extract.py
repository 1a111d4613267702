"""pcextract on folders of a group: whole tensors out of the files of all ranks, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from conftest import ROOT
from rank_files import (
    RUN,
    compose,
    damage,
    jobs,
    payload,
    rank_file,
    sharded,
    step_of,
    tensor,
    values,
)
from safetensors.torch import load_file
from test_tools import run_tool

import pccheck.distributed
import pccheck.torch

sys.path.insert(0, str(ROOT / "Tests" / "PythonTests" / "ranks"))

from gang import Gang, ended  # noqa: E402

Job = Callable[..., Gang]


def extract(folder: Path, out: Path, *options: object, status: int = 0) -> str:
    """Runs pcextract and returns what it said."""
    made = run_tool("pcextract", folder, "-o", out, *options)
    assert made.returncode == status, made.stderr
    return made.stderr


def document_of(*arguments: object, status: int = 0) -> dict[str, Any]:
    """What pcextract prints as JSON, which is what the schema says."""
    made = run_tool("pcextract", "--json", *arguments)
    assert made.returncode == status, made.stderr
    schema = json.loads((ROOT / "spec/schemas/pcextract-group.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    found: dict[str, Any] = json.loads(made.stdout)
    jsonschema.validate(found, schema)
    return found


# -- what real ranks saved

SAVE = """
t = build(rank, world)
with pcd.Checkpointer(folder + "/run", timeout=30) as ckpt:
    ckpt.resume(**t)
    for step in range(2):
        for parameter in t["model"].parameters():
            parameter.grad = torch.ones_like(parameter) * (step + 1) * 0.1
        t["optimizer"].step()
        if rank == 0:
            t["own"]["position"] += 10 * step
        ckpt.save(step, **t)
    ckpt.wait_group()

def full(value):
    whole = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole.detach().clone()

found = {f"model.{key}": full(value) for key, value in t["model"].state_dict().items()}
for number, state in t["optimizer"].state_dict()["state"].items():
    for key, value in state.items():
        found[f"optimizer.state.{number}.{key}"] = full(value)
torch.save(found, f"{folder}/whole-{rank}.pt")
say("saved")
"""

MODEL = """
def model():
    torch.manual_seed(7)
    layers = nn.Sequential(nn.Linear(70, 301), nn.BatchNorm1d(301), nn.Linear(301, 90))
    layers.tied = layers[2].weight
    return layers

def parts(module, rank):
    return {
        "model": module, "optimizer": torch.optim.AdamW(module.parameters(), lr=0.1),
        "own": {"position": rank, "noise": torch.full((5,), float(rank))},
    }
"""

DDP = MODEL + """
def build(rank, world):
    return parts(nn.parallel.DistributedDataParallel(model()), rank)
"""

FSDP = MODEL + """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

def build(rank, world):
    module = model()
    fully_shard(module, mesh=init_device_mesh("cpu", (world,)))
    return parts(module, rank)
"""

# Both matrices are divided by columns, so that no part is one piece of the whole.
COLUMNS = MODEL + """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

def build(rank, world):
    module, mesh = model(), init_device_mesh("cpu", (world,))
    for layer in (module[0], module[2]):
        layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(1)]))
    module.tied = module[2].weight
    return parts(module, rank)
"""


@pytest.fixture(params=[(DDP, 3), (FSDP, 2), (COLUMNS, 3)], ids=["ddp", "fsdp", "columns"])
def trained(request: Any, job: Job, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The folder of a job, and the tensors that its ranks hold together."""
    code, world = request.param
    ended(job(world, code + SAVE), seconds=120)
    wholes = [
        torch.load(tmp_path / f"whole-{rank}.pt", weights_only=True) for rank in range(world)
    ]
    return tmp_path / "run", wholes[0]


def test_ranks_of_torch_in_every_format(
    trained: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folder, whole = trained
    world = len(list(folder.iterdir()))
    said = extract(folder, tmp_path / "all.safetensors")
    assert f"step 1 of attempt 1 from {world} ranks" in said and "distributed.load" in said
    found = load_file(tmp_path / "all.safetensors")
    # What each rank has for itself has its rank's prefix; a tied weight is stored once.
    for name, value in whole.items():
        stored = name.replace(".2.weight", ".tied") if name.startswith("model.") else name
        stored = stored if stored in found else f"rank-00000/{name}"
        assert torch.equal(found[stored], value) and found[stored].dtype == value.dtype, name
    large = {name for name in whole if name.endswith((".0.weight", ".0.exp_avg", ".tied"))}
    assert len(large) == 3 and large <= found.keys()
    for rank in range(world):
        noise = found[f"rank-{rank:05}/own.noise"]
        assert torch.equal(noise, torch.full((5,), float(rank)))
    # The other formats have the same.
    extract(folder, tmp_path / "all.pt")
    loaded = torch.load(tmp_path / "all.pt", weights_only=True)
    assert loaded.keys() == found.keys()
    assert all(torch.equal(loaded[name], value) for name, value in found.items())
    extract(folder, tmp_path / "all.npz", "--tensor", "model.*")
    with np.load(tmp_path / "all.npz") as arrays:
        for name in arrays.files:
            if name != "__pccheck__":
                assert np.array_equal(arrays[name], found[name].numpy()), name
        note = json.loads(arrays["__pccheck__"].tobytes())
    assert (note["step"], note["attempt"], note["world_size"]) == (1, 1, world)
    extract(folder, tmp_path / "one.raw", "--tensor", "*.0.weight")
    (weight,) = [name for name in found if name.endswith(".0.weight")]
    assert (tmp_path / "one.raw").read_bytes() == found[weight].numpy().tobytes()
    extract(folder, tmp_path / "cut.safetensors", "--shard-size", "100KB")
    index = json.loads((tmp_path / "cut.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == found.keys()
    for name, file in index.items():
        assert torch.equal(load_file(tmp_path / file)[name], found[name]), name
    # The older step, and the list.
    document = document_of(folder, "-o", tmp_path / "old.safetensors", "--step", 0)
    assert document["checkpoint"]["step"] == 0 and document["rejected"] == []
    assert not torch.equal(load_file(tmp_path / "old.safetensors")[weight], found[weight])
    listed = document_of(folder, "--list")
    assert {row["name"] for row in listed["tensors"]} == found.keys()


# -- composed files


def group(folder: Path, *contents: compose.Content) -> None:
    """One checkpoint of as many ranks."""
    for rank, content in enumerate(contents):
        rank_file(folder, rank, len(contents), {(1, 10): content})


def test_boxes_in_every_direction(tmp_path: Path) -> None:
    """Blocks of three dimensions over many chunks, and a box in two files, whose values agree."""
    full = values(30, 41, 52)
    blocks = [
        ([0, 0, 0], [30, 41, 20]), ([0, 0, 20], [11, 41, 32]),
        ([11, 0, 20], [19, 7, 32]), ([11, 5, 20], [19, 36, 32]),
    ]  # fmt: skip
    stored = [
        full[tuple(slice(a, a + n) for a, n in zip(offsets, sizes))].copy()
        for offsets, sizes in blocks
    ]
    contents = [
        payload(
            {f"x~{place}": stored[place] for place in places},
            {"x": sharded([30, 41, 52], [
                (*blocks[place], tensor(f"x~{place}")) for place in places])})
        for places in ((0, 3), (1,), (2, 3))
    ]  # fmt: skip
    group(tmp_path, *contents)
    extract(tmp_path, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == {"x"} and np.array_equal(found["x"].numpy(), full)
    extract(tmp_path, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as arrays:
        assert np.array_equal(arrays["x"], full)


def test_views_of_shared_memory(tmp_path: Path) -> None:
    """A box may be a view with strides; memory that is also one rank's own stays its own."""
    memory = values(40, 300, seed=5)
    full = np.concatenate([memory[:, :100].T, values(50, 40, seed=6)])
    view = {
        "$view": "m", "dtype": "float32", "offset": 0, "shape": [100, 40], "stride": [1, 300],
    }  # fmt: skip
    own = {"$view": "m", "dtype": "float32", "offset": 0, "shape": [12000], "stride": [1]}
    group(
        tmp_path,
        payload({"m": memory.reshape(-1)},
                {"x": sharded([150, 40], [([0, 0], [100, 40], view)]), "own": own}),
        payload({"x": full[100:].copy()},
                {"x": sharded([150, 40], [([100, 0], [50, 40], tensor("x"))])}),
    )  # fmt: skip
    extract(tmp_path, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == {"x", "m"}
    assert np.array_equal(found["x"].numpy(), full)
    assert np.array_equal(found["m"].numpy(), memory.reshape(-1))


def test_types_that_safetensors_lacks_are_told(tmp_path: Path) -> None:
    pairs, words = values(6, 2), np.arange(4, dtype=np.uint8)
    contents = [
        payload(
            {"c": pairs[first : first + 3].copy(), "w": words[2 * rank : 2 * rank + 2].copy()},
            {"c": sharded([6], [([first], [3], tensor("c", dtype="complex64"))], "complex64"),
             "w": sharded([4], [([2 * rank], [2], tensor("w", dtype="float8_e4m3fnuz"))],
                          "float8_e4m3fnuz")})
        for rank, first in enumerate((0, 3))
    ]  # fmt: skip
    group(tmp_path, *contents)
    said = extract(tmp_path, tmp_path / "x.safetensors")
    assert "1 tensor of complex64 is written as pairs of F32" in said
    assert "1 tensor of float8_e4m3fnuz is written as words of U8" in said
    found = load_file(tmp_path / "x.safetensors")
    assert np.array_equal(found["c"].numpy(), pairs)
    assert np.array_equal(found["w"].numpy(), words)


def test_names_keep_ranks_apart(tmp_path: Path) -> None:
    """Only what several ranks have gets a prefix; a name that is taken gets a number."""
    contents = [
        payload({"a": values(3, seed=rank), **({"b": values(2)} if rank else {})})
        for rank in range(2)
    ]
    state = {"x": {"y": sharded([0, 3], []), "y.z": tensor("rank-00000/a")}}
    contents.append(payload({"rank-00000/a": values(4)}, state))
    group(tmp_path, *contents)
    extract(tmp_path, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == {"rank-00000/a", "rank-00001/a", "b", "rank-00000/a~2", "x.y"}
    assert np.array_equal(found["rank-00001/a"].numpy(), values(3, seed=1))
    assert np.array_equal(found["rank-00000/a~2"].numpy(), values(4))
    assert tuple(found["x.y"].shape) == (0, 3)


def test_keys_that_look_alike_are_two_tensors(tmp_path: Path) -> None:
    """A dot in a key, and a number that is text elsewhere, make no tensor of two."""
    def content(rank: int) -> compose.Content:
        row = [([rank], [1], tensor(name)) for name in "pqrs"]
        nodes = [sharded([2], [item]) for item in row]
        state = {
            "a.b": {"c": nodes[0]}, "a": {"b.c": nodes[1]},
            "d": {"$dict": [[0, nodes[2]], ["0", nodes[3]]]},
        }  # fmt: skip
        stored = {name: values(1, seed=10 * place + rank) for place, name in enumerate("pqrs")}
        return payload(stored, state)

    group(tmp_path, content(0), content(1))
    extract(tmp_path, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == {"a.b.c", "a.b.c~2", "d.0", "d.0~2"}
    for place, name in enumerate(["a.b.c", "a.b.c~2", "d.0", "d.0~2"]):
        expected = [values(1, seed=10 * place + rank)[0] for rank in range(2)]
        assert found[name].tolist() == [float(item) for item in expected], name


def stage(names: list[str], number: int, seed: int) -> compose.Content:
    """A stage of a pipeline on one rank: its parameters are numbered from 0."""
    state = {
        "optimizer": {
            "state": {"$dict": [
                [place, {"exp_avg": sharded(
                    [3], [([0], [3], tensor(f"optimizer.state.{place}.exp_avg"))],
                    ranks=(number,))}]
                for place in range(len(names))]},
            "param_groups": [{"params": list(range(len(names)))}],
        }
    }  # fmt: skip
    stored = {
        f"optimizer.state.{place}.exp_avg": values(3, seed=seed + place)
        for place in range(len(names))
    }
    objects = {"optimizer": {"class": "A", "parameters": [[[name] for name in names]]}}
    return payload(stored, state, objects)


def test_stages_of_a_pipeline_number_their_parameters_together(tmp_path: Path) -> None:
    group(tmp_path, stage(["m.a", "m.b"], 0, 100), stage(["m.c", "m.b"], 1, 200))
    extract(tmp_path, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == {f"optimizer.state.{number}.exp_avg" for number in range(3)}
    for number, seed in enumerate((100, 101, 200)):
        name = f"optimizer.state.{number}.exp_avg"
        assert np.array_equal(found[name].numpy(), values(3, seed=seed)), name


UNFIT = {
    "an element that nobody has": (
        [payload({"x": values(2, 3)}, {"x": sharded([5, 3], [([0, 0], [2, 3], tensor("x"))])}),
         payload({"x": values(2, 3)}, {"x": sharded([5, 3], [([3, 0], [2, 3], tensor("x"))])})],
        "tensor 'x' of F32 [5, 3] lacks [2:3, 0:3]: no file has these elements; the ranks that "
        "hold it together are 0, 1"),
    "another shape": (
        [payload({"x": values(2)}, {"x": sharded([4], [([0], [2], tensor("x"))])}),
         payload({"x": values(3)}, {"x": sharded([5], [([2], [3], tensor("x"))])})],
        "tensor 'x' is float32 [5] on rank 1, and float32 [4] on rank 0"),
    "another type": (
        [payload({"x": values(2)}, {"x": sharded([4], [([0], [2], tensor("x"))])}),
         payload({"x": values(2).astype(np.float64)},
                 {"x": sharded([4], [([2], [2], tensor("x"))], "float64")})],
        "tensor 'x' is float64 [4] on rank 1, and float32 [4] on rank 0"),
    "a box that its tensor does not fit": (
        [payload({"x": values(3)}, {"x": sharded([4], [([0], [2], tensor("x"))])}),
         payload({"x": values(2)}, {"x": sharded([4], [([2], [2], tensor("x"))])})],
        "rank-00000-of-00002.pcc: the state: tensor 'x' has the box [0:2] of float32"),
    "a box outside": (
        [payload({"x": values(2)}, {"x": sharded([4], [([3], [2], tensor("x"))])}),
         payload({})],
        "'x' of shape [4] has the box [3:5]"),
    "a view outside": (
        [payload({"m": values(6)}, {"x": sharded([4], [([0], [4], {
            "$view": "m", "dtype": "float32", "offset": 4, "shape": [4], "stride": [2]})])}),
         payload({})],
        "which the stored tensor \"m\" of F32 [6] does not fit"),
    "stages without names": (
        [payload({}, {}, {"o": {"class": "A", "parameters": [[None]]}}),
         payload({}, {}, {"o": {"class": "A", "parameters": [[["a"]]]}})],
        "the ranks had other parameters in 'o'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNFIT)
def test_what_does_not_fit_together_is_named(tmp_path: Path, kind: str) -> None:
    contents, text = UNFIT[kind]
    group(tmp_path, *contents)
    for options in ([], ["--step", 10]):
        said = extract(tmp_path, tmp_path / "x.safetensors", *options, status=4)
        assert text in said, said
        assert not (tmp_path / "x.safetensors").exists()


# -- which checkpoint


def steps_in(path: Path) -> set[float]:
    return set(load_file(path)["x"].unique().tolist())


def test_a_damaged_part_makes_an_older_checkpoint(tmp_path: Path) -> None:
    paths = jobs(tmp_path, 2, [(1, 10), (1, 20)])
    out = tmp_path / "x.safetensors"
    damage(paths[1], 20)
    said = extract(tmp_path, out, status=4)
    assert "rank-00001-of-00002.pcc: slot 1" in said
    assert "falling back to step 10 of attempt 1 from step 20 of attempt 1" in said
    assert steps_in(out) == {10}
    document = document_of(tmp_path, "-o", out, status=4)
    assert [item["step"] for item in document["rejected"]] == [20]
    # The list is of what would be written: here the damage is in the manifest's chunk.
    assert document_of(tmp_path, "--list", status=4)["checkpoint"]["step"] == 10
    out.unlink()
    assert "slot 1" in extract(tmp_path, out, "--step", 20, status=4)
    assert not out.exists()
    damage(paths[0], 10)
    said = extract(tmp_path, out, status=4)
    assert "no checkpoint that is on all ranks can be read" in said and not out.exists()


def test_ranks_that_did_not_hold_the_same(tmp_path: Path) -> None:
    """Each has its part durable, and the parts do not fit together."""
    folder = tmp_path / "run"
    folder.mkdir()
    for rank in range(3):
        state = {"w": tensor("w")}
        same, other = [[0, 1, 2], "a" * 32], [[0, 1, 2], "b" * 32]
        contents = {
            (1, 1): payload({"w": values(2, seed=1)}, state, claims=[same]),
            (1, 2): payload(
                # A rank that made no claims knew that the layout was compared before.
                {"w": values(2, seed=2)}, state,
                claims=None if rank == 2 else [same, [[5, 6], "c" * 32]],
            ),
            (1, 3): payload({"w": values(2, seed=3)}, state, claims=[other if rank == 1 else same]),
            (1, 4): payload({"w": values(2, seed=4)}, state, claims=[] if rank == 1 else [same]),
        }  # fmt: skip
        rank_file(folder, rank, 3, contents)
    out = tmp_path / "out.safetensors"
    said = extract(folder, out, status=4)
    assert "step 4 of attempt 1: it is void: the ranks did not hold the same" in said
    assert "step 3 of attempt 1: it is void" in said
    assert "ranks 0, 2 held other values than rank 1" in said
    assert "falling back to step 2 of attempt 1" in said
    for tool in ("pcinspect", "pcfsck"):
        shown = run_tool(tool, folder).stdout
        assert "continues from step 2 of attempt 1" in shown, shown
        assert "not step 4 of attempt 1: ranks 0 to 2: the ranks did not hold the same" in " ".join(
            shown.split()
        )
    refused = extract(folder, tmp_path / "other.safetensors", "--step", 3, status=4)
    assert "it is void" in refused


def test_a_torn_checkpoint_does_not_hide_that_a_file_is_away(tmp_path: Path) -> None:
    """A power cut tore the newest one, which nobody knew to be durable."""
    jobs(tmp_path, 1, [(1, 10), (3, 30)], unnamed=1)
    away = jobs(tmp_path, 2, [(2, 20)])[1]
    kept = away.read_bytes()
    away.unlink()
    damage(tmp_path / "rank-00000-of-00001.pcc", 30)
    out = tmp_path / "x.safetensors"
    said = extract(tmp_path, out, status=4)
    assert "step 20 of attempt 2 was durable on all ranks, or may have been" in said
    assert "rank 1: no file" in said and "falling back" not in said and not out.exists()
    extract(tmp_path, out, "--step", 10)
    assert steps_in(out) == {10}
    away.write_bytes(kept)
    said = extract(tmp_path, out, status=4)
    assert "falling back to step 20 of attempt 2 from step 30 of attempt 3" in said
    assert steps_in(out) == {20}


def test_a_torn_first_save_is_nothing(tmp_path: Path) -> None:
    jobs(tmp_path, 1, [(1, 10)], unnamed=1)
    damage(tmp_path / "rank-00000-of-00001.pcc", 10)
    said = extract(tmp_path, tmp_path / "x.safetensors", status=8)
    assert "nothing was durable on all ranks" in said


def test_a_rank_that_was_killed(tmp_path: Path) -> None:
    jobs(tmp_path, 2, [(1, 10), (1, 20)])
    rank_file(tmp_path, 1, 2, {(1, 10): step_of(10, 1)})
    out = tmp_path / "x.safetensors"
    assert "step 10 of attempt 1 from 2 ranks" in extract(tmp_path, out)
    assert steps_in(out) == {10}
    said = extract(tmp_path, out, "--step", 20, status=8)
    assert "step 20 of attempt 1 is not (rank 1: not in the file)" in said
    assert "those that are: step 10 of attempt 1" in said


def test_a_missing_file(tmp_path: Path) -> None:
    jobs(tmp_path, 2, [(1, 10), (1, 20)])[1].unlink()
    out = tmp_path / "x.safetensors"
    said = extract(tmp_path, out, status=4)
    assert "a restart of this job fails" in said and "rank 1: no file" in said
    # Another number of ranks continued from it once.
    jobs(tmp_path, 3, [(2, 15)])
    extract(tmp_path, out)
    assert steps_in(out) == {15}


def test_foreign_and_doubled_files(tmp_path: Path) -> None:
    jobs(tmp_path, 2, [(1, 10)])
    out = tmp_path / "x.safetensors"
    other = rank_file(tmp_path, 0, 1, {(1, 10): step_of(10, 0, 1)}, run=bytes(16 * [7]))
    for options in ([], ["--step", 10]):
        said = extract(tmp_path, out, *options, status=4)
        assert "files do not belong together" in said and other.name in said
    other.unlink()
    extract(tmp_path, out)
    # The file of a rank again, under a name of its own, and written by another job of this run.
    double = tmp_path / "rank-00002-of-00003.pcc"
    image = compose.Image(
        in_flight=2, retain=2, capacity=1 << 20, rank=1, world_size=2, run_uuid=RUN,
        uuid=bytes(16 * [9]))
    image.commit(1)
    double.write_bytes(bytes(image.data))
    said = extract(tmp_path, out, status=4)
    assert "files do not belong together" in said and double.name in said


def test_the_last_attempt_of_a_step_counts(tmp_path: Path) -> None:
    jobs(tmp_path, 2, [(1, 10), (2, 10)])
    document = document_of(tmp_path, "-o", tmp_path / "x.safetensors", "--step", 10)
    assert document["checkpoint"]["attempt"] == 2


@pytest.mark.parametrize("options, text", [
    (["-o", "x", "--slot", 0], "a slot is of one file"),
    (["-o", "x", "--all"], "--all is about one file"),
    (["-o", "x", "--salvage"], "--salvage is about one file"),
    (["-o", "-"], "put together at offsets"),
    (["-o", "/dev/null"], "put together at offsets"),
    (["-o", "rank-00002-of-00004.pcc"], "has the name of a rank's file"),
    (["-o", "rank-00000-of-00002.pcc"], "choose another name"),
])  # fmt: skip
def test_options_that_are_refused(
    tmp_path: Path, options: list[object], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs(tmp_path, 2, [(1, 10)])
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    made = run_tool("pcextract", tmp_path, *options)
    assert made.returncode == 16 and text in made.stderr, made.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_opaque_payloads_have_no_tensors(tmp_path: Path) -> None:
    group(tmp_path, compose.opaque(1, 1000), compose.opaque(2, 1000))
    made = run_tool("pcextract", tmp_path, "-o", tmp_path / "x.raw")
    assert made.returncode == 16 and "is opaque" in made.stderr, made.stderr


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Two halves of a matrix by columns, 48 MiB each, in chunks of 64 KiB."""
    full = values(6144, 4096)
    for rank in range(2):
        image = compose.Image(
            in_flight=1, retain=1, capacity=50 << 20, rank=rank, world_size=2, run_uuid=RUN,
            uuid=bytes([rank, 2]) * 8)
        half = full[:, 2048 * rank : 2048 * (rank + 1)].copy()
        node = sharded([6144, 4096], [([0, 2048 * rank], [6144, 2048], tensor("x"))])
        image.commit(1)
        image.complete(0, 1, payload({"x": half}, {"x": node}), attempt=1, step=10)
        image.commit(2, 0, attempt=1)
        (tmp_path / f"rank-{rank:05}-of-00002.pcc").write_bytes(bytes(image.data))
    out = tmp_path / "x.npz"
    # Less address space than the matrix has bytes.
    limited = 'ulimit -v 80000 && exec "$0" "$@"'
    command = ["bash", "-c", limited, ROOT / "build/bin/pcextract", tmp_path, "-qo", out]
    subprocess.run(command, check=True, timeout=60)
    with np.load(out) as arrays:
        assert np.array_equal(arrays["x"], full)


def test_the_package_loads_the_same(tmp_path: Path) -> None:
    """The loader of the package and the tool put the same tensors together."""
    paths = jobs(tmp_path, 3, [(1, 10)])
    extract(tmp_path, tmp_path / "x.safetensors")
    loaded = pccheck.torch.load_full(paths)["x"]
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], loaded)
    (tmp_path / "x.safetensors").unlink()
    assert torch.equal(pccheck.distributed.load(tmp_path)["x"], loaded)
