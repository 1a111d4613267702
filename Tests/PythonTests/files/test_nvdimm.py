"""Power cuts of a machine with persistent memory: a QEMU guest with an emulated NVDIMM.

The guest is Debian's kernel and an initramfs made here, without a disk. It makes an ext4 with
``dax=always`` on the NVDIMM once; at every boot it runs pcfsck on the checkpoint file, loads the
newest checkpoint, compares its bytes, and saves through libpmem2 (`guest/writer.c`), with two in
flight, until QEMU is killed. What was acknowledged on the console before the kill, or something
newer, must be there at the next boot.

The memory is a file of the host, so every store that a guest executed stays: this finds what is
wrong with mapping, mounting and recovery on real DAX, and no missing fence.

A boot takes 10 to 30 s, so it runs when PCCHECK_NVDIMM=1, or in a soak.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT
from disks import command, quick_folder
from writers import SEED, SOAK_SECONDS, Violation, report

GUEST = Path(__file__).with_name("guest")
#: Where the kernel is kept between runs.
STORE = ROOT / "build" / "nvdimm"
LIBRARY = ROOT / "build" / "lib" / "libpccheck.so.1"
PCFSCK = ROOT / "build" / "bin" / "pcfsck"

CUT_COUNT = 3
BOOT_SECONDS = 240
MEMORY_BYTE_COUNT = 384 << 20  # a multiple of 16 MiB, without a label area
MODULES = [
    "crc16", "crc32c_generic", "libcrc32c", "mbcache", "jbd2", "ext4", "libnvdimm", "nd_btt",
    "nd_pmem", "nfit",
]  # fmt: skip
TOOLS = ["qemu-system-x86_64", "ndctl", "mkfs.ext4", "busybox", "cpio", "cc", "dpkg"]


def need(condition: bool, what: str) -> None:
    if not condition:
        pytest.skip(f"{what}; run .ci/install-packages --with-tests and make lib tools")


def unpacked_kernel() -> Path:
    """Debian's kernel and its modules, unpacked into the build folder and installed nowhere."""
    kernel = STORE / "kernel"
    if kernel.exists():
        return kernel
    STORE.mkdir(parents=True, exist_ok=True)
    depends = command("apt-cache", "depends", "linux-image-amd64").stdout
    names = [line.split()[1] for line in depends.splitlines() if "Depends: linux-image" in line]
    need(bool(names), "apt knows no kernel")
    for old in STORE.glob("linux-image-*.deb"):
        old.unlink()
    loaded = subprocess.run(
        ["apt-get", "download", names[0]], cwd=STORE, capture_output=True, text=True, check=False
    )
    packages = list(STORE.glob("linux-image-*.deb"))
    need(len(packages) == 1, f"the kernel could not be loaded: {loaded.stderr.strip()}")
    fresh = STORE / "unpacking"
    shutil.rmtree(fresh, ignore_errors=True)
    done = command("dpkg", "-x", packages[0], fresh)
    assert done.returncode == 0, done.stderr
    packages[0].unlink()
    fresh.rename(kernel)
    return kernel


def libraries_of(program: Path) -> Iterator[Path]:
    for line in command("ldd", program).stdout.splitlines():
        path = next((word for word in line.split() if word.startswith("/")), None)
        if path is not None:
            yield Path(path)


