"""Manual pages: they render, they document every option and no other, and their examples run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import MANUAL, NAMES, TOOLS, Command, command

PAGES = sorted(page.name for page in MANUAL.iterdir())
OPTION = re.compile(r"(?<![\w-])--?[A-Za-z][A-Za-z0-9-]*")


def run(*words: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


def plain(line: str) -> str:
    """A line of a page without its macro, fonts, quotes and escapes."""
    line = re.sub(r"\\f(.|\(..|\[[^]]*\])", "", line)
    line = re.sub(r"^\.\w+ ?", "", line)
    return line.replace('"', "").replace(r"\-", "-").replace(r"\&", "").replace(r"\e", "\\")


def sections(page: str) -> dict[str, list[str]]:
    """The lines of a page's source by the heading above them; headings as they are printed."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in (MANUAL / page).read_text().splitlines():
        if line.startswith(".SH "):
            heading = plain(line)
        found.setdefault(heading, []).append(line)
    return found


def documented(lines: list[str]) -> set[str]:
    """The options that tagged paragraphs explain."""
    tags = [lines[index + 1] for index, line in enumerate(lines) if line.startswith(".TP")]
    tags += [line for line in lines if line.startswith(".TQ")]
    return {option for tag in tags for option in OPTION.findall(plain(tag))}


def sections_for(tool: Command, subcommand: Command) -> list[str]:
    """Headings under which an option of the subcommand may be explained."""
    own = f"OPTIONS OF {subcommand.name.upper()}"
    headings = sections(f"{tool.name}.1")
    common = [name for name in headings if name in ("OPTIONS", "COMMON OPTIONS")]
    return common + ([own] if own in headings else [])


def described_elsewhere(tool: Command, part: Command) -> bool:
    """True for ``pccheck fsck``, which is pcfsck(1)."""
    return tool.name == "pccheck" and f"pc{part.name}" in NAMES


def own_parts(tool: Command) -> list[Command]:
    """The tool and its subcommands, apart from what another page describes."""
    own = [part for part in tool.subcommands if not described_elsewhere(tool, part)]
    return [tool, *(part for subcommand in own for part in subcommand.all())]


# -- how they look


@pytest.mark.parametrize("page", PAGES)
def test_renders_without_warnings(page: str) -> None:
    environment = os.environ | {"MANWIDTH": "80", "LC_ALL": "C.UTF-8"}
    shown = run("man", "--warnings=w", "-l", MANUAL / page, env=environment)
    assert shown.returncode == 0 and shown.stderr == ""
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert run("groff", "-ww", "-man", "-Tutf8", "-z", MANUAL / page).stderr == ""
    lint = run("mandoc", "-T", "lint", "-W", "warning", MANUAL / page).stdout.splitlines()
    # Without a date there is none that nobody keeps.
    assert [line for line in lint if "missing date" not in line] == []


@pytest.mark.parametrize("tool", NAMES)
def test_has_every_section(tool: str) -> None:
    page = sections(f"{tool}.1")
    for heading in ["NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "EXAMPLES", "SEE ALSO"]:
        assert len(page.get(heading, [])) > 1, f"{tool}.1 has no {heading}"


@pytest.mark.parametrize("tool", NAMES)
def test_states_every_exit_status(tool: str) -> None:
    lines = sections(f"{tool}.1")["EXIT STATUS"]
    tags = [plain(lines[index + 1]) for index, line in enumerate(lines) if line == ".TP"]
    assert {"0", "8", "16", "32"} <= set(tags) <= {"0", "1", "4", "8", "16", "32"}


# -- what they document


@pytest.mark.parametrize("tool", NAMES)
def test_every_option_is_documented(tool: str) -> None:
    page = sections(f"{tool}.1")
    missing = []
    for part in own_parts(command(tool)):
        lines = [line for name in sections_for(command(tool), part) for line in page[name]]
        missing += [f"{part.name} {option}" for option in sorted(part.options - documented(lines))]
    assert not missing, f"{tool}.1 does not document: {', '.join(missing)}"


@pytest.mark.parametrize("tool", NAMES)
def test_every_subcommand_is_documented(tool: str) -> None:
    synopsis = "\n".join(map(plain, sections(f"{tool}.1")["SYNOPSIS"]))
    text = (MANUAL / f"{tool}.1").read_text()
    for part in command(tool).subcommands:
        assert re.search(rf"\b{part.name}\b", synopsis + text), f"{tool}.1: {part.name}"


@pytest.mark.parametrize("tool", NAMES)
def test_no_other_option_is_documented(tool: str) -> None:
    page = sections(f"{tool}.1")
    known = {option for part in own_parts(command(tool)) for option in part.options}
    for heading, lines in page.items():
        if heading.startswith("OPTIONS OF "):
            name = heading.removeprefix("OPTIONS OF ").lower()
            own = [part for part in own_parts(command(tool)) if part.name == name]
            assert own, f"{tool}.1 has a section for {name}, which is no subcommand"
            assert documented(lines) <= own[0].options, f"{tool}.1, {heading}"
    every = {option for lines in page.values() for option in documented(lines)}
    synopsis = set(OPTION.findall("\n".join(map(plain, page["SYNOPSIS"]))))
    assert every | synopsis <= known, f"{tool}.1: {sorted((every | synopsis) - known)}"


def test_a_subcommand_that_is_another_tool_is_all_of_it() -> None:
    """The page sends its reader to the tool's own, so that both must have the same to say."""
    found = [part for part in command("pccheck").subcommands
             if described_elsewhere(command("pccheck"), part)]  # fmt: skip
    assert [part.name for part in found] == ["fsck", "inspect", "extract"]
    for part in found:
        tool = command(f"pc{part.name}")
        assert (part.options, part.subcommands) == (tool.options, tool.subcommands)
        assert f"pc{part.name} (1)" in "\n".join(map(plain, sections("pccheck.1")["DESCRIPTION"]))


def test_every_option_that_is_mentioned_exists() -> None:
    """Also those of the other tools, to which a page sends its reader."""
    known = {option for tool in NAMES for part in command(tool).all() for option in part.options}
    for page in PAGES:
        text = "\n".join(plain(line) for lines in sections(page).values() for line in lines)
        mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))
        assert mentioned <= known, f"{page} mentions {sorted(mentioned - known)}"


