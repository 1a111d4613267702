"""``python -m pccheck ls|verify|export``: what it says, to people and to programs."""

from __future__ import annotations

import json
import os
import pty
import select
import shlex
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import foreign
import jsonschema
import numpy as np
import pytest
import torch
from conftest import ROOT, pattern
from foreign import run, same
from safetensors.torch import load_file
from test_tools import run_tool

import pccheck
import pccheck.torch

PAGE = ROOT / "spec" / "PYTHON.md"


def validated(name: str, text: str) -> dict[str, Any]:
    """A document that fits its schema."""
    document: dict[str, Any] = json.loads(text)
    schema = json.loads((ROOT / "spec" / "schemas" / f"python-{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)
    return document


@pytest.fixture
def trained(path: Path) -> Path:
    """Three checkpoints of tensors of every type."""
    with pccheck.torch.Checkpointer(path, retain=3, chunk="64 KiB") as ckpt:
        for step in (10, 20, 30):
            ckpt.save(
                step, model=foreign.tensors(), pattern=torch.from_numpy(pattern(step, 1 << 15))
            ).wait()
    return path


def damage(path: Path, step: int) -> None:
    """Flips a bit in the middle of a tensor."""
    content = bytearray(path.read_bytes())
    content[content.index(pattern(step, 1 << 15)[20_000:20_004].tobytes())] ^= 0x40
    path.write_bytes(content)


def in_terminal(
    *arguments: object, columns: int = 80, stream: str = "stdout", **environment: str
) -> str:
    """What a person sees of one of the streams."""
    number, size = (1 if stream == "stdout" else 2), struct.pack("HHHH", 24, columns, 0, 0).hex()
    code = (
        f"import fcntl, sys, termios; fcntl.ioctl({number}, termios.TIOCSWINSZ, "
        f"bytes.fromhex('{size}')); from pccheck._cli import main; sys.exit(main(sys.argv[1:]))"
    )
    leader, follower = pty.openpty()
    other = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: follower}
    variables = {"TERM": "xterm", "LC_ALL": "C.UTF-8", **environment}
    child = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "COLUMNS": "", **variables}, **other,  # type: ignore[call-overload]
    )
    os.close(follower)
    seen = b""
    while select.select([leader], [], [], 60)[0]:
        try:
            seen += os.read(leader, 65536)
        except OSError:
            break
    os.close(leader)
    child.wait(60)
    return seen.decode()


# ---------------------------------------------------------------------------- ls


def test_ls_lists_checkpoints_and_tensors(trained: Path) -> None:
    out = run("ls", trained).stdout
    assert f"{trained}: 3 checkpoints" in out and out.count("durable") == 3
    document = validated("ls", run("ls", trained, "--json").stdout)
    found = document["files"][0]["checkpoints"]
    infos = pccheck.checkpoints(trained)
    assert [(entry["step"], entry["logical_digest"], entry["slot"]) for entry in found] == [
        (info.step, info.logical_digest, info.slot) for info in infos
    ]
    assert {entry["codec"] for entry in found} == {"none"}
    document = validated("ls", run("ls", trained, "--step", 20, "--json").stdout)
    tensors = document["files"][0]["tensors"]
    assert tensors["step"] == 20
    names = {entry["name"]: entry for entry in tensors["entries"]}
    assert names["model.bfloat16"]["shape"] == [3, 5]
    assert names["model.bfloat16"]["byte_count"] == 30
    listed = run_tool("pcextract", trained, "--list", "--step", 20, "--json")
    native = {entry["name"]: entry for entry in json.loads(listed.stdout)["tensors"]}
    assert native.keys() == names.keys()


def test_ls_of_several_files_goes_on_after_a_bad_one(trained: Path, tmp_path: Path) -> None:
    foreign_file = tmp_path / "foreign"
    foreign_file.write_bytes(b"x" * 10_000)
    made = run("ls", tmp_path / "missing", foreign_file, trained, "--json", status=8)
    assert len(validated("ls", made.stdout)["files"]) == 1
    assert made.stderr.count("pccheck:") == 2
    run("ls", trained, "--step", 11, status=8)


def test_codecs_are_told(path: Path) -> None:
    with pccheck.Checkpointer(path, codec="planes-zstd") as ckpt:
        ckpt.save(1, {"x": np.zeros(10_000)}).wait()
    assert "planes-zstd" in run("ls", path).stdout