class GuestImage:
    """The kernel, and the initramfs with all that the guest runs."""

    def __init__(self, folder: Path, early: bool) -> None:
        kernel = unpacked_kernel()
        (self.kernel,) = (kernel / "boot").glob("vmlinuz-*")
        self.initramfs = folder / "initramfs"
        self._root = folder / "root"
        self._add_modules(kernel)
        for name, place in [("busybox", "bin"), ("ndctl", "bin"), ("mkfs.ext4", "bin")]:
            self._add_program(Path(shutil.which(name) or ""), place)
        self._add_program(PCFSCK, "bin")
        self._add_writer(folder, early)
        shutil.copy(GUEST / "init", self._root / "init")
        (self._root / "init").chmod(0o755)
        (self._root / "etc").mkdir()
        (self._root / "etc" / "mtab").touch()
        self._pack()

    def _add_modules(self, kernel: Path) -> None:
        modules = self._root / "modules"
        modules.mkdir(parents=True)
        for name in MODULES:
            (found,) = kernel.glob(f"lib/modules/*/kernel/**/{name}.ko")
            shutil.copy(found, modules)
        (modules / "order").write_text("\n".join(MODULES) + "\n")

    def _add_program(self, program: Path, place: str) -> None:
        target = self._root / place / program.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(program, target)
        self._add_libraries(program)

    def _add_libraries(self, program: Path) -> None:
        for library in libraries_of(program):
            target = self._root / str(library)[1:]
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(library, target)

    def _add_writer(self, folder: Path, early: bool) -> None:
        built = folder / "writer"
        done = command(
            "cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", f"-DEARLY={int(early)}",
            "-o", built, GUEST / "writer.c", f"-I{ROOT / 'build' / 'include'}", LIBRARY,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self._add_program(built, "bin")
        target = self._root / "lib" / "x86_64-linux-gnu"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(LIBRARY, target)
        self._add_libraries(LIBRARY)
        # Loaded by name when the first such file is opened.
        pmem = next(
            (path for path in Path("/usr/lib").glob("*/libpmem2.so.1")), Path("libpmem2.so.1")
        )
        need(pmem.exists(), "libpmem2 is missing")
        shutil.copy(pmem, target)
        self._add_libraries(pmem)

    def _pack(self) -> None:
        names = "\n".join(
            str(path.relative_to(self._root)) for path in sorted(self._root.rglob("*"))
        )
        with open(self.initramfs, "wb") as out:
            packed = subprocess.run(
                ["cpio", "--quiet", "--create", "--format=newc"], input=names.encode(),
                stdout=out, stderr=subprocess.PIPE, cwd=self._root, check=False,
            )  # fmt: skip
        assert packed.returncode == 0, packed.stderr
        shutil.rmtree(self._root)


class Guest:
    """A running machine, and the lines of its console."""

    def __init__(self, image: GuestImage, memory: Path, makes: bool) -> None:
        device = f"memory-backend-file,id=m,share=on,mem-path={memory},align=2M"
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            ["qemu-system-x86_64", "-machine", "pc,nvdimm=on,nvdimm-persistence=mem-ctrl",
             "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1G,slots=2,maxmem=4G",
             "-object", f"{device},size={MEMORY_BYTE_COUNT}", "-device", "nvdimm,memdev=m",
             "-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append",
             "console=ttyS0 quiet panic=-1" + (" pccheck_make" if makes else ""),
             "-display", "none", "-monitor", "none", "-serial", "stdio", "-nic", "none",
             "-no-reboot"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # A line without its end was cut with the power.
            if line.endswith(b"\n"):
                self.lines.append(line.decode(errors="replace").strip())

    def wait_for(self, word: str) -> None:
        began = time.monotonic()
        while not any(line.startswith(word) for line in self.lines):
            ended = self._process.poll() is not None
            failed = any(line.startswith("failed") for line in self.lines)
            if ended or failed or time.monotonic() - began > BOOT_SECONDS:
                raise AssertionError("the guest says:\n" + "\n".join(self.lines[-40:]))
            time.sleep(0.01)

    def cut_the_power(self) -> list[str]:
        self._process.kill()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        return self.lines


@contextlib.contextmanager
def powered(image: GuestImage, memory: Path, makes: bool) -> Iterator[Guest]:
    guest = Guest(image, memory, makes)
    try:
        yield guest
    finally:
        guest.cut_the_power()


def said(lines: list[str], word: str) -> list[str]:
    return [line.partition(" ")[2] for line in lines if line.startswith(word + " ")]


def check(lines: list[str], acknowledged: int, cut: int) -> None:
    """What the guest found at this boot."""

    def require(condition: bool, text: str) -> None:
        if not condition:
            raise Violation(f"NVDIMM, power cut {cut}: {text}; the guest says: {lines[-20:]}")

    require(not said(lines, "failed"), "the guest failed")
    (newest,) = said(lines, "newest")
    found = -1 if newest == "none" else int(newest)
    require(found >= acknowledged, f"step {acknowledged} was acknowledged, found {newest}")
    require(said(lines, "pcfsck") == ["0"] if cut else True, "pcfsck is not content")
    (storage,) = said(lines, "storage")
    require('"persistent_memory"' in storage, f"it writes otherwise: {storage}")
    require("cache line" in storage or "byte granularity" in storage, f"unexpected: {storage}")


@dataclass
class Cuts:
    """One NVDIMM, and what was acknowledged before each cut."""

    image: GuestImage
    memory: Path
    choices: random.Random
    boot_count: int = 0
    acknowledged: int = -1
    save_count: int = 0

    def cut_once(self) -> None:
        with powered(self.image, self.memory, makes=self.boot_count == 0) as guest:
            guest.wait_for("storage")
            # From the first instruction of a save to dozens of them.
            if self.choices.random() < 0.8:
                guest.wait_for("saved")
            time.sleep(self.choices.uniform(0, 3))
            lines = guest.cut_the_power()
        check(lines, self.acknowledged, self.boot_count)
        steps = [int(step) for step in said(lines, "saved")]
        self.acknowledged = max([self.acknowledged, *steps])
        self.save_count += len(steps)
        self.boot_count += 1


@contextlib.contextmanager
def machine(name: str, early: bool = False) -> Iterator[Cuts]:
    if os.environ.get("PCCHECK_NVDIMM") != "1" and not SOAK_SECONDS:
        pytest.skip("it takes minutes; PCCHECK_NVDIMM=1 asks for it")
    for tool in TOOLS:
        need(shutil.which(tool) is not None, f"{tool} is missing")
    need(LIBRARY.exists() and PCFSCK.exists(), "libpccheck or pcfsck is not built")
    with quick_folder() as folder:
        image = GuestImage(folder, early)
        memory = folder / "nvdimm"
        with open(memory, "wb") as file:
            file.truncate(MEMORY_BYTE_COUNT)
        yield Cuts(image, memory, random.Random(f"{SEED} {name}"))


def test_power_cut_of_a_guest_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with machine("nvdimm") as cuts:
        # The boot after the last cut checks that one.
        while cuts.boot_count <= CUT_COUNT or time.monotonic() - began < SOAK_SECONDS:
            cuts.cut_once()
    assert cuts.save_count > 0
    seconds = time.monotonic() - began
    report(
        capsys,
        f"power cuts of a guest with an NVDIMM: {cuts.boot_count - 1} looked at after the next "
        f"boot, {cuts.save_count} saves acknowledged, 0 violations, {seconds:.0f} s, seed {SEED}",
    )


def test_power_cut_catches_a_promise_made_early(capsys: pytest.CaptureFixture[str]) -> None:
    with machine("early", early=True) as cuts:
        with pytest.raises(Violation, match="was acknowledged") as caught:
            for _ in range(6):
                cuts.cut_once()
        report(capsys, f"early, caught at cut {cuts.boot_count}: {str(caught.value)[:80]}")
