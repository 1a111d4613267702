"""``python -m pccheck``: the Swift tools under one name, and what Python adds to them."""

from __future__ import annotations

import json
import os
import pty
import select
import shlex
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch
from conftest import ROOT, pattern
from foreign import run
from safetensors.torch import load_file
from test_tools import TOOLS, run_tool

import pccheck
import pccheck.distributed
import pccheck.torch

PAGE = ROOT / "spec" / "PYTHON.md"


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
        f"bytes.fromhex('{size}')); from pccheck_program import main; sys.exit(main(sys.argv[1:]))"
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


# ---------------------------------------------------------------------------- one toolset


def module(
    *arguments: object, status: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m pccheck`` as a user does."""
    made = subprocess.run(
        [sys.executable, "-m", "pccheck", *map(str, arguments)],
        capture_output=True, text=True, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip
    assert made.returncode == status, (made.stdout[-500:], made.stderr[-2000:])
    return made


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("pcfsck", ["--verify", "full", "FILE"]), ("pcfsck", ["--json", "FILE", "missing"]),
        ("pcinspect", ["FILE", "--json"]), ("pcinspect", ["tensors", "FILE", "--step", "20"]),
        ("pcinspect", ["chunks", "FILE", "--verify"]), ("pcinspect", ["slots", "missing"]),
        ("pcextract", ["FILE", "--list", "--json"]), ("pcextract", ["FILE", "-o", "-"]),
    ],
)  # fmt: skip
def test_a_subcommand_is_the_tool(trained: Path, tool: str, words: list[str]) -> None:
    damage(trained, 30)
    arguments = [str(trained) if word == "FILE" else word for word in words]
    runs = [
        subprocess.run([*command, *arguments], capture_output=True, timeout=60)
        for command in (
            [TOOLS / tool], [TOOLS / "pccheck", tool.removeprefix("pc")],
            [sys.executable, "-m", "pccheck", tool.removeprefix("pc")],
        )
    ]  # fmt: skip
    wanted, *others = [(made.returncode, stable(made.stdout), made.stderr) for made in runs]
    assert wanted[1] or wanted[2]
    assert others == [wanted, wanted]


def stable(output: bytes) -> bytes:
    """Without the lines that say how old a checkpoint is."""
    return b"\n".join(line for line in output.splitlines() if b"ago" not in line)


def test_every_command_of_the_program_is_reached(tmp_path: Path) -> None:
    made = module("create", tmp_path / "new.pcc", "--capacity", "1MiB")
    assert made.stderr == "" and (tmp_path / "new.pcc").exists()
    assert module("--version").stdout == run_tool("pccheck", "--version").stdout
    text = module("--help").stdout
    assert text == run_tool("pccheck", "--help").stdout
    assert "python -m pccheck convert" in text
    for command in ("fsck", "extract"):
        text = module(command, "--help").stdout
        assert f"USAGE: pccheck {command} " in text and f"pc{command} " not in text
        assert all(len(line) <= 80 for line in text.splitlines())
    assert "USAGE: pccheck inspect <subcommand>" in module("inspect", "--help").stdout
    for wrong in (["nope"], ["fsck"], ["extract", "x"], ["inspect", "tensors"]):
        made = module(*wrong, status=16)
        assert made.stdout == "" and "Usage: pccheck" in made.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [("ls", "inspect FILE"), ("verify", "fsck --verify full"), ("export", "extract FILE -o OUT")],
)
def test_an_old_command_names_the_new_one(command: str, words: str) -> None:
    made = module(command, "run.pcc", status=16)
    assert made.stdout == "" and made.stderr.count("\n") == 1 and words in made.stderr


@pytest.mark.parametrize("stream", ["2>&-", "2>/dev/full"])
def test_the_status_is_right_where_no_message_can_be_written(stream: str) -> None:
    for words, status in (("ls x", 16), ("fsck x", 8)):
        command = f"PCCHECK_PROGRAM=/none '{sys.executable}' -m pccheck {words} {stream}"
        assert subprocess.run(["sh", "-c", command], timeout=60).returncode == status


def test_a_script_with_another_name_is_pccheck(tmp_path: Path) -> None:
    other = tmp_path / "checkpoints"
    other.symlink_to(Path(sys.executable).parent / "pccheck")
    for words in (["convert", "--help"], ["--help"]):
        made = subprocess.run([other, *words], capture_output=True, text=True, timeout=60)
        assert made.stdout == module(*words).stdout


def test_the_scripts_of_an_environment_are_the_tools(trained: Path) -> None:
    scripts = Path(sys.executable).parent
    for tool in ("pccheck", "pcfsck", "pcinspect", "pcextract"):
        words = [tool, "--help"]
        made = subprocess.run([scripts / tool, "--help"], capture_output=True, text=True)
        assert made.stdout == run_tool(*words).stdout, made.stderr
    made = subprocess.run([scripts / "pcfsck", trained], capture_output=True, text=True)
    assert (made.returncode, made.stderr) == (0, "") and "loads step 30" in made.stdout
    out = trained.with_name("out.safetensors")
    subprocess.run([scripts / "pccheck", "convert", trained, "-o", out, "-q"], check=True)
    assert load_file(out)["pattern"].numpy().tobytes() == pattern(30, 1 << 15).tobytes()


def test_an_interrupt_before_the_program_runs_ends_it_silently(tmp_path: Path) -> None:
    """The script waits at a pipe that stands for the program."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    script = Path(sys.executable).parent / "pcfsck"
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", script, "x"], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PCCHECK_PROGRAM": str(pipe)},
    ) as child:  # fmt: skip
        writer = None
        while writer is None and child.poll() is None:
            try:
                writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                # Nobody reads yet.
                time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=30)[1]
    assert writer is not None, said
    os.close(writer)
    assert child.returncode == -signal.SIGINT
    assert "Traceback" not in said and "KeyboardInterrupt" not in said
    # Nothing that takes long came before.
    assert "pccheck_program" in said and "numpy" not in said


