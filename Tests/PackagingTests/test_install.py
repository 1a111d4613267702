"""`make install` into a folder, the installed programs, and what is said of its targets."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import NAMES, ROOT

INSTALL = ROOT / "Sources" / "Packaging" / "install"
BUILD = ROOT / "build"
VERSION = (ROOT / "VERSION").read_text().strip()
# What a shell gives to a program when nothing was set.
BARE = {"PATH": "/usr/bin:/bin"}


def install(prefix: Path | str, *, destination: Path | str = "", remove: bool = False) -> None:
    """What `make install` and `make uninstall` run."""
    words = ["--remove"] * remove + [BUILD, VERSION, prefix, f"{prefix}/lib", destination]
    subprocess.run([INSTALL, *map(str, words)], check=True, timeout=60)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder but folders, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, installed into a folder with a space in its name."""
    prefix = tmp_path_factory.mktemp("a home") / ".local"
    install(prefix)
    return prefix


def test_everything_is_installed_once(prefix: Path) -> None:
    first = files(prefix)
    share = [f"share/man/man1/{tool}.1" for tool in NAMES]
    share += [f"share/bash-completion/completions/{tool}" for tool in NAMES]
    share += [f"share/zsh/site-functions/_{tool}" for tool in NAMES]
    share += [f"share/fish/vendor_completions.d/{tool}.fish" for tool in NAMES]
    share += ["share/man/man5/pcc.5", "share/pccheck/magic", "share/mime/packages/pccheck.xml"]
    share += [
        f"share/doc/pccheck/{page}.md" for page in ("FORMAT", "COMMIT", "RECOVERY", "PROBLEMS")
    ]
    library = ["lib/libpccheck.so.1", "lib/libpccheck.so", "lib/pkgconfig/pccheck.pc"]
    programs = [f"bin/{tool}" for tool in NAMES]
    assert set(first) == {*programs, *library, "include/pccheck.h", *share}
    assert all(first.values())
    install(prefix)
    assert files(prefix) == first


@pytest.mark.parametrize("tool", NAMES)
def test_each_name_is_its_tool(prefix: Path, tool: str) -> None:
    said = subprocess.run(
        [prefix / "bin" / tool, "--help"], env=BARE, capture_output=True, text=True, check=True
    )
    assert f"USAGE: {tool} " in said.stdout


