"""``python -m pccheck convert``: other formats into a file and back, bit for bit."""

from __future__ import annotations

import enum
import filecmp
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
import zipfile
import types
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch
from foreign import contents, run, same
from safetensors.torch import load_file, save_file
from test_tools import run_tool
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import pccheck
import pccheck.torch
from pccheck._convert import safetensors as safetensors_format

# ---------------------------------------------------------------------------- safetensors


def test_safetensors_come_back_byte_for_byte(path: Path, tmp_path: Path) -> None:
    one = tmp_path / "model.safetensors"
    save_file(foreign.tensors(), one, metadata={"format": "pt", "made by": "ü\x1b[2J\n"})
    run("convert", one, "-o", path)
    state = pccheck.torch.load(path)
    same(state, dict(load_file(one)) | {name: state[name] for name in state})
    for name, tensor in load_file(one).items():
        same(state[name], tensor)
    run("convert", path, "-o", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == one.read_bytes()
    assert run_tool("pcfsck", "--verify", "full", path).returncode == 0


def test_types_that_torch_lacks_come_back(path: Path, tmp_path: Path) -> None:
    header = json.dumps(
        {
            "four": {"dtype": "F4", "shape": [2, 6], "data_offsets": [0, 6]},
            "odd four": {"dtype": "F4", "shape": [2, 3], "data_offsets": [6, 9]},
            "six": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [9, 12]},
            "": {"dtype": "U8", "shape": [], "data_offsets": [12, 13]},
            "nothing": {"dtype": "F32", "shape": [0, 1 << 40], "data_offsets": [13, 13]},
        }
    ).encode()
    one = tmp_path / "odd.safetensors"
    one.write_bytes(struct.pack("<Q", len(header)) + header + bytes(range(13)))
    run("convert", one, "-o", path, "--part", "model")
    state = pccheck.torch.load(path)["model"]
    assert state["four"].shape == (2, 3) and "float4" in str(state["four"].dtype)
    run("convert", path, "-o", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == one.read_bytes()


def test_shards_come_back_with_their_index(path: Path, tmp_path: Path) -> None:
    folder = foreign.hugging_face(tmp_path / "hf", "safetensors-sharded")
    index = folder / "model.safetensors.index.json"
    run("convert", index, "-o", path)
    run("convert", path, "-o", tmp_path / "back")
    expected = {name: data for name, data in contents(folder).items() if "safetensors" in name}
    assert contents(tmp_path / "back") == expected and len(expected) == 3


def test_a_part_can_be_resumed(path: Path, tmp_path: Path) -> None:
    model = torch.nn.Linear(6, 4)
    save_file(model.state_dict(), tmp_path / "model-120.safetensors")
    run("convert", tmp_path / "model-120.safetensors", "-o", path, "--part", "model")
    fresh = torch.nn.Linear(6, 4)
    with pccheck.torch.Checkpointer(path) as ckpt:
        assert ckpt.resume(model=fresh) == 121
        same(fresh.state_dict(), model.state_dict())
        ckpt.save(130, model=fresh).wait()


# ---------------------------------------------------------------------------- torch.save


@pytest.mark.parametrize("old_format", [False, True])
def test_torch_files_come_back(path: Path, tmp_path: Path, old_format: bool) -> None:
    one, again = tmp_path / "state.pt", tmp_path / "again.pt"
    state = foreign.torch_state()
    if old_format:
        # torch itself does not read its newer types from it.
        state["types"] = {"complex64": state["types"]["torch.complex64"]}
    torch.save(state, one, _use_new_zipfile_serialization=not old_format)
    run("convert", one, "-o", path, "--step", 7)
    assert pccheck.checkpoints(path)[0].step == 7
    run("convert", path, "-o", again)
    expected = torch.load(one, weights_only=True)
    found = torch.load(again, weights_only=True)
    same(found, expected)
    assert vars(found["model"])["_metadata"] == vars(expected["model"])["_metadata"]
    assert found["tied"][0] is found["tied"][1]
    found["overlapping"][0][8] = 99.0
    assert found["overlapping"][1][0, 0] == 99.0
    assert path.stat().st_size < 12 * one.stat().st_size + (4 << 20)


def test_arrays_and_numbers_of_numpy_stay_what_they_are(path: Path, tmp_path: Path) -> None:
    state = {"a": np.arange(5, dtype="<u4"), "f": np.float32(0.1), "d": np.array("2024", "M8[D]")}
    torch.save(state, tmp_path / "a.pt")
    run("convert", tmp_path / "a.pt", "-o", path)
    run("convert", path, "-o", tmp_path / "b.pt")
    same(torch.load(tmp_path / "b.pt", weights_only=False), state)


def test_nothing_is_run_without_trust(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = tmp_path / "evil.pt"
    evil.write_bytes(foreign.Evil.pickled())
    said = run("convert", evil, "-o", path, status=8).stderr
    assert "posix.system" in said and "--trust" in said
    assert os.listdir(tmp_path) == ["evil.pt"]
    run("convert", evil, "-o", path, "--trust")
    assert (tmp_path / "evil-was-here").exists()  # What is no state is refused all the same.
    torch.save({"path": types.SimpleNamespace(a=1)}, evil)
    assert "--trust" in run("convert", evil, "-o", path, "--force", status=8).stderr
    assert "key 'path'" in run("convert", evil, "-o", path, "--force", "--trust", status=8).stderr


# ---------------------------------------------------------------------------- DCP


def test_distributed_checkpoints_come_back(path: Path, tmp_path: Path) -> None:
    state = foreign.torch_state()
    # What it keeps of a nest: texts for keys, tensors, and anything else as a pickle.
    state = {name: state[name] for name in ("model", "optimizer", "odd", "scalar", "empty")}
    state["list"] = [torch.ones(2), {"x": torch.zeros(1)}]
    state["types"] = {"bf": foreign.bits(torch.bfloat16, (4,)), "step": 3, "name": "é"}
    one = foreign.dcp_directory(tmp_path / "one", state)
    run("convert", one, "-o", path)
    run("convert", path, "-o", tmp_path / "two")
    loaded = []
    for number, folder in enumerate(("one", "two")):
        dcp_to_torch_save(tmp_path / folder, tmp_path / f"{number}.pt")
        loaded.append(torch.load(tmp_path / f"{number}.pt", weights_only=True))
    same(loaded[1], loaded[0])
    assert torch.equal(loaded[0]["list"][1]["x"], torch.zeros(1))
    same(pccheck.torch.load(path), loaded[0])


class _OldPickler(pickle.Pickler):
    """Pickles members of enumerations as Python 3.11.0 to 3.11.3 does; Debian 12 has 3.11.2."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, enum.Enum):
            return getattr, (type(value), value.name)
        return NotImplemented


def test_distributed_checkpoints_of_python_3_11_2_are_read(path: Path, tmp_path: Path) -> None:
    folder = foreign.dcp_directory(tmp_path / "one", {"w": torch.arange(4.0)})
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    with open(folder / ".metadata", "wb") as file:
        _OldPickler(file).dump(metadata)
    assert b"getattr" in (folder / ".metadata").read_bytes()
    run("convert", folder, "-o", path)
    same(pccheck.torch.load(path), {"w": torch.arange(4.0)})

    class Attribute:
        def __reduce__(self) -> Any:
            return getattr, (torch.Size, "numel")

    (folder / ".metadata").write_bytes(pickle.dumps({"x": Attribute()}))
    refused = run("convert", folder, "-o", tmp_path / "no.pcc", status=8)
    assert "it asks for builtins.getattr, expected only" in refused.stderr


def test_shards_of_ranks_become_whole_tensors(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from torch.distributed.checkpoint import metadata as kinds
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    whole = foreign.bits(torch.float8_e5m2, (5, 4))
    folder = tmp_path / "sharded"
    folder.mkdir()
    chunks, places = [], {}
    for rank, (start, stop) in enumerate(((0, 3), (3, 5))):
        file = folder / f"__{rank}_0.distcp"
        torch.save(whole[start:stop].clone(), file)
        chunks.append(
            kinds.ChunkStorageMetadata(torch.Size([start, 0]), torch.Size([stop - start, 4]))
        )
        index = kinds.MetadataIndex("w", [start, 0], rank)
        places[index] = _StorageInfo(file.name, 0, file.stat().st_size)
    properties = kinds.TensorProperties(dtype=whole.dtype)
    entry = kinds.TensorStorageMetadata(properties, whole.shape, chunks)
    metadata = kinds.Metadata({"w": entry}, storage_data=places)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    run("convert", folder, "-o", path)
    same(pccheck.torch.load(path), {"w": whole})
    # As many elements, but the last row in none of them.
    lost = kinds.ChunkStorageMetadata(torch.Size([2, 0]), torch.Size([2, 4]))
    kept, entry.chunks[1] = entry.chunks[1], lost
    index = kinds.MetadataIndex("w", [2, 0], 1)
    places[index] = places[kinds.MetadataIndex("w", [3, 0], 1)]
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert "leave gaps" in run("convert", folder, "-o", path, "--force", status=4).stderr
    entry.chunks[1] = kept
    del places[index]
    (folder / "__1_0.distcp").rename(folder / "elsewhere")
    assert "is not there" in run("convert", folder, "-o", path, "--force", status=4).stderr
    (folder / "elsewhere").rename(folder / "__1_0.distcp")
    del entry.chunks[1]
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    said = run("convert", folder, "-o", path, "--force", status=4).stderr
    assert "12 elements, expected 20" in said
    places[kinds.MetadataIndex("w", [0, 0], 0)].relative_path = "../../etc/passwd"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert "expected one in the directory" in run(
        "convert", folder, "-o", path, "--force", status=4).stderr  # fmt: skip
    (folder / ".metadata").write_bytes(pickle.dumps({"x": foreign.Evil()}))
    said = run("convert", folder, "-o", path, "--force", status=8).stderr
    assert "posix.system" in said and not (tmp_path / "evil-was-here").exists()
    same(pccheck.torch.load(path), {"w": whole})


def test_what_dcp_saved_into_a_file_becomes_a_directory(path: Path, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    from pccheck.dcp import StorageWriter

    nest = {"a": {"b": torch.arange(5), "n": 3}, "list": [torch.ones(2), {"x": torch.zeros(1)}]}
    with StorageWriter(path) as writer:
        dcp.save(nest, checkpoint_id=4, storage_writer=writer, no_dist=True)
    run("convert", path, "-o", tmp_path / "d", "--to", "dcp")
    dcp_to_torch_save(tmp_path / "d", tmp_path / "d.pt")
    run("convert", path, "-o", tmp_path / "e.pt")
    for name in ("d.pt", "e.pt"):
        same(torch.load(tmp_path / name, weights_only=True), nest)


# ---------------------------------------------------------------------------- Hugging Face


@pytest.mark.parametrize(
    "weights", ["safetensors", "safetensors-sharded", "torch", "torch-sharded"]
)
def test_hugging_face_directories_come_back(
    path: Path, tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = foreign.hugging_face(tmp_path / "checkpoint", weights)
    run("convert", folder, "-o", path)
    assert pccheck.checkpoints(path)[0].step == 500
    run("convert", path, "-o", tmp_path / "back")
    expected, found = contents(folder), contents(tmp_path / "back")
    assert found.keys() == expected.keys()
    for name, data in expected.items():
        if name in ("optimizer.pt", "scheduler.pt", "rng_state.pth") or name.startswith("pytorch_"):
            if name.endswith(".json"):
                assert found[name] == data
                continue
            with open(tmp_path / "back" / name, "rb") as file:
                again = torch.load(file, weights_only=False)
            same(again, torch.load(folder / name, weights_only=False))
        else:
            assert found[name] == data, name
    assert not (tmp_path / "evil-was-here").exists()
    state = pccheck.torch.load(path)
    assert list(state) == ["model", "optimizer", "rng_state", "scheduler", "files"]
    assert state["files"]["config.json"] == b"{}"


def test_a_training_becomes_a_hugging_face_directory(path: Path, tmp_path: Path) -> None:
    model = torch.nn.Linear(6, 4)
    with pccheck.torch.Checkpointer(path) as ckpt:
        ckpt.save(3, model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1)).wait()
    run("convert", path, "-o", tmp_path / "hf", "--to", "hf")
    names = ["model.safetensors", "optimizer.pt", "rng.pt"]
    assert sorted(os.listdir(tmp_path / "hf")) == names
    same(dict(model.state_dict()), {
        name: load_file(tmp_path / "hf" / names[0])[name] for name in model.state_dict()
    })  # fmt: skip
    assert torch.load(tmp_path / "hf" / "optimizer.pt", weights_only=True)["param_groups"]


# ---------------------------------------------------------------------------- several


def test_several_inputs_are_several_checkpoints(path: Path, tmp_path: Path) -> None:
    folders = [
        foreign.hugging_face(tmp_path / f"checkpoint-{step}", step=step) for step in (20, 5, 100)
    ]
    made = run("convert", *folders, "-o", path, "--json", "--codec", "zstd")
    document = json.loads(made.stdout)
    assert [entry["step"] for entry in document["checkpoints"]] == [5, 20, 100]
    assert sorted(info.step for info in pccheck.checkpoints(path)) == [5, 20, 100]
    for folder, step in zip(folders, (20, 5, 100), strict=True):
        run("convert", path, "-o", tmp_path / f"{step}", "--step", step)
        assert contents(tmp_path / f"{step}").keys() == contents(folder).keys()
        same(
            load_file(tmp_path / f"{step}" / "model.safetensors"),
            load_file(folder / "model.safetensors"),
        )
    again = path.with_name("other.pcc")
    run("convert", *folders, "-o", again, "--step", 1, "--step", 2, "--step", 3)
    assert sorted(info.step for info in pccheck.checkpoints(again)) == [1, 2, 3]
    for wrong in (["--step", "1"], ["--step", "1"] * 3, ["--retain", "2"], ["--capacity", "1k"]):
        run("convert", *folders, "-o", path, "--force", *wrong, status=16)
    run("convert", *folders * 6, "-o", path, "--force", status=16)


def large_file(path: Path, size: int) -> Path:
    """A file of one tensor, with values where pieces of 64 MiB begin and end."""
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
        for place in range(64 << 20, size, 64 << 20):
            file.seek(8 + len(header) + place - 8000)
            file.write(np.random.default_rng(place).bytes(16_000))
    return path


def test_a_large_file_is_not_read_into_memory(path: Path, tmp_path: Path) -> None:
    """Mapped, staged through 64 MiB, and written back in windows of as much."""
    one = large_file(tmp_path / "large.safetensors", 384 << 20)
    # Anonymous memory: what the map takes of the page cache can be given back.
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (300 << 20,) * 2);"
        "from pccheck_program import main; sys.exit(main(sys.argv[1:]))"
    )
    for arguments in (
        ("convert", one, "-o", path), ("convert", path, "-o", tmp_path / "b.safetensors"),
    ):  # fmt: skip
        made = subprocess.run(
            [sys.executable, "-c", limited, *map(str, arguments)],
            capture_output=True, text=True, timeout=120,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
    assert filecmp.cmp(tmp_path / "b.safetensors", one, shallow=False)


# ---------------------------------------------------------------------------- bad input


def broken_headers() -> dict[str, bytes]:
    """Safetensors files that break a rule."""
    def file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    def tensor(**change: Any) -> Any:
        return {"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], **change}}

    one = tensor()["x"]
    return {
        "length": file(b"{}", length=1 << 60), "beyond": file(b"{}", length=1 << 20),
        "short": b"\x01", "json": file(b"{nope"), "list": file(b"{", length=1),
        "utf8": file(b'{"\xff":1}'), "deep": file(b'{"a":' + b"[" * 50_000),
        "twice": file(b'{"x":%s,"x":%s}' % ((json.dumps(one).encode(),) * 2), bytes(4)),
        "dtype": file(tensor(dtype="X9"), bytes(4)), "size": file(tensor(shape=[5]), bytes(4)),
        "negative": file(tensor(shape=[-4]), bytes(4)), "bool": file(tensor(shape=[True]), b"x"),
        "overflow": file(tensor(shape=[1 << 62, 4], data_offsets=[0, 1 << 62]), bytes(4)),
        "gap": file(tensor(data_offsets=[4, 8]), bytes(8)),
        "overlap": file({"x": one, "y": {**one, "data_offsets": [2, 6]}}, bytes(6)),
        "truncated": file(tensor(), bytes(3)), "trailing": file(tensor(), bytes(5)),
        "metadata": file({"__metadata__": {"a": 1}}), "no shape": file({"x": {"dtype": "U8"}}),
        "rank": file(tensor(shape=[1] * 65, data_offsets=[0, 1]), bytes(1)),
    }  # fmt: skip


@pytest.mark.parametrize("name", broken_headers())
def test_broken_safetensors_are_refused(tmp_path: Path, name: str) -> None:
    one = tmp_path / "model.safetensors"
    one.write_bytes(broken_headers()[name])
    with pytest.raises(pccheck.CheckpointError) as caught:
        safetensors_format.SafetensorsFile(str(one))
    assert type(caught.value).__name__ == "DamagedInput" and str(one) in str(caught.value)


def test_damaged_inputs_end_with_status_4(path: Path, tmp_path: Path) -> None:
    one = tmp_path / "model.safetensors"
    one.write_bytes(broken_headers()["truncated"])
    assert "3 bytes of tensors were found, expected 4" in run(
        "convert", one, "-o", path, status=4).stderr  # fmt: skip
    pt = tmp_path / "state.pt"
    torch.save({"x": torch.arange(50_000)}, pt)
    whole = pt.read_bytes()
    pt.write_bytes(whole[:-2000])
    assert "truncated" in run("convert", pt, "-o", path, status=4).stderr
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    pt.write_bytes(damaged)
    said = run("convert", pt, "-o", path, status=4).stderr
    assert "state/data/0" in said and "--ignore-checksums" in said
    assert os.listdir(tmp_path) == ["model.safetensors", "state.pt"] or not path.exists()
    run("convert", pt, "-o", path, "--ignore-checksums")
    pt.write_bytes(pickle.dumps([1])[:-3])
    run("convert", pt, "-o", path, "--force", status=4)


def test_packed_archives_are_read_not_mapped(path: Path, tmp_path: Path) -> None:
    """torch would map the compressed bytes as if they were the tensor's."""
    one, packed = tmp_path / "a.pt", tmp_path / "packed.pt"
    torch.save({"x": torch.arange(1000)}, one)
    with zipfile.ZipFile(one) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    run("convert", packed, "-o", path)
    same(pccheck.torch.load(path)["x"], torch.arange(1000))


def test_a_view_of_any_size_is_refused(path: Path, tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1).expand(1 << 40)}, tmp_path / "a.pt")
    assert "a view of 4 bytes" in run("convert", tmp_path / "a.pt", "-o", path, status=8).stderr