def test_a_file_without_checkpoints(path: Path) -> None:
    pccheck.Checkpointer(path, capacity="1 MiB").close()
    assert "no checkpoint" in run("ls", path).stdout
    assert "holds no checkpoint" in run("verify", path, status=8).stderr
    assert "holds no checkpoint" in run("export", path, "-o", path.with_name("a.npz"),
                                        status=8).stderr  # fmt: skip


# ---------------------------------------------------------------------------- verify


def test_verify_names_what_is_damaged_and_what_a_resume_loads(trained: Path) -> None:
    made = run("verify", trained)
    assert "3 checkpoints sound" in made.stdout and "loads step 30" in made.stdout
    assert validated("verify", run("verify", trained, "--json").stdout)["files"][0]["is_sound"]
    damage(trained, 30)
    made = run("verify", trained, status=4)
    assert "1 of 3 damaged" in made.stdout and "1 tensor: pattern" in made.stdout
    assert "loads step 20" in made.stdout and "has digest" in made.stdout
    document = validated("verify", run("verify", trained, "--json", status=4).stdout)
    entry = document["files"][0]["checkpoints"][0]
    assert (entry["step"], entry["damaged_tensors"]) == (30, ["pattern"])
    assert [part["byte_count"] for part in entry["damaged_ranges"]] == [65536]
    assert document["files"][0]["resume"]["step"] == 20
    assert run("verify", trained, "--step", 20, "-q").stdout == ""
    run("verify", trained, "--step", 30, "-q", status=4)
    damage(trained, 20)
    damage(trained, 10)
    assert "no checkpoint that is whole" in run("verify", trained, status=4).stdout


def test_damage_is_told_from_its_neighbours(path: Path) -> None:
    """A tensor that ends just behind the beginning of a chunk."""
    state = {name: np.full(1 << 16, number, np.uint8) for number, name in enumerate("ab")}
    with pccheck.Checkpointer(path, chunk="64 KiB") as ckpt:
        ckpt.save(1, state).wait()
    content = bytearray(path.read_bytes())
    content[content.rindex(bytes([1]) * 4096)] ^= 1
    path.write_bytes(content)
    document = validated("verify", run("verify", path, "--json", status=4).stdout)
    entry = document["files"][0]["checkpoints"][0]
    assert entry["damaged_tensors"] == ["b"]
    assert entry["damaged_ranges"][0]["payload_offset"] == 2 << 16


def test_what_no_superblock_names_is_complete_and_used_once_verified(path: Path) -> None:
    """As a crash leaves it between the flush of a checkpoint and that of its superblock."""
    with pccheck.Checkpointer(path, retain=2, chunk="64 KiB") as ckpt:
        for step in (10, 20):
            state = {"pattern": pattern(step, 1 << 15), "other": np.full(1 << 16, step, np.uint8)}
            ckpt.save(step, state).wait()
            if step == 10:
                before = path.read_bytes()
    content = bytearray(path.read_bytes())
    for part in (slice(4096, 12288), slice(-12288, -4096)):
        content[part] = before[part]
    path.write_bytes(content)
    found = validated("ls", run("ls", path, "--json").stdout)["files"][0]["checkpoints"]
    assert [(entry["step"], entry["is_durable"]) for entry in found] == [(20, False), (10, True)]
    assert "complete" in run("ls", path).stdout
    assert "complete but not anchored" in run("verify", path).stdout
    out = path.with_name("a.safetensors")
    run("export", path, "-o", out, "--tensor", "other")
    assert load_file(out)["other"][0] == 20
    # A part of it is good only when all of it is.
    damage(path, 20)
    run("export", path, "-o", out, "--tensor", "other", "--force", status=4)
    assert load_file(out)["other"][0] == 10


def test_verify_sees_a_damaged_header(trained: Path) -> None:
    content = bytearray(trained.read_bytes())
    content[16384 + 40] ^= 1
    trained.write_bytes(content)
    made = run("verify", trained, "--json", status=4)
    assert "header-damaged" in validated("verify", made.stdout)["files"][0]["damaged_slots"][0]


# ---------------------------------------------------------------------------- export