def test_a_program_that_is_missing(tmp_path: Path) -> None:
    said = module("fsck", "x", status=8, PCCHECK_PROGRAM=str(tmp_path / "none")).stderr
    assert f"{tmp_path / 'none'}: No such file" in said and "make tools" in said
    closed = tmp_path / "closed"
    closed.write_bytes(b"\x7fELF, but not executable")
    assert "denied" in module("fsck", "x", status=8, PCCHECK_PROGRAM=str(closed)).stderr


def test_the_program_is_never_the_script_that_starts_it() -> None:
    script = Path(sys.executable).parent / "pccheck"
    said = module("fsck", "x", status=8, PCCHECK_PROGRAM=str(script)).stderr
    assert f"{script}: not the program" in said


def test_the_program_on_the_path_is_never_a_script(tmp_path: Path) -> None:
    """Without the program in the package, and with the environment's own script in front."""
    places = [tmp_path / "scripts", TOOLS]
    places[0].mkdir()
    (places[0] / "pccheck").write_text("#!/bin/sh\nexec pccheck $@")
    (places[0] / "pccheck").chmod(0o755)
    code = (
        "import sys; import pccheck_program as program;"
        "program.__file__ = '/nowhere/at/all/there/is/x.py';"
        "sys.exit(program.become('pcfsck', ['--version']))"
    )
    for path, status in ((places, 0), (places[:1], 8)):
        made = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
            env={**os.environ, "PATH": os.pathsep.join(map(str, path))},
        )  # fmt: skip
        assert made.returncode == status, made.stderr


# ---------------------------------------------------------------------------- what they tell


def document(*arguments: object, status: int = 0) -> dict[str, Any]:
    """What a command prints for programs."""
    made = run_tool("pccheck", *arguments, "--json")
    assert made.returncode == status, made.stderr
    found: dict[str, Any] = json.loads(made.stdout)
    return found


