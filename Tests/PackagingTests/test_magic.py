"""What file(1) says of checkpoint files, whole, newer and damaged; and the desktop's file type."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
import zstandard
from conftest import ROOT

PACKAGING = ROOT / "Sources" / "Packaging"
VALID = sorted((ROOT / "Fixtures" / "valid").glob("*/*.pcc.zst"))
MAGIC = b"\x89PCK\r\n\x1a\n"
MIME = "application/x-pccheck"


def content(fixture: Path) -> bytearray:
    with zstandard.ZstdDecompressor().stream_reader(fixture.open("rb")) as reader:
        return bytearray(reader.read())


def said_of(path: Path, *options: str) -> str:
    if shutil.which("file") is None:
        pytest.skip("file is not installed; run .ci/install-packages --with-tests")
    said = subprocess.run(
        ["file", "--brief", *options, "-m", PACKAGING / "magic", path],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert said.stderr == ""
    return said.stdout.strip()


@pytest.fixture
def whole() -> bytearray:
    return content(VALID[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_magic_compiles(tmp_path: Path) -> None:
    if shutil.which("file") is None:
        pytest.skip("file is not installed; run .ci/install-packages --with-tests")
    compiled = subprocess.run(
        ["file", "--compile", "-m", PACKAGING / "magic"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert compiled.stderr == "" and (tmp_path / "magic.mgc").exists()


@pytest.mark.parametrize("fixture", VALID, ids=lambda path: path.name)
def test_whole_files(fixture: Path, path: Path) -> None:
    image = content(fixture)
    path.write_bytes(image)
    major, minor = struct.unpack_from("<HH", image, 8)
    (slots,) = struct.unpack_from("<I", image, 56)
    (size,) = struct.unpack_from("<Q", image, 112)
    rank, world = struct.unpack_from("<II", image, 136)
    creator = image[144:176].rstrip(b"\0").decode()
    wanted = f"PCcheck checkpoint file, version {major}.{minor}, {slots} slots of {size} bytes"
    if world > 1:
        wanted += f", rank {rank} of {world}"
    if creator:
        wanted += f', made by "{creator}"'
    assert said_of(path) == wanted
    assert said_of(path, "--mime-type") == MIME


def test_values_of_every_size(whole: bytearray, path: Path) -> None:
    struct.pack_into("<I", whole, 56, 80)
    struct.pack_into("<Q", whole, 112, (1 << 64) - 4096)
    struct.pack_into("<II", whole, 136, (1 << 32) - 2, (1 << 32) - 1)
    # All of the field, so that no zero ends it; and nothing that a terminal obeys.
    whole[144:176] = b"\x1b[31m" + b"c" * 27
    whole[176:178] = b"zz"
    path.write_bytes(whole)
    said = said_of(path)
    assert "80 slots of 18446744073709547520 bytes" in said
    assert ", rank 4294967294 of 4294967295" in said
    assert said.endswith('made by "\\033[31m' + "c" * 24 + '"')


def test_newer_version(whole: bytearray, path: Path) -> None:
    struct.pack_into("<HH", whole, 8, 2, 7)
    path.write_bytes(whole)
    assert said_of(path) == "PCcheck checkpoint file, version 2.7"


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        (lambda image: image.replace(b"\r\n", b"\n"), "CR LF became LF"),
        (lambda image: image.replace(b"\n", b"\r\n"), "LF became CR LF"),
        (lambda image: bytes(byte & 0x7F for byte in image[:8192]), "7 bits are left"),
        (lambda image: image[:8192].decode("utf-8", "replace").encode(), "made UTF-8"),
        (lambda image: image[:8192].decode("latin-1").encode(), "made UTF-8"),
    ],
)
def test_damaged_by_a_transfer(whole: bytearray, path: Path, damaged, words: str) -> None:
    path.write_bytes(damaged(bytes(whole)))
    assert said_of(path) == f"PCcheck checkpoint file, damaged in transfer: {words}"


@pytest.mark.parametrize("superblock", [4096, 8192])
def test_identity_block_damaged(whole: bytearray, path: Path, superblock: int) -> None:
    whole[:4096] = bytes(4096)
    whole[12288 - superblock :][:8] = bytes(8)
    whole[superblock : superblock + 8] = b"PCKSUPER"
    path.write_bytes(whole)
    assert said_of(path) == "PCcheck checkpoint file, identity block damaged"
    assert said_of(path, "--mime-type") == MIME


@pytest.mark.parametrize("other", [b"", b"\x89PNG\r\n\x1a\n" + bytes(64), bytes(16384)])
def test_other_files_are_none_of_ours(path: Path, other: bytes) -> None:
    path.write_bytes(other)
    assert "PCcheck" not in said_of(path)


def test_file_type_of_the_desktop(tmp_path: Path) -> None:
    declared = ElementTree.parse(PACKAGING / "pccheck.xml").getroot()
    name = "{http://www.freedesktop.org/standards/shared-mime-info}mime-type"
    (mime,) = declared.findall(name)
    assert mime.get("type") == MIME
    if shutil.which("update-mime-database") is None:
        pytest.skip("update-mime-database is not installed")
    packages = tmp_path / "mime" / "packages"
    packages.mkdir(parents=True)
    shutil.copy(PACKAGING / "pccheck.xml", packages)
    subprocess.run(["update-mime-database", tmp_path / "mime"], check=True, timeout=60)
    assert f"{MIME}:*.pcc" in (tmp_path / "mime" / "globs2").read_text()
    assert MAGIC in (tmp_path / "mime" / "magic").read_bytes()