def test_export_writes_what_others_open(trained: Path, tmp_path: Path) -> None:
    state = pccheck.torch.load(trained)
    flat = {f"model.{name}": tensor for name, tensor in state["model"].items()}
    out = tmp_path / "a.safetensors"
    made = validated("export", run("export", trained, "-o", out, "--json").stdout)
    assert made["step"] == 30 and made["files"] == [str(out)] and not made["is_fallback"]
    native = tmp_path / "native.safetensors"
    assert run_tool("pcextract", trained, "-o", native).returncode == 0
    assert out.read_bytes() == native.read_bytes()
    run("export", trained, "-o", tmp_path / "a.pt")
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    same(found["model"], state["model"])
    for name, kind in (("a.npz", "npz"), ("folder", "npy")):
        run("export", trained, "-o", tmp_path / name, "--format", kind)
        with_arrays(tmp_path / name, flat)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.testzip() is None


def with_arrays(path: Path, flat: dict[str, torch.Tensor]) -> None:
    """Compares an archive, or a directory, with the tensors it was made of."""
    if path.is_dir():
        note = json.loads((path / "index.json").read_text())
        arrays = {
            entry["name"]: np.load(path / entry["file"], allow_pickle=False)
            for entry in note["tensors"]
        }
        assert len(os.listdir(path)) == len(arrays) + 1
    else:
        with np.load(path, allow_pickle=False) as archive:
            note = json.loads(bytes(archive["__pccheck__"]))
            arrays = {entry["name"]: archive[entry["key"]] for entry in note["tensors"]}
    assert note["step"] == 30
    stand_ins = {entry["name"] for entry in note["tensors"] if entry["is_bit_pattern"]}
    for name, tensor in flat.items():
        assert arrays[name].tobytes() == foreign.words(tensor), name
        if name in ("model.float32", "model.empty", "model.scalar"):
            assert tuple(arrays[name].shape) == tuple(tensor.shape) and name not in stand_ins
    assert "model.bfloat16" in stand_ins


