"""Prints which lines of the Swift modules a test run reached, and fails below the wanted share.

    coverage.py SCRATCH        after `swift test --enable-code-coverage --scratch-path SCRATCH`
"""

import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Per cent of the lines; None is shown and not judged.
WANTED = {
    "CheckpointFormat": 100,
    "CheckpointRecovery": 100,
    "CheckpointGroup": 95,
    "CheckpointModel": 95,
    "CheckpointWriter": 95,
    "CheckpointCheck": 95,
    "CheckpointStorage": None,
}


def llvm_cov():
    """The llvm-cov of the compiler in use: formats of others differ."""
    swift = pathlib.Path(shutil.which("swift")).resolve()
    return swift.with_name("llvm-cov")


def line_counts(scratch):
    """{file: {line: how often it ran}} of everything that was compiled for coverage."""
    build = scratch / "debug"
    bundle = build / "pccheckPackageTests.xctest"
    profile = build / "codecov" / "default.profdata"
    lcov = subprocess.run(
        [llvm_cov(), "export", "-format=lcov", f"-instr-profile={profile}", bundle],
        check=True, stdout=subprocess.PIPE, text=True).stdout
    counts = {}
    for record in lcov.splitlines():
        key, _, value = record.partition(":")
        if key == "SF":
            lines = counts.setdefault(pathlib.Path(value), {})
        elif key == "DA":
            line, count = value.split(",")[:2]
            lines[int(line)] = max(lines.get(int(line), 0), int(count))
    return counts


def ranges(lines):
    """[3, 4, 5, 9] as "3-5", "9"."""
    start = previous = None
    for line in sorted(lines) + [None]:
        if start is None:
            start = line
        elif line != previous + 1:
            yield f"{start}-{previous}" if previous > start else f"{start}"
            start = line
        previous = line


def main():
    counts = line_counts(pathlib.Path(sys.argv[1]).resolve())
    falls_short = False
    for module, wanted in WANTED.items():
        folder = ROOT / "Sources" / module
        files = {file: lines for file, lines in counts.items() if file.is_relative_to(folder)}
        # A module that was not measured at all must not pass.
        total = sum(len(lines) for lines in files.values())
        missed = {file: [line for line, count in lines.items() if count == 0]
                  for file, lines in files.items()}
        covered = total - sum(map(len, missed.values()))
        share = 100 * covered / total if total else 0
        verdict = ""
        if wanted is not None:
            is_enough = covered * 100 >= wanted * total > 0
            verdict = f"  wanted {wanted} %" + ("" if is_enough else ": too little")
            falls_short |= not is_enough
        print(f"{module:20} {covered:5} of {total:5} lines  {share:6.2f} %{verdict}")
        if wanted is None:
            continue
        for file, lines in sorted(missed.items()):
            for part in ranges(lines):
                print(f"    {file.relative_to(ROOT)}:{part}")
    sys.exit(1 if falls_short else 0)


if __name__ == "__main__":
    main()
