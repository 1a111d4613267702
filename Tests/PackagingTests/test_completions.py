"""Completions, asked for in the real shells as a person asks: with a key, on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from conftest import NAMES, TOOLS, command

SHELLS = ["bash", "zsh", "fish"]
# Typed into the shell behind the line to complete; each lists what fits, and inserts nothing.
LIST = {"bash": b"\x1b?", "zsh": b"\x04"}
START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
}
SET_UP = {
    "bash": "bind 'set page-completions off'; bind 'set completion-query-items -1';"
    "bind 'set enable-bracketed-paste off'; PS1='rea''dy> ';",
    "zsh": "fpath=({scripts} $fpath); autoload -U compinit; compinit -D -u; LISTMAX=1000;"
    "unsetopt zle_bracketed_paste list_types; unset zle_bracketed_paste; PS1='rea''dy> ';",
}


class Terminal:
    """A shell at a terminal."""

    def __init__(self, shell: str, scripts: Path, folder: Path) -> None:
        self.shell = shell
        self.process, self.descriptor = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            environment = {
                "PATH": f"{TOOLS}:/usr/bin:/bin",
                "HOME": str(folder),
                "TERM": "dumb",
                "LC_ALL": "C.UTF-8",
                "COLUMNS": "200",
            }
            os.execvpe(START[shell][0], START[shell], environment)
        setting_up = SET_UP[shell].replace("{scripts}", str(scripts))
        if shell == "bash":
            for script in sorted(scripts.iterdir()):
                setting_up += f"source {script};"
        os.write(self.descriptor, setting_up.encode() + b"\n")
        self.read_until(b"ready> ")

    def read_until(self, end: bytes) -> str:
        read = b""
        deadline = time.monotonic() + 20
        while not read.endswith(end):
            ready, _, _ = select.select([self.descriptor], [], [], 0.2)
            if ready:
                read += os.read(self.descriptor, 1 << 16)
            assert time.monotonic() < deadline, f"{self.shell} said only {read!r}"
        return read.decode(errors="replace")

    def list(self, line: str) -> str:
        """What the shell shows when it is asked what could come next."""
        shown_line = b"ready> " + line.encode()
        os.write(self.descriptor, line.encode())
        self.read_until(line.encode()[-1:])
        time.sleep(0.05)
        os.write(self.descriptor, LIST[self.shell])
        # The list stands above the line, which is then drawn again; a bell says that nothing fits.
        read = b""
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline and not read.endswith((shown_line, b"\x07")):
            ready, _, _ = select.select([self.descriptor], [], [], 0.1)
            if ready:
                read += os.read(self.descriptor, 1 << 16)
        os.write(self.descriptor, b"\x15\n")
        self.read_until(b"ready> ")
        return read.decode(errors="replace").replace(line, "")

    def close(self) -> None:
        os.close(self.descriptor)
        os.waitpid(self.process, 0)


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The scripts of all tools, by shell, each under the name that the shell looks for."""
    folders = {}
    for shell in SHELLS:
        folders[shell] = tmp_path_factory.mktemp(shell)
        for tool in NAMES:
            said = subprocess.run(
                [TOOLS / tool, "--generate-completion-script", shell],
                capture_output=True,
                check=True,
                timeout=60,
            )
            name = {"bash": tool, "zsh": f"_{tool}", "fish": f"{tool}.fish"}[shell]
            (folders[shell] / name).write_bytes(said.stdout)
    return folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files are that are completed."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("run-0.pcc", "run-1.pcc", "run notes.txt"):
        (folder / name).touch()
    return folder


class Offers:
    """What a shell offers, as words."""

    def __init__(self, shell: str, scripts: Path, folder: Path) -> None:
        self.shell, self.scripts, self.folder = shell, scripts, folder
        self.terminal = None if shell == "fish" else Terminal(shell, scripts, folder)

    def __call__(self, line: str) -> set[str]:
        if self.terminal is None:
            return self.of_fish(line)
        shown = self.terminal.list(line)
        assert "_arguments:" not in shown and "error" not in shown.lower(), shown
        # zsh explains what it offers, behind two dashes.
        shown = re.sub(r" -- .*", "", shown)
        return set(re.findall(r"[^\s\x00-\x1f]+", shown)) - {"ready>"}

    def of_fish(self, line: str) -> set[str]:
        """fish tells its completions to whoever asks for them."""
        tool = line.split(" ")[0]
        script = self.scripts / f"{tool}.fish"
        said = subprocess.run(
            ["fish", "--no-config", "-c", f"source {script}; complete -C {shell_quoted(line)}"],
            cwd=self.folder,
            env={"PATH": f"{TOOLS}:/usr/bin:/bin", "HOME": str(self.folder), "TERM": "dumb"},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert said.stderr == ""
        return {offer.split("\t")[0] for offer in said.stdout.splitlines()}

    def close(self) -> None:
        if self.terminal is not None:
            self.terminal.close()


def shell_quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"


@pytest.fixture(scope="module", params=SHELLS)
def offers(request: pytest.FixtureRequest, scripts: dict[str, Path], folder: Path):
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed; run .ci/install-packages --with-tests")
    offers = Offers(shell, scripts[shell], folder)
    yield offers
    offers.close()


def test_subcommands(offers: Offers) -> None:
    for tool in ("pcinspect", "pccheck"):
        names = {part.name for part in command(tool).subcommands}
        assert names <= offers(f"{tool} ")


def test_files(offers: Offers) -> None:
    for line in (
        "pcfsck run", "pcinspect slots run", "pcextract run", "pccheck create run",
        "pccheck fsck run", "pccheck inspect slots run", "pccheck extract run",
    ):  # fmt: skip
        assert {"run-0.pcc", "run-1.pcc"} <= offers(line), line


def test_file_without_a_subcommand(offers: Offers) -> None:
    for line in ("pcinspect run", "pccheck inspect run"):
        assert {"run-0.pcc", "run-1.pcc"} <= offers(line), line
    assert {"slots", "tensors"} <= offers("pccheck inspect ")


def test_no_subcommand_where_there_is_none(offers: Offers) -> None:
    for line in ("pcfsck ", "pcextract run-0.pcc h", "pccheck fsck ", "pccheck create run.pcc h"):
        assert "help" not in offers(line), line


def test_options(offers: Offers) -> None:
    assert "--verify" in offers("pcfsck --ver") and "--json" not in offers("pcfsck --ver")
    assert {"--slot", "--step", "--tensor"} <= offers("pcinspect tensors --")


def test_values(offers: Offers) -> None:
    for line in ("pcfsck --verify ", "pccheck fsck --verify "):
        assert offers(line) >= {"metadata", "full"}, line
    assert offers("pccheck create --prealloc ") >= {"zero", "fallocate"}
    assert {"safetensors", "raw"} <= offers("pcextract run-0.pcc --format ")


def test_problems(offers: Offers) -> None:
    assert {"PCK-S001", "PCK-S003"} <= offers("pcfsck --explain PCK-S")