def test_unknown_inputs_are_named(path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello\x1b[31m")
    (tmp_path / "none.safetensors").write_bytes(b"")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "x-00001-of-00002.safetensors").write_bytes(b"")
    for name, status, word in (
        ("empty", 8, "holds nothing"), ("text.txt", 8, "68 65 6c 6c 6f"), ("nope", 8, "no such"),
        ("shards", 8, "x-00001-of-00002"), ("none.safetensors", 4, "model"), ("/dev/null", 8, ""),
    ):  # fmt: skip
        said = run("convert", tmp_path / name, "-o", path, status=status).stderr
        assert word.replace("model", "header") in said and "\x1b" not in said
    assert not path.exists()
    run("convert", "a.pt", "-o", tmp_path / "b.pt", status=8)
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04")
    run("convert", tmp_path / "a.pt", "-o", tmp_path / "b.pt", status=16)


def test_an_index_names_files_beside_it(path: Path, tmp_path: Path) -> None:
    folder = foreign.hugging_face(tmp_path / "hf", "safetensors-sharded")
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    first = next(iter(good["weight_map"]))
    for change, word in (
        ({first: "../../etc/passwd"}, "expected one beside it"), ({first: "nope"}, "not there"),
        ({"more": good["weight_map"][first]}, "'more' is not in it"), ({first: 1}, "weight_map"),
    ):  # fmt: skip
        index.write_text(json.dumps({"weight_map": {**good["weight_map"], **change}}))
        for source in (index, folder):
            assert word in run("convert", source, "-o", path, status=4).stderr
    index.write_text("[]")
    run("convert", index, "-o", path, status=4)


def test_what_is_there_stays(path: Path, tmp_path: Path) -> None:
    one = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(3)}, one)
    path.write_text("mine")
    assert "--force" in run("convert", one, "-o", path, status=8).stderr
    assert path.read_text() == "mine"
    run("convert", one, "-o", path, "--force")
    before = path.read_bytes()
    run("convert", path, "-o", path, "--to", "safetensors", "--force", status=16)
    link = tmp_path / "link.pt"
    link.symlink_to(path)
    run("convert", path, "-o", link, "--force", status=16)
    assert path.read_bytes() == before
    for target in (one, tmp_path):
        run("convert", path, "-o", target, "--to", "pt", status=8 if target == one else 16)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    said = run("convert", path, "-o", tmp_path / "full", "--to", "dcp", status=8).stderr
    assert "no directory is ever replaced" in said
    run("convert", path, "-o", tmp_path / "full", "--to", "hf", "--force", status=8)
    assert os.listdir(tmp_path / "full") == ["mine"]
    run("convert", path, "-o", tmp_path / "x")
    run("convert", path, path, "-o", tmp_path / "y", status=16)
    run("convert", path, "-o", tmp_path / "y.pcc", status=16)