def test_the_same_checkpoints_and_tensors_as_in_python(trained: Path) -> None:
    slots = document("inspect", "slots", trained)["slots"]
    infos = pccheck.checkpoints(trained)
    assert len(infos) == 3
    for info in infos:
        header = slots[info.slot]["header"]
        # The tools print it as a number, Python as the bytes of the file.
        digest = bytes.fromhex(header["logical_digest"])[::-1].hex()
        assert (header["step"], digest) == (info.step, info.logical_digest)
    tensors = document("inspect", "tensors", trained, "--step", 20)
    entries = {entry["name"]: entry for entry in tensors["tensors"]}
    assert tensors["step"] == 20 and entries["model.bfloat16"]["shape"] == [3, 5]
    listed = document("extract", trained, "--list", "--step", 20)["tensors"]
    assert [entry["name"] for entry in listed] == list(entries)


def test_of_several_files_a_bad_one_does_not_hide_the_others(
    trained: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "foreign"
    bad.write_bytes(b"x" * 10_000)
    files = document("fsck", tmp_path / "missing", bad, trained, status=12)["files"]
    assert [entry["exit_status"] for entry in files] == [8, 4, 0]


def test_a_file_without_checkpoints(path: Path) -> None:
    pccheck.Checkpointer(path, capacity="1 MiB").close()
    assert run_tool("pccheck", "inspect", path).returncode == 0
    made = run_tool("pccheck", "extract", path, "-o", path.with_name("a.npz"))
    assert made.returncode == 8 and "no checkpoint" in made.stderr
    said = run("convert", path, "-o", path.with_name("a.safetensors"), status=8).stderr
    assert "holds no checkpoint" in said
    assert os.listdir(path.parent) == [path.name]


def test_what_is_damaged_and_what_a_resume_loads(trained: Path, tmp_path: Path) -> None:
    assert "loads step 30" in run_tool("pccheck", "fsck", "--verify", "full", trained).stdout
    damage(trained, 30)
    (entry,) = document("fsck", "--verify", "full", trained, status=4)["files"]
    assert [finding["id"] for finding in entry["findings"]] == ["PCK-C001"]
    assert entry["resume"]["choice"]["step"] == 20
    made = run_tool("pccheck", "inspect", "chunks", trained, "--step", "20", "--verify")
    assert made.returncode == 0
    made = run_tool("pccheck", "inspect", "chunks", trained, "--step", "30", "--verify")
    assert made.returncode == 4 and "✘" in made.stdout
    out = tmp_path / "left.safetensors"
    made = run_tool("pccheck", "extract", trained, "--step", "30", "--salvage", "-o", out)
    assert made.returncode == 4 and "pattern" not in load_file(out)
    damage(trained, 20)
    damage(trained, 10)
    (entry,) = document("fsck", "--verify", "full", trained, status=4)["files"]
    assert entry["resume"]["choice"] is None


def test_damage_is_told_from_its_neighbours(path: Path) -> None:
    """A tensor that ends just behind the beginning of a chunk."""
    state = {name: np.full(1 << 16, number, np.uint8) for number, name in enumerate("ab")}
    with pccheck.Checkpointer(path, chunk="64 KiB") as ckpt:
        ckpt.save(1, state).wait()
    content = bytearray(path.read_bytes())
    content[content.rindex(bytes([1]) * 4096)] ^= 1
    path.write_bytes(content)
    out = path.with_name("left.safetensors")
    made = run_tool("pccheck", "extract", path, "--step", "1", "--salvage", "-o", out)
    assert made.returncode == 4
    assert set(load_file(out)) == {"a"}
    holes = json.loads(Path(f"{out}.holes.json").read_text())["holes"]
    assert [hole["payload_range"] for hole in holes] == [[2 << 16, 2 << 16 | 4096]]


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
    listed = document("extract", path, "--list")["checkpoints"]
    assert [(entry["step"], entry["kind"]) for entry in listed] == [
        (20, "unanchored"), (10, "anchored"),
    ]  # fmt: skip
    out = path.with_name("a.safetensors")
    words = [("extract", path, "-o", out), ("convert", path, "-o", out, "--force")]
    for command, wanted, status in ((words[0], 20, 0), (words[1], 20, 0)):
        run_or_tool(*command, "--tensor", "other", status=status)
        assert load_file(out)["other"][0] == wanted
    # A part of it is good only when all of it is.
    damage(path, 20)
    for command in words:
        run_or_tool(*command, "--tensor", "other", status=4)
        assert load_file(out)["other"][0] == 10


def run_or_tool(command: str, *arguments: object, status: int) -> None:
    """Runs a command, whichever program it belongs to."""
    if command == "convert":
        run(command, *arguments, status=status)
        return
    made = run_tool("pccheck", command, *arguments)
    assert made.returncode == status, made.stderr


def test_a_damaged_header_is_seen(trained: Path) -> None:
    content = bytearray(trained.read_bytes())
    content[16384 + 40] ^= 1
    trained.write_bytes(content)
    (entry,) = document("fsck", trained, status=4)["files"]
    assert "header-damaged" in [slot["reason"] for slot in entry["slots"]]


# ---------------------------------------------------------------------------- extracting


def test_a_folder_of_arrays_is_an_unpacked_archive(trained: Path, tmp_path: Path) -> None:
    assert run_tool("pccheck", "extract", trained, "-o", tmp_path / "a.npz").returncode == 0
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "arrays")
    names = json.loads(bytes(np.load(tmp_path / "arrays" / "__pccheck__.npy")))["tensors"]
    state = pccheck.torch.load(trained)
    for entry in names:
        array = np.load(tmp_path / "arrays" / f"{entry['key']}.npy", allow_pickle=False)
        part, _, key = entry["name"].partition(".")
        if part == "model":
            assert array.tobytes() == foreign.words(state["model"][key]), entry