def test_export_of_some_tensors_and_of_a_step(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    run("export", trained, "-o", out, "--step", 10, "--tensor", "pattern", "--tensor", "*.odd")
    found = load_file(out)
    assert set(found) == {"pattern", "model.odd"}
    assert np.array_equal(found["pattern"].numpy(), pattern(10, 1 << 15))
    assert foreign.words(found["model.odd"]) == foreign.words(foreign.odd_floats())
    run("export", trained, "-o", out, "--tensor", "model.*", "--exclude", "*8*", "--force")
    assert "model.float8_e5m2" not in load_file(out) and "model.float32" in load_file(out)
    pt = tmp_path / "a.pt"
    run("export", trained, "-o", pt, "--tensor", "model.*float*")
    same(torch.load(pt, weights_only=True)["model.bfloat16"], foreign.tensors()["bfloat16"])
    assert "no tensor fits" in run("export", trained, "-o", out, "--force", "--tensor", "x",
                                   status=16).stderr  # fmt: skip


def test_export_falls_back_and_says_so(trained: Path, tmp_path: Path) -> None:
    damage(trained, 30)
    for kind in ("safetensors", "npz", "npy", "pt"):
        out = tmp_path / f"out-{kind}"
        made = run("export", trained, "-o", out, "--format", kind, "--json", status=4)
        document = validated("export", made.stdout)
        assert document["step"] == 20 and document["is_fallback"]
        assert "step 30 (sequence 3) cannot be used" in made.stderr
        run("export", trained, "-o", tmp_path / "not", "--step", 30, "--format", kind, status=4)
    assert sorted(os.listdir(tmp_path)) == [
        "out-npy", "out-npz", "out-pt", "out-safetensors", "run.pcc",
    ]  # fmt: skip


def test_export_replaces_only_what_it_is_told_to(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.npz"
    out.write_text("mine")
    assert "--force" in run("export", trained, "-o", out, status=8).stderr
    assert out.read_text() == "mine"
    link = tmp_path / "link.npz"
    link.symlink_to(out)
    run("export", trained, "-o", link, "--force")
    assert link.is_symlink() and zipfile.is_zipfile(out)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine").write_text("x")
    run("export", trained, "-o", folder, "--force", status=8)
    assert os.listdir(folder) == ["mine"]
    run("export", trained, "-o", tmp_path / "no-suffix", status=16)
    run("export", trained, "-o", tmp_path / "missing" / "a.npz", status=8)
    assert not [name for name in os.listdir(tmp_path) if "creating" in name]


def test_arrays_become_tensors_for_weights_only(path: Path, tmp_path: Path) -> None:
    state = {
        "array": np.arange(4, dtype=">i4"), "time": np.array(["2024-01-02"], "M8[D]"),
        "number": np.float32(0.5), "sets": frozenset([1]), "bytes": b"\x00\xff",
    }  # fmt: skip
    with pccheck.Checkpointer(path) as ckpt:
        ckpt.save(1, state).wait()
    run("export", path, "-o", tmp_path / "a.pt")
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    assert found["array"].tolist() == [0, 1, 2, 3] and found["number"] == 0.5
    assert found["sets"] == {1} and found["bytes"] == b"\x00\xff"
    assert found["time"].dtype == torch.int64


# ---------------------------------------------------------------------------- shared storage


def test_pcextract_keeps_shared_storage(path: Path, tmp_path: Path) -> None:
    base = torch.arange(24.0)
    numbers = torch.arange(8, dtype=torch.int64)
    pairs = torch.arange(12.0).view(torch.complex64)
    state = {
        "rows": [base[2:14].view(3, 4), base[6:20], base[2:14].view(3, 4)],
        "types": (numbers, numbers.view(torch.int32), numbers.view(torch.bfloat16)),
        "complex": {"whole": pairs, "half": pairs[1:4]},
        "steps": [base[8:22:2], base[9:23]], "alone": torch.ones(3),
    }  # fmt: skip
    with pccheck.torch.Checkpointer(path) as ckpt:
        ckpt.save(1, rng=False, **state).wait()
    out = tmp_path / "shared.pt"
    made = run_tool("pcextract", path, "-o", out, "--json")
    assert json.loads(made.stdout)["checkpoints"][0]["state"] == "nested", made.stderr
    for mmap in (False, True):
        found = torch.load(out, weights_only=True, mmap=mmap)
        same(found, pccheck.torch.load(path))
        rows = found["rows"]
        assert rows[0] is rows[2]
        rows[0][1, 0] = -1.0
        assert rows[1][0] == -1.0 and found["steps"][0].stride() == (2,)
        found["types"][1][0] = 7
        assert found["types"][0][0] == 7
        found["complex"]["half"][0] = 9
        assert found["complex"]["whole"][1] == 9


# ---------------------------------------------------------------------------- screens


HOSTILE = "w\x1b[2J\u202e\n\x9b31m" + "ä日本" * 40


@pytest.fixture
def hostile(path: Path) -> Path:
    """Names that would clear the screen."""
    with pccheck.Checkpointer(path) as ckpt:
        ckpt.save(1, {HOSTILE: np.ones(3), "plain": np.ones(2)}).wait()
    return path


@pytest.mark.parametrize("columns", [80, 60])
def test_screens_fit_and_do_no_harm(hostile: Path, columns: int) -> None:
    for arguments in (("ls", hostile), ("ls", hostile, "--step", 1), ("ls", "--help")):
        seen = in_terminal(*arguments, columns=columns, NO_COLOR="1")
        assert not set(seen) & set("\x1b\x9b\u202e"), seen
        lines = seen.replace(str(hostile), "run.pcc").splitlines()
        assert len(lines) > 2
        assert all(cells(line) <= max(columns, 80) for line in lines), seen
    assert "w\\u{1b}[2J\\u{202e}\\n" in in_terminal("ls", hostile, "--step", 1, columns=200)


def test_damage_is_told_in_lines_that_fit(trained: Path) -> None:
    damage(trained, 30)
    content = bytearray(trained.read_bytes())
    content[16384 + 40] ^= 1
    trained.write_bytes(content)
    for command in ("verify", "ls"):
        seen = in_terminal(command, trained, NO_COLOR="1").replace(str(trained), "run.pcc")
        assert "damage" in seen and all(cells(line) <= 80 for line in seen.splitlines()), seen


def cells(line: str) -> int:
    """Columns of a line."""
    from pccheck._cli.terminal import column_count

    return column_count(line)


def test_colour_and_drawing_are_for_terminals_that_have_them(hostile: Path) -> None:
    assert "\x1b[32mdurable\x1b[0m" in in_terminal("ls", hostile)
    assert "\x1b" not in in_terminal("ls", hostile, TERM="dumb")
    seen = in_terminal("ls", hostile, "--step", 1, LC_ALL="C")
    assert "×" not in seen and "…" not in seen
    made = run("ls", hostile, "--step", 1)
    assert "\x1b" not in made.stdout and "日本" in made.stdout
    names = [entry["name"] for entry in json.loads(
        run("ls", hostile, "--step", 1, "--json").stdout)["files"][0]["tensors"]["entries"]]
    assert HOSTILE in names


def test_progress_is_for_terminals(trained: Path, tmp_path: Path) -> None:
    seen = in_terminal("verify", trained, stream="stderr")
    assert "verifying step 30" in seen and "█" in seen and seen.endswith("\r\x1b[2K")
    assert in_terminal("verify", trained, "--quiet", stream="stderr") == ""
    seen = in_terminal("export", trained, "-o", tmp_path / "a.npz", stream="stderr")
    assert "writing" in seen and "100 %" in seen
    assert run("verify", trained).stderr == ""


def test_messages_are_escaped(tmp_path: Path) -> None:
    said = run("ls", tmp_path / "a\x1b[31m\n", status=8).stderr
    assert "\x1b" not in said and said.count("\n") == 1
    said = run("ls", "x", "--nope\x1b[31m", status=16).stderr
    assert "\x1b" not in said and "unrecognized" in said


# ---------------------------------------------------------------------------- the program


def test_usage_and_help() -> None:
    assert "exit status:" in run("--help").stdout
    for command in ("ls", "verify", "export", "convert"):
        text = run(command, "--help").stdout
        assert "examples:" in text and "--json" in text
        assert all(len(line) <= 80 for line in text.splitlines())
    assert "python -m pccheck 0." in run("--version").stdout
    for wrong in ([], ["nope"], ["ls"], ["export", "x"], ["ls", "x", "--step", "-1"],
                  ["ls", "x", "--step", "a"]):  # fmt: skip
        made = run(*wrong, status=16)
        assert made.stdout == "" and "usage: python -m pccheck" in made.stderr


def test_a_reader_who_has_enough_is_no_error(trained: Path) -> None:
    command = f"'{sys.executable}' -m pccheck ls '{trained}' --step 10 --json; echo $? >&2"
    made = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {{ {command}; }} | head -c 1"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert made.stderr.strip() == "0"
    made = subprocess.run(
        ["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True, timeout=60
    )
    assert "No space left on device" in made.stderr


def test_torch_is_imported_only_for_its_own_formats(trained: Path, tmp_path: Path) -> None:
    """With a torch that cannot be imported, everything else works."""
    one = tmp_path / "one.safetensors"
    foreign.save_file({"x": torch.arange(5).bfloat16()}, one)
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    code = "\n".join(
        [
            "import sys; sys.path.insert(0, sys.argv[1]); from pccheck._cli import main",
            "for line in sys.argv[2:]:",
            "    print(main(line.split()))",
        ]
    )
    lines = [
        f"ls {trained}", f"verify {trained}", f"export {trained} -o {tmp_path}/a.safetensors",
        f"export {trained} -o {tmp_path}/a.npz", f"export {trained} -o {tmp_path}/n/",
        f"convert {one} -o {tmp_path}/b.pcc",
        f"convert {tmp_path}/b.pcc -o {tmp_path}/b.safetensors",
        f"export {trained} -o {tmp_path}/a.pt", f"convert {tmp_path}/b.pcc -o {tmp_path}/b.pt",
    ]  # fmt: skip
    made = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *lines],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    statuses = [line for line in made.stdout.splitlines() if line.isdigit()]
    assert statuses == ["0"] * 7 + ["8"] * 2, made.stderr
    assert "pip install torch" in made.stderr
    assert (tmp_path / "b.safetensors").read_bytes() == one.read_bytes()


def test_the_page_shows_commands_that_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command of the page runs, in order, with the files that its comments name."""
    section = PAGE.read_text().split("## At the command line")[1].split("\n## ")[0]
    commands = [
        shlex.split(line[2:], comments=True)
        for block in section.split("```console")[1:]
        for line in block.split("```")[0].splitlines() if line.startswith("$ ")
    ]  # fmt: skip
    assert len(commands) >= 8
    monkeypatch.chdir(tmp_path)
    with pccheck.torch.Checkpointer("run.pcc", retain=2) as ckpt:
        for step in (900, 1000):
            ckpt.save(step, model=foreign.torch_state()["model"]).wait()
    foreign.hugging_face(tmp_path / "checkpoint-500")
    foreign.hugging_face(tmp_path / "checkpoint-1000", step=1000)
    torch.save(foreign.torch_state(), "old.pt")
    foreign.dcp_directory(tmp_path / "dcp", {"model": foreign.torch_state()["model"]})
    for command in commands:
        assert command[:3] == ["python", "-m", "pccheck"]
        run(*command[3:])
