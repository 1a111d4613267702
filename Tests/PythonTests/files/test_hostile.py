"""Every tool over every hostile file: the status that the manual promises, bounded memory, nothing
raw on the terminal, JSON that parses, and the file as it was.

Tests/Fixtures/hostile.py makes the files and says where the harm in each lies.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import reader
import xxhash
from measured import Measured, Measurer

ROOT = Path(__file__).resolve().parents[3]
TOOLS = Path(os.environ.get("PCCHECK_TOOLS", ROOT / "build" / "bin"))
sys.path.insert(0, str(ROOT / "Tests" / "Fixtures"))

import hostile  # noqa: E402
from compose import SparseBytes  # noqa: E402

VERDICTS = (hostile.LOADS, hostile.BLOCK_RULE, hostile.MANIFEST_RULE, hostile.CHUNK_RULE,
            hostile.CORRUPT, hostile.TRUNCATED)


@dataclass(frozen=True)
class Command:
    """A command line, and its exit status for each of VERDICTS."""

    line: str
    statuses: tuple[int | tuple[int, ...], ...]
    # What it writes to standard output is the payload.
    is_payload: bool = False

    @property
    def is_json(self) -> bool:
        return "--json" in self.line


def command(line: str, *statuses: int | tuple[int, ...], is_payload: bool = False) -> Command:
    assert len(statuses) == len(VERDICTS)
    return Command(line, statuses, is_payload)


# FILE is the hostile file, COPY one that may be changed, OUT and UNDO names that are free. A new
# command is a line here.
#                                                     loads block manifest chunk corrupt truncated
COMMANDS = [
    command("pcfsck -n FILE",                             0,    4,    4,    0,    4,    4),
    command("pcfsck --verify full FILE",                  0,    4,    4,    4,    4,    4),
    command("pcfsck --verify full --json FILE",           0,    4,    4,    4,    4,    4),
    command("pcfsck -p COPY",                             0,    4,    4,    0,    4,    4),
    # What is not kept any more after the repair is no damage.
    command("pcfsck -y --undo UNDO COPY",                 0, (1, 5),  4,    0,    4,    4),
    command("pcinspect FILE",                             0,    4,    0,    0,    4,    4),
    command("pcinspect --json FILE",                      0,    4,    0,    0,    4,    4),
    command("pcinspect super FILE",                       0,    4,    0,    0,    4,    4),
    command("pcinspect super --json FILE",                0,    4,    0,    0,    4,    4),
    command("pcinspect slots FILE",                       0,    4,    0,    0,    4,    4),
    command("pcinspect slots --json FILE",                0,    4,    0,    0,    4,    4),
    command("pcinspect chunks FILE",                      0,    4,    0,    0,    4,    8),
    command("pcinspect chunks --slot 1 --json FILE",      0,    8,    0,    0,    4,    8),
    command("pcinspect tensors FILE",                     0,    4,    4,    0,    4,    8),
    command("pcinspect tensors --slot 1 FILE",            0,    8,    4,    0,    4,    8),
    command("pcinspect tensors --json FILE",              0,    4,    4,    0,    4,    8),
    command("pcextract FILE -o OUT",                      0,    4,    4,    4,    4,    8),
    command("pcextract FILE --slot 1 -o OUT",             0,    8,    4,    4,    4,    8),
    command("pcextract FILE --format raw --slot 1 -o OUT", 0,   8,    0,    4,    4,    8),
    command("pcextract FILE --list",                      0,    4,    4,    0,    4,    8),
    command("pcextract FILE --tensor * -o OUT",           0,    4,    4,    4,    4,    8),
    command("pcextract FILE -o -",                        0,    4,    4,    4,    4,    8,
            is_payload=True),
    command("pccheck keep FILE -o OUT",                   0,    4,    4,    4,    4,    8),
    command("pccheck keep FILE --step 20 --json -o OUT",  (0, 4), (4, 8), 4, 4, 4,    8),
    command("pccheck rescue FILE --back-to 0 --output OUT", 0,  0,    0,    0,    4,    8),
    command("pccheck rescue FILE --rebuild --output OUT", 0,    0,    0,    0,    4,    8),
    # What is anchored already is wrong usage, whether it is whole or not.
    command("pccheck rescue FILE --promote 1 --output OUT", 16, 4,   16,   16,    4,    8),
    command("pccheck rescue FILE --step 20 --dry-run --json", (0, 4), 4, 4, 4, 4,  8),
    command("pcinspect hexdump FILE identity --annotate",  0,   0,    0,    0,    4,    4),
    command("pcinspect hexdump FILE slot 1 --annotate",   0, (0, 4),  0,    0,    4,    4),
    command("pcinspect hexdump FILE table 1 --annotate --json", 0, (0, 4), 0, 0,  4,    4),
    command("pcinspect hexdump FILE chunk 1 0",           0, (0, 4),  0,    0,    4,    4),
    command("pcinspect hexdump FILE --offset 24576 --length 64K", 0, 0, 0,  0,    0,    0),
    command("pcinspect tensors --stats FILE",             0,    4,    4,    4,    4,    8),
    command("pcinspect tensors --stats --salvage --slot 1 --json FILE", 0, 8, 4, 4, 4,  8),
    command("pcinspect chunks --verify FILE",             0,    4,    0,    4,    4,    8),
    command("pcinspect chunks --verify --slot 1 --json FILE", 0, 8,   0,    4,    4,    8),
    # Chunks with the same digest are the same, and are not read.
    command("pcinspect diff FILE FILE",                   0,    4,    4,    0,    4,    8),
    command("pcinspect diff FILE --slots 0 1 --json",     1,    8,    4,    1,    4,    8),
    command("pcinspect metadump FILE -o OUT",             0,    0,    0,    0,    0,    0),
    command("pcinspect metadump FILE -o OUT --obfuscate-names --json", 0, 0, 0, 0, 0,   0),
    command("pcinspect watch --count 1 FILE",             0,    0,    0,    0,    4,    4),
    command("pcinspect watch --count 1 --json FILE",      0,    0,    0,    0,    4,    4),
    command("pcinspect FILE --html OUT",                  0,    4,    4,    0,    4,    4),
    command("pcinspect FILE --verify full --html OUT",    0,    4,    4,    4,    4,    4),
    command("pcextract FILE --format npz -o OUT",         0,    4,    4,    4,    4,    8),
    command("pcextract FILE --format pt -o OUT",          0,    4,    4,    4,    4,    8),
    command("pcextract FILE --format pt --flat --slot 1 -o OUT --json", 0, 8, 4, 4, 4,  8),
    command("pcextract FILE --salvage -o OUT",            0, (0, 4),    4,    4,    4,    8),
    command("pcextract FILE --salvage --slot 1 --holes zero --json -o OUT", 0, (4, 8), 4, 4, 4, 8),
    command("pcextract FILE --all -o OUT",                0,    4,    4,    4,    4,    8),
    command("pcextract FILE --shard-size 4K -o OUT",      0,    4,    4,    4,    4,    8),
    command("pcextract FILE --list --json",               0,    4,    4,    0,    4,    8),
    command("pccheck create FILE --capacity 1MiB",        8,    8,    8,    8,    8,    8),
]
# Files whose numbers are used up, so that no superblock can follow.
USED_UP = {"header-sequence-top", "superblock-generation-top", "superblock-limit-top"}
# What a person would run, on a terminal.
ON_TERMINAL = [item for item in COMMANDS if not item.is_json and not item.is_payload]

CORES = os.cpu_count() or 1
# Code, stacks and arenas of the threads, and the buffers: what an ordinary file needs, too.
ADDRESS_SPACE = (512 << 20) + CORES * (96 << 20)
PEAK = 96 << 20
# A manifest may have 100 MB and 2²⁰ tensors, and is held in memory. Of chunk tables that are no
# good one is, of 25 MB here, where the file claims 400: that takes no more than other files.
LARGE = {"json-white-space": 1 << 30, "tensors-2-20": 1 << 30, "tensors-over": 1 << 30,
         "tables-large": PEAK, "tables-large-sealed": PEAK,
         "header-manifest-over": PEAK}
# Seconds each, so that one command of two tools has to do.
LARGE_LINES = ("pcfsck -n FILE", "pcinspect --json FILE")
# Every file is checked with this.
FULL_CHECK = "pcfsck --verify full --json FILE"


def family(item: hostile.Hostile) -> tuple[str, str]:
    return item.verdict, item.name.split("-")[0]


def lines_for(item: hostile.Hostile) -> list[Command]:
    """A third of the commands, so that of three files of a family each gets another third."""
    if item.name in LARGE:
        return [command for command in COMMANDS if command.line in LARGE_LINES]
    kin = [other for other in ITEMS if family(other) == family(item) and other.name not in LARGE]
    share = min(len(kin), 3)
    own = kin.index(item) % share
    return [command for index, command in enumerate(COMMANDS)
            if index % share == own or command.line == FULL_CHECK]

STYLE = re.compile(rb"\x1b\[[0-9;]*m|\r\x1b\[2K")
UNSAFE = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}


def has_unsafe(text: str) -> list[str]:
    """What could move the cursor, colour the terminal or turn the reading direction."""
    return [f"U+{ord(letter):04X}" for letter in text
            if letter != "\n" and unicodedata.category(letter) in UNSAFE]


def write(path: Path, image: hostile.Image) -> None:
    with open(path, "wb") as file:
        if not isinstance(image.data, SparseBytes):
            file.write(image.data)
            return
        for offset, block in image.data.blocks.items():
            if offset < image.data.byte_count:
                file.seek(offset)
                file.write(block)
        file.truncate(image.data.byte_count)


@pytest.fixture(scope="module")
def measurers() -> Iterator[list[Measurer]]:
    if not (TOOLS / "pcfsck").exists():
        pytest.skip(f"{TOOLS} has no tools; run make tools")
    servers = [Measurer() for _ in range(min(CORES, 8))]
    yield servers
    for server in servers:
        server.close()


def complaints(item: hostile.Hostile, command: Command, result: Measured) -> Iterator[str]:
    expected = command.statuses[VERDICTS.index(item.verdict)]
    if (command.line.startswith("pccheck rescue") and item.name in USED_UP
            and "--promote" not in command.line):
        expected = 4
    errors = result.stderr.decode("utf-8", "backslashreplace")
    if result.status not in (expected if isinstance(expected, tuple) else (expected,)):
        yield f"status {result.status}, expected {expected}: {errors[:300]}"
    if unsafe := has_unsafe(errors):
        yield f"{unsafe[:5]} on standard error"
    # A failure says what failed; what only was found says so on standard output.
    if result.status & ~5 and not errors.startswith(command.line.split()[0] + ": "):
        yield f"no message, but {errors[:100]!r}"
    if not command.is_payload:
        if unsafe := has_unsafe(result.stdout.decode("utf-8", "backslashreplace")):
            yield f"{unsafe[:5]} on standard output"
    # What cannot be shown at all has no document, but a message.
    if command.is_json and (result.stdout or not errors):
        try:
            if " watch " in command.line:
                for line in result.stdout.splitlines():
                    json.loads(line)
            else:
                json.loads(result.stdout)
        except ValueError as error:
            yield f"JSON: {error}"
    peak = LARGE.get(item.name, PEAK)
    if result.peak_byte_count > peak:
        yield f"took {result.peak_byte_count >> 20} MiB"


def run_all(
    item: hostile.Hostile, folder: Path, commands: list[Command], measurers: list[Measurer],
    terminal: bool = False,
) -> list[tuple[Command, Measured]]:
    """Each command with files of its own to write to."""
    source = folder / "hostile.pcc"

    def run(index: int) -> list[tuple[Command, Measured]]:
        results = []
        copy, outputs = folder / f"copy-{index}.pcc", folder / f"outputs-{index}"
        out = outputs / "out"
        for command in commands[index::len(measurers)]:
            if "COPY" in command.line:
                os.system(f"cp --sparse=always '{source}' '{copy}'")
            names = {"FILE": source, "COPY": copy, "OUT": out, "UNDO": out}
            words = [str(names.get(word, word)) for word in command.line.split()]
            shutil.rmtree(outputs, ignore_errors=True)
            outputs.mkdir()
            large = 3 * LARGE.get(item.name, 0)
            results.append((command, measurers[index].run(
                [str(TOOLS / words[0]), *words[1:]], address_space=ADDRESS_SPACE + large,
                terminal=terminal,
                environment={"LANG": "C.UTF-8", "TERM": "xterm-256color"})))
            begun = list(outputs.glob("**/*.creating-*"))
            assert not begun, f"{command.line} leaves {begun}"
        return results

    with ThreadPoolExecutor(len(measurers)) as pool:
        return [pair for part in pool.map(run, range(len(measurers))) for pair in part]


ITEMS = list(hostile.all_hostile())


def test_there_are_enough() -> None:
    assert len(ITEMS) >= 100 and len({item.name for item in ITEMS}) == len(ITEMS)
    assert {item.verdict for item in ITEMS} == set(VERDICTS)
    covered = {(command, family(item)) for item in ITEMS for command in lines_for(item)
               if item.name not in LARGE}
    families = {family(item) for item in ITEMS if item.name not in LARGE}
    assert covered == {(command, kin) for command in COMMANDS for kin in families}


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.name)
def test_hostile_file_harms_nobody(
    item: hostile.Hostile, tmp_path: Path, measurers: list[Measurer]
) -> None:
    write(tmp_path / "hostile.pcc", item.make())
    is_large = item.name in LARGE
    before = None if is_large else xxhash.xxh3_128((tmp_path / "hostile.pcc").read_bytes())
    results = run_all(item, tmp_path, lines_for(item), measurers)
    found = [f"{command.line}: {text}" for command, result in results
             for text in complaints(item, command, result)]
    assert not found, "\n".join(found)
    for command, result in results:
        if command.line == FULL_CHECK:
            findings = json.loads(result.stdout)["files"][0]["findings"]
            assert sorted(f["id"] for f in findings) == sorted(f"PCK-{i}" for i in item.findings)
            assert item.says in json.dumps(findings)
    if before:
        after = xxhash.xxh3_128((tmp_path / "hostile.pcc").read_bytes())
        assert before.digest() == after.digest(), "a tool changed what it only looked at"


# In Python the large ones would take seconds each.
SMALL = [item for item in ITEMS if item.name not in LARGE]


@pytest.mark.parametrize("item", SMALL, ids=lambda item: item.name)
def test_independent_reader_takes_the_same(item: hostile.Hostile, tmp_path: Path) -> None:
    """The verdicts are the specification's, not the tools'."""
    path = tmp_path / "hostile.pcc"
    write(path, item.make())
    if item.verdict in (hostile.CORRUPT, hostile.TRUNCATED):
        with pytest.raises(reader.FormatError):
            reader.Reader(path)
        return
    with reader.Reader(path) as file:
        checkpoint = file.load()
    assert checkpoint is not None
    expected = hostile.HOSTILE if item.verdict == hostile.LOADS else hostile.HONEST
    assert checkpoint.slot.index == expected, file.problems


# What shows text of the file: names, metadata, messages that quote them.
SPOKEN = [item for item in ITEMS if item.name not in LARGE and (
    item.name.startswith(("name-", "json-", "metadata-", "names-"))
    or "escapes" in item.name or "noise" in item.name or "top" in item.name)]


@pytest.mark.parametrize("item", SPOKEN, ids=lambda item: item.name)
def test_terminal_stays_as_it_was(
    item: hostile.Hostile, tmp_path: Path, measurers: list[Measurer]
) -> None:
    write(tmp_path / "hostile.pcc", item.make())
    lines = ("pcfsck --verify full FILE", "pcinspect FILE", "pcinspect super FILE",
             "pcinspect slots FILE", "pcinspect tensors --slot 1 FILE", "pcextract FILE --list")
    commands = [c for c in ON_TERMINAL if c.line in lines]
    for command, result in run_all(item, tmp_path, commands, measurers, terminal=True):
        shown = STYLE.sub(b"", result.stdout.replace(b"\r\n", b"\n"))
        assert not has_unsafe(shown.decode("utf-8")), f"{command.line}: {shown[:2000]!r}"
        assert shown, command.line