def test_some_tensors_of_a_step(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    some = ("--tensor", "pattern", "--tensor", "*.odd", "--step", 10)
    for command in (("extract", trained, "-o", out), ("convert", trained, "-o", out, "--force")):
        run_or_tool(*command, *some, status=0)
        found = load_file(out)
        assert set(found) == {"pattern", "model.odd"}
        assert np.array_equal(found["pattern"].numpy(), pattern(10, 1 << 15))
        assert foreign.words(found["model.odd"]) == foreign.words(foreign.odd_floats())
        run_or_tool(*command, "--tensor", "model.*", "--exclude", "*8*", status=0)
        assert "model.float8_e5m2" not in load_file(out) and "model.float32" in load_file(out)
        run_or_tool(*command, "--tensor", "x", status=16)


@pytest.mark.parametrize("kind", ["safetensors", "npz", "pt"])
def test_an_older_one_is_taken_and_that_is_said(
    trained: Path, tmp_path: Path, kind: str
) -> None:
    damage(trained, 30)
    made = run_tool("pccheck", "extract", trained, "-o", tmp_path / f"out.{kind}")
    assert made.returncode == 4 and "falling back to step 20" in made.stderr
    made = run_tool("pccheck", "extract", trained, "-o", tmp_path / f"no.{kind}", "--step", 30)
    assert made.returncode == 4
    if kind != "npz":
        out = tmp_path / f"python.{kind}"
        said = run("convert", trained, "-o", out, status=4).stderr
        assert "step 30 (sequence 3) cannot be used" in said
        run("convert", trained, "-o", tmp_path / f"no.{kind}", "--step", 30, status=4)
        assert out.exists()
    assert not (tmp_path / f"no.{kind}").exists()


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
    tensors = ("inspect", "tensors", hostile)
    for arguments in (("inspect", hostile), tensors, ("fsck", hostile)):
        seen = in_terminal(*arguments, columns=columns, NO_COLOR="1")
        assert not set(seen) & set("\x1b\x9b\u202e"), seen
        lines = seen.replace(str(hostile), "run.pcc").splitlines()
        assert len(lines) > 1
        assert all(cells(line) <= 80 for line in lines), seen
    assert "w\\u{1b}[2J\\u{202e}\\n" in in_terminal(*tensors, columns=200)


def cells(line: str) -> int:
    """Columns of a line."""
    from pccheck._cli.terminal import column_count

    return column_count(line)


def test_progress_is_for_terminals(trained: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "a.safetensors", "--force")
    seen = in_terminal("convert", trained, *out, stream="stderr")
    assert "writing" in seen and "█" in seen and "100 %" in seen and seen.endswith("\r\x1b[2K")
    assert "█" not in in_terminal("convert", trained, *out, stream="stderr", LC_ALL="C")
    assert in_terminal("convert", trained, *out, "--quiet", stream="stderr") == ""
    assert run("convert", trained, *out).stderr == ""


def test_colour_is_for_terminals_that_have_it(tmp_path: Path) -> None:
    words = ("convert", tmp_path / "missing", "-o", tmp_path / "a.pcc")
    assert "\x1b[31mpccheck:\x1b[0m" in in_terminal(*words, stream="stderr")
    assert "\x1b" not in in_terminal(*words, stream="stderr", TERM="dumb")


def test_messages_are_escaped(tmp_path: Path) -> None:
    said = run("convert", tmp_path / "a\x1b[31m\n", "-o", "x.pcc", status=8).stderr
    assert "\x1b" not in said and said.count("\n") == 1
    said = run("convert", "x", "-o", "y", "--nope\x1b[31m", status=16).stderr
    assert "\x1b" not in said and "unrecognized" in said


# ---------------------------------------------------------------------------- convert


def test_usage_and_help() -> None:
    text = run("convert", "--help").stdout
    assert "examples:" in text and "exit status:" in text and "--json" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert run("convert", "--version").stdout == f"{pccheck.__version__}\n"
    for wrong in ([], ["x"], ["x", "-o", "y", "--step", "-1"], ["x", "-o", "y", "--step", "a"]):
        made = run("convert", *wrong, status=16)
        assert made.stdout == "" and "usage: python -m pccheck convert" in made.stderr


def test_a_reader_who_has_enough_is_no_error(trained: Path) -> None:
    out = trained.with_name("out.safetensors")
    command = f"'{sys.executable}' -m pccheck convert '{trained}' -o '{out}' --force --json"
    made = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {{ {command}; echo $? >&2; }} | true"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert made.stderr.strip() == "0"
    made = subprocess.run(
        ["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True, timeout=60
    )
    assert made.returncode == 8 and "No space left on device" in made.stderr


def test_torch_is_imported_only_for_its_own_formats(path: Path, tmp_path: Path) -> None:
    """With a torch that cannot be imported, everything else works."""
    one = tmp_path / "one.safetensors"
    foreign.save_file({"x": torch.arange(5).bfloat16()}, one)
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    code = "\n".join(
        [
            "import sys; sys.path.insert(0, sys.argv[1]); from pccheck_program import main",
            "for line in sys.argv[2:]:",
            "    print(main(line.split()))",
        ]
    )
    lines = [
        f"convert {one} -o {path}", f"convert {path} -o {tmp_path}/b.safetensors",
        f"convert {path} -o {tmp_path}/x.safetensors --tensor x",
        f"convert {path} -o {tmp_path}/b.pt",
    ]  # fmt: skip
    made = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *lines],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    statuses = [line for line in made.stdout.splitlines() if line.isdigit()]
    assert statuses == ["0"] * 3 + ["8"], made.stderr
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
    with pccheck.distributed.Checkpointer("run") as group:
        group.save(1000, model=foreign.torch_state()["model"]).wait_group()
    foreign.hugging_face(tmp_path / "checkpoint-500")
    foreign.hugging_face(tmp_path / "checkpoint-1000", step=1000)
    torch.save(foreign.torch_state(), "old.pt")
    foreign.dcp_directory(tmp_path / "dcp", {"model": foreign.torch_state()["model"]})
    for command in commands:
        assert command[:2] == ["python", "-m"] and command[2] in ("pccheck", "zipfile")
        made = subprocess.run(
            [sys.executable, *command[1:]], capture_output=True, text=True, timeout=120
        )
        assert made.returncode == 0, (command, made.stderr)