def test_installed_programs_work(prefix: Path, sample: Path) -> None:
    said = subprocess.run(
        [prefix / "bin" / "pcfsck", "--verify", "full", sample],
        env=BARE,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "loads step 120" in said.stdout


def test_programs_need_no_swift(prefix: Path) -> None:
    wanted = {"libc", "libm", "libstdc++", "libgcc_s", "libxxhash", "libzstd", "ld-linux-x86-64"}
    for binary in ("bin/pccheck", "lib/libpccheck.so.1"):
        said = subprocess.run(
            ["readelf", "-d", prefix / binary], capture_output=True, text=True, check=True
        ).stdout
        needed = {name.split(".so")[0] for name in re.findall(r"NEEDED.*\[(.*)\]", said)}
        assert "libc" in needed and needed <= wanted, binary
        # A program that looks beside itself for libraries can be given others.
        assert "RPATH" not in said and "RUNPATH" not in said, binary
        assert "NOW" in said, binary


def test_pkg_config_builds_a_program(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "say.c").write_text(
        "#include <pccheck.h>\n#include <stdio.h>\n"
        "int main(void) { puts(pcc_version()); return 0; }\n"
    )
    environment = os.environ | {"PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")}
    # A person's shell splits what pkg-config says in the same way.
    subprocess.run(
        'eval "cc say.c -o say $(pkg-config --cflags --libs pccheck)"',
        shell=True,
        cwd=tmp_path,
        env=environment,
        check=True,
        timeout=60,
    )
    said = subprocess.run(
        [tmp_path / "say"],
        env=BARE | {"LD_LIBRARY_PATH": str(prefix / "lib")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == VERSION


def test_library_is_loaded_by_name(prefix: Path) -> None:
    library = ctypes.CDLL(str(prefix / "lib" / "libpccheck.so"))
    library.pcc_version.restype = ctypes.c_char_p
    assert library.pcc_version().decode() == VERSION


def test_destination_is_only_for_now(tmp_path: Path) -> None:
    install("/opt/pccheck", destination=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"opt"}
    description = (tmp_path / "opt/pccheck/lib/pkgconfig/pccheck.pc").read_text()
    assert "prefix=/opt/pccheck\n" in description and str(tmp_path) not in description


def test_uninstall_leaves_nothing_of_ours(tmp_path: Path) -> None:
    install(tmp_path)
    (tmp_path / "bin" / "another").touch()
    install(tmp_path, remove=True)
    assert set(files(tmp_path)) == {"bin/another"}
    assert not (tmp_path / "share" / "pccheck").exists()
    install(tmp_path, remove=True)


def test_relative_prefix_is_refused() -> None:
    said = subprocess.run(
        [INSTALL, "build", VERSION, "here", "here/lib", ""], capture_output=True, text=True
    )
    assert said.returncode == 1
    assert "PREFIX is here, expected a path that begins with /" in said.stderr


@pytest.mark.parametrize("tool", NAMES)
def test_start_takes_little(prefix: Path, tool: str) -> None:
    """Processor time, which other programs at work do not lengthen as they do the clock's."""
    best = float("inf")
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([prefix / "bin" / tool, "--version"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < 0.030


# -- the Debian package, without installing it


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for program in ("dpkg-deb", "dpkg-shlibdeps"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed; run .ci/install-packages --with-tests")
    return build_package(tmp_path_factory.mktemp("deb"))


def build_package(folder: Path) -> Path:
    """As `make deb`, but hardly compressed, which takes most of the time."""
    subprocess.run(
        [INSTALL, BUILD, VERSION, "/usr", "/usr/lib/x86_64-linux-gnu", folder / "root"],
        check=True,
        timeout=60,
    )
    subprocess.run(
        [ROOT / "Sources" / "Packaging" / "build-deb", folder / "root", VERSION, folder],
        env=os.environ | {"DPKG_DEB_COMPRESSOR_TYPE": "xz", "DPKG_DEB_COMPRESSOR_LEVEL": "0"},
        check=True,
        capture_output=True,
        timeout=120,
    )
    (made,) = folder.glob("*.deb")
    return made


def test_package_works_where_it_is_unpacked(package: Path, sample: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "-x", package, tmp_path], check=True, timeout=60)
    tools = tmp_path / "usr" / "bin"
    for words in (["pcfsck"], ["pcinspect"], ["pcextract", "--list"]):
        subprocess.run(
            [tools / words[0], *words[1:], sample],
            env={},
            check=True,
            capture_output=True,
            timeout=60,
        )
    new = tmp_path / "new.pcc"
    create = [tools / "pccheck", "create", new, "--capacity", "1MiB"]
    subprocess.run(create, env={}, check=True, capture_output=True, timeout=60)
    assert new.stat().st_size > 1 << 20


def test_package_is_reproducible(package: Path, tmp_path: Path) -> None:
    assert build_package(tmp_path).read_bytes() == package.read_bytes()


# -- what is said of the Makefile


def targets() -> set[str]:
    text = (ROOT / "Makefile").read_text()
    return {
        name for line in re.findall(r"^([\w .$()/-]+):(?!=)", text, re.M) for name in line.split()
    }


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "Makefile",
        *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "spec").glob("*.md"))),
    ],
)
def test_every_target_that_is_named_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    said = re.findall(r"(?:`|^\$ |'|; )make ((?:[a-z][a-z-]* ?)+)", text, re.M)
    named = {said_of.split()[0] for said_of in said}
    if page == "Makefile":
        assert {"install", "deb", "test-deb"} <= named
    assert named <= targets(), f"{page} names {sorted(named - targets())}"