def test_a_note_that_lies_is_refused(path: Path, tmp_path: Path) -> None:
    """The names in a checkpoint's note become files, so they must be nothing but names."""
    one = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(3)}, one)
    for index in (None, {"name": "../evil", "text": "{}"}):
        run("convert", one, "-o", path, "--force")
        content = path.read_bytes()
        note = json.dumps(index) if index else "null"
        state = pccheck.torch.load(path)
        rewrite(path, state, {"name": "../evil" if index is None else "a", "index": note}, content)
        said = run("convert", path, "-o", tmp_path / "out", "--to", "safetensors", status=4).stderr
        assert "which is no name" in said
    assert not (tmp_path.parent / "evil").exists()


LIES = [
    3, [], {"x": 3}, {"x": {"$tensor": "nope"}}, {"x": {"$tensor": {"a": 1}}}, {"$dict": [[1]]},
    {"x": {"$torch.Size": ["a"]}}, {"x": {"$torch.device": "nope"}}, {"x": {"$torch.dtype": "os"}},
    {"x": {"$view": "x", "dtype": "float32", "offset": 8, "shape": [9], "stride": [1]}},
    {"x": {"$array": "x", "dtype": "O"}}, {"files": {"../evil": {"$bytes": ""}}, "model": {}},
    {"files": {"a": {"$bytes": {"tensor": "nope"}}}}, {"x": {"$ordered": {}, "_metadata": 3}},
    {"x": {"$sharded": {}}}, {"x": {"$nope": 1}}, {"model": {"x": {"$tensor": "x"}}, "../a": 1},
]  # fmt: skip


