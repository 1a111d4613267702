"""Plants mistakes that no medium can make in a copy of the sources, and has the tests find them.

    planted.py [--seeds N] [NAME...]

Most mistakes are planted in the medium below a writer (FaultyStorage) or in a device
(FaultyDevice); those of planted.json are patches of the writer, of the loads, and of what a group
decides. All are compiled into one copy of the package, in build/planted, and the environment
chooses one: the net, if one is named, and every test that claims it must fail with it and pass
without. The simulation must find it, or that of groups where "simulation" is "groups", unless it
is false: what is simulated does not get there. Names choose some mistakes.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

from mutants import manifest_without

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "planted"
PACKAGE = BUILD / "package"
PLANTED = pathlib.Path(__file__).with_name("planted.json")
FOLDERS = ["Sources", "Tests", "Fixtures", "spec"]
NETS = "CrashConsistencyTests.PlantedBugTests/aWriterWithoutABugIsCleared"
SWITCH = """internal import Glibc

/// Whether the environment asks for the mistake.
func isPlanted(_ name: String) -> Bool { planted == name }

private let planted = getenv("PCCHECK_PLANTED").map { String(cString: $0) }
"""
BUILD_OPTIONS = ["-c", "release", "--package-path", PACKAGE, "--scratch-path", BUILD / "scratch",
                 "-Xswiftc", "-enable-testing"]


def patched(file, text, bugs):
    for bug in bugs:
        for edit in bug["edits"]:
            if edit["file"] != file:
                continue
            count = text.count(edit["find"])
            if count != 1:
                sys.exit(f"{bug['name']}: {file} has {count} places for the patch, expected 1")
            text = text.replace(edit["find"], edit["replace"])
    return text


def copy_package(bugs):
    """The package with every patch, none of which does anything before it is asked for."""
    modules = {pathlib.Path(edit["file"]).parts[1] for bug in bugs for edit in bug["edits"]}
    kept = {PACKAGE / "Sources" / module / "IsPlanted.swift": SWITCH.encode()
            for module in modules}
    manifest = manifest_without([
        "CommandTests", "TidyTests", "FuzzTests", "CheckpointFormatTests",
        "CheckpointStorageTests", "CheckpointCheckTests"])
    kept[PACKAGE / "Package.swift"] = manifest.encode()
    for folder in FOLDERS:
        for source in (ROOT / folder).rglob("*"):
            file = str(source.relative_to(ROOT))
            if not source.is_file() or "PythonTests" in file or "__pycache__" in file:
                continue
            data = source.read_bytes()
            if source.suffix == ".swift" and folder == "Sources":
                data = patched(file, data.decode(), bugs).encode()
            kept[PACKAGE / file] = data
    for folder in FOLDERS:
        for path in (PACKAGE / folder).rglob("*"):
            if path.is_file() and path not in kept:
                path.unlink()
    for path, data in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)


def run(command, bug=None):
    """The exit status and the output of a command, with a bug or without."""
    environment = {**os.environ, "SWIFT_DETERMINISTIC_HASHING": "1"}
    environment.pop("PCCHECK_PLANTED", None)
    if bug:
        environment["PCCHECK_PLANTED"] = bug
    done = subprocess.run(
        command, cwd=PACKAGE, env=environment, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout


def run_tests(name, bug=None):
    status, output = run(["swift", "test", "--skip-build", *BUILD_OPTIONS, "--filter", name], bug)
    # A mistake may end the process.
    if bug is None and "Test run with" not in output:
        sys.exit(f"{name} did not run to its end:\n{output[-4000:]}")
    return status, output


def check(bug, seeds):
    """What did not find the bug."""
    name, missed = bug["name"], []
    if "net" in bug:
        status, output = run_tests(NETS, name)
        problem = next((line for line in output.splitlines() if f"{bug['net']}: " in line), None)
        if status == 0 or problem is None:
            missed.append(f"the net {bug['net']}")
        print(f"{name}: {bug['net']}: {(problem or 'MISSED').strip()[:160]}", flush=True)
    for test in bug["tests"]:
        status, _ = run_tests(test, name)
        if status == 0:
            missed.append(test)
        print(f"{name}: {test}: {'MISSED' if status == 0 else 'fails'}", flush=True)
    if simulation := bug.get("simulation", True):
        groups = ["--groups"] if simulation == "groups" else []
        status, output = run([simulate(), *groups, "--seeds", str(seeds)], name)
        lines = [line for line in output.splitlines()
                 if line.startswith(("simulation:", "groups:", "Violation:"))]
        if status == 0 or len(lines) < 2:
            missed.append("the simulation")
        print(f"{name}: " + "; ".join(lines)[:200], flush=True)
    return [f"{name}: {net} does not find it" for net in missed]


def simulate():
    return BUILD / "scratch" / "release" / "simulate"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=20000)
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    bugs = json.loads(PLANTED.read_text())
    if unknown := set(options.names) - {bug["name"] for bug in bugs}:
        sys.exit(f"planted.json has no {', '.join(sorted(unknown))}")
    copy_package(bugs)
    status, output = run(["swift", "build", "--build-tests", *BUILD_OPTIONS])
    BUILD.joinpath("build.log").write_text(output)
    if status:
        sys.exit(f"the copy does not build: see {BUILD}/build.log")
    chosen = [bug for bug in bugs if not options.names or bug["name"] in options.names]
    for test in dict.fromkeys([NETS, *(test for bug in chosen for test in bug["tests"])]):
        status, output = run_tests(test)
        if status:
            sys.exit(f"without a mistake, {test} fails:\n{output[-4000:]}")
    missed = [line for bug in chosen for line in check(bug, options.seeds)]
    for line in missed:
        print(line)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