@pytest.mark.parametrize("page", PAGES)
def test_names_the_version(page: str) -> None:
    version = run(TOOLS / "pccheck", "--version").stdout.strip()
    assert f'"PCcheck {version}"' in sections(page)[""][0]


# -- whether the examples run

# What a page says of a large run, in small.
SMALLER = {"2G": "2MiB", "40GiB": "2MiB", "/mnt/nvme": "nvme", "12000": "110"}
# A machine for `pccheck tune`.
PROFILE = {
    "processor_count": 8,
    "device": [{"write_byte_count": 1 << 20, "queue_depth": 4, "bytes_per_second": [1e9] * 3}],
    "flush_seconds": [0.003] * 3, "commit_seconds": [0.005, 0.007, 0.04],
    "block_seconds": [2e-4] * 3, "call_seconds": [3e-4] * 3,
    "memory_bytes_per_second": [4e10] * 3, "digest_bytes_per_second": [1e10] * 3,
}  # fmt: skip
# These go on until they are told to stop.
ENDLESS = {("pccheck", "bench"), ("pcinspect", "watch")}


def examples(tool: str) -> list[str]:
    """The command lines of EXAMPLES, lines that go on put together."""
    lines = [plain(line) for line in sections(f"{tool}.1")["EXAMPLES"]]
    commands: list[str] = []
    goes_on = False
    for line in lines:
        if goes_on:
            commands[-1] += " " + line.strip()
        elif line.split(" ")[0] in NAMES:
            commands.append(line)
        else:
            continue
        goes_on = commands[-1].endswith("\\")
        commands[-1] = commands[-1].rstrip("\\").rstrip()
    return commands


def prepare(words: list[str], sample: Path, folder: Path) -> list[str]:
    """Puts the sample where the example expects files, and replaces what is too large."""
    for large, small in SMALLER.items():
        words = [re.sub(rf"^{re.escape(large)}(?=$|/)", small, word) for word in words]
    if words[1] == "bench":
        words += ["--size", "1MiB"]
    for before, word in pairwise(words):
        path = folder / word.replace("*", "0")
        if path.suffix != ".pcc" or "--apply-undo" in words:
            continue
        path.unlink(missing_ok=True)
        if words[1] != "create" and before not in ("-o", "--output"):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(sample, path)
            if repairs(words):
                with open(path, "r+b") as file:
                    file.seek(8192)
                    file.write(bytes(512))
    return words


def repairs(words: list[str]) -> bool:
    """Whether the example is one of repairing, which is nothing without damage."""
    return words[0] == "pcfsck" and not {"-p", "-y"}.isdisjoint(words)


@pytest.mark.parametrize("tool", NAMES)
def test_examples_run(tool: str, sample: Path, tmp_path: Path) -> None:
    assert examples(tool)
    (tmp_path / "nvme").mkdir()
    shutil.copy(sample, tmp_path / "run.pcc")
    # An example names weights that another tool's example wrote.
    extract = [TOOLS / "pcextract", "run.pcc", "-o", "model.safetensors", "--quiet"]
    subprocess.run(extract, cwd=tmp_path, check=True, timeout=60)
    (tmp_path / "run.pcc").rename(tmp_path / "before.pcc")
    (tmp_path / "spot.csv").write_text("time_seconds,nodes\n0,4\n9000,3\n20000,4\n50000,0\n")
    (tmp_path / "node.json").write_text(json.dumps(PROFILE))
    for example in examples(tool):
        # What is behind a pipe, or where output goes, is not the tool's.
        words = prepare(shlex.split(re.split(r" (?:[|>]|2>|&&) ", example)[0]), sample, tmp_path)
        process = subprocess.Popen(
            f"exec '{TOOLS}'/{words[0]} " + " ".join(map(quoted, words[1:])),
            shell=True,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if tuple(words[:2]) in ENDLESS:
            time.sleep(0.4)
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode in expected(words), f"{example}: {process.returncode}\n{said}"


def quoted(word: str) -> str:
    """For a shell, which replaces patterns of files, and of nothing else."""
    return word if re.fullmatch(r"[\w./-]*\*[\w./-]*\.pcc", word) else shlex.quote(word)


def expected(words: list[str]) -> set[int]:
    """Whole files give 0; what had to be stopped says so, unless it was done by then."""
    if repairs(words):
        return {1}
    if words[1] == "diff":
        return {0, 1}
    return {0, 32} if tuple(words[:2]) in ENDLESS else {0}