@pytest.mark.parametrize("state", LIES, ids=json.dumps)
def test_a_state_document_that_lies_is_refused(path: Path, tmp_path: Path, state: Any) -> None:
    from pccheck._convert import inputs
    from pccheck._convert.target import Encoded, Settings, Target

    save_file({"x": torch.ones(3)}, tmp_path / "a.safetensors")
    (tmp_path / "out").mkdir()
    for part in (None, "part"):
        opened = inputs.open_input(
            str(tmp_path / "a.safetensors"), "safetensors", inputs.Options(), lambda *_: None
        )
        encoded = Encoded(opened, part)
        encoded.metadata["pccheck.state"] = json.dumps({"version": 1, "state": state})
        settings = Settings(1, 1, "none", 1 << 20)
        with Target(str(path), settings, force=True, show=lambda *_: None) as target:
            target.save(0, encoded)
            target.publish()
        assert run_tool("pcfsck", "--verify", "full", path).returncode == 0
        for kind in ("pt", "safetensors", "dcp", "hf"):
            # Whatever can be made of it, or a clear word, and nothing outside of the place.
            foreign.tried("convert", path, "-o", tmp_path / "out" / f"{kind}-{part}", "--to", kind)
    assert set(os.listdir(tmp_path)) == {"a.safetensors", "run.pcc", "out"}
    assert not (tmp_path.parent / "evil").exists()


def rewrite(path: Path, state: Any, change: dict[str, Any], content: bytes) -> None:
    """Saves a state whose note says something else."""
    from pccheck._convert.inputs import Foreign
    from pccheck._convert.target import Encoded, Settings, Target
    from pccheck._convert.torch_file import encoder

    header = json.dumps({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}})
    note = {
        "files": [{"name": change["name"], "header": header}], "index": json.loads(change["index"])
    }  # fmt: skip
    made = Foreign("x", "safetensors", state, encoder(), {}, "safetensors", note)
    encoded = Encoded(made, None)
    settings = Settings(1, 1, "none", 1 << 20)
    with Target(str(path), settings, force=True, show=lambda *_: None) as target:
        target.save(0, encoded)
        target.publish()


# ---------------------------------------------------------------------------- interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    one = large_file(tmp_path / "large.safetensors", 512 << 20)
    folder = tmp_path / "out"
    folder.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-m", "pccheck", "convert", str(one), "-o", str(folder / "run.pcc")],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not os.listdir(folder):
        assert child.poll() is None, "it ended before it was interrupted"
        time.sleep(0.001)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 32 and "cancelled" in said
    assert os.listdir(folder) == []


def test_a_full_disk_leaves_nothing_behind(path: Path, tmp_path: Path, small_disk: Path) -> None:
    one = tmp_path / "state.pt"
    torch.save({f"x{i}": torch.arange(1 << 19) for i in range(4)}, one)
    run("convert", one, "-o", path)
    old = small_disk / "old.pt"
    old.write_text("old")
    (small_disk / "filler").write_bytes(bytes(12 << 20))
    for arguments in (
        ("convert", one, "-o", small_disk / "run.pcc"),
        ("convert", path, "-o", small_disk / "a.pt"),
        ("convert", path, "-o", old, "--force"),
        ("convert", path, "-o", small_disk / "d", "--to", "dcp"),
        ("convert", path, "-o", small_disk / "h", "--to", "hf"),
        ("convert", path, "-o", small_disk / "s.safetensors"),
        ("convert", path, "-o", small_disk / "t.safetensors", "--tensor", "*"),
    ):  # fmt: skip
        said = run(*arguments, status=8).stderr
        assert "No space left on device" in said or "full" in said, said
        assert sorted(os.listdir(small_disk)) == ["filler", "old.pt"], arguments
        assert old.read_text() == "old"
