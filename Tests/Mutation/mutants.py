"""Changes CheckpointFormat and CheckpointRecovery in small ways, and counts what the tests notice.

    mutants.py [--count N] [--seed S] [--again]

All mutants are compiled into one copy of the package, in build/mutation; a process runs one of
them, chosen by PCCHECK_MUTANT. A mutant is killed when a test fails, the process dies, or it takes
ten times as long as it should. `--again` runs only those that survived last time.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import threading
import time

from schemata import find_sites, mutated_source, switch_module

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "mutation"
PACKAGE = BUILD / "package"
SWITCH = PACKAGE / "Sources" / "MutantSwitch" / "MutantSwitch.swift"
EQUIVALENT = pathlib.Path(__file__).with_name("equivalent.json")
# Places that did not compile last time, to save the attempt.
DROPPED = BUILD / "dropped.json"
SURVIVORS = BUILD / "survivors.json"
MODULES = ["CheckpointFormat", "CheckpointRecovery"]
WANTED = 95

# Quickest first; the last stage is for what survived all others.
FORMAT = r"CheckpointFormatTests\.(?!Precondition)"
TRAPS = r"CheckpointFormatTests\.Precondition|CheckpointStorageTests\.StreamingCopyTests"
RECOVERY = r"CheckpointRecoveryTests\."
QUICK_CHECKS = r"CheckpointCheckTests\.(FixtureTests|FileCheckerTests|ReopeningTests)"
SLOW_CHECKS = r"CheckpointWriterTests\.|CrashConsistencyTests\.CrashStateTests"
STAGES = {
    "CheckpointFormat": [FORMAT, RECOVERY, TRAPS, QUICK_CHECKS, SLOW_CHECKS],
    "CheckpointRecovery": [RECOVERY, QUICK_CHECKS, SLOW_CHECKS],
}


# ---------------------------------------------------------------- building

def write_if_changed(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


# What a copy of the package does without.
UNUSED = [
    r'\.executable\(name: "\w+", targets: \["\w+"\]\),', r'tool\("\w+"\),',
    r'\.library\(name: "pccheck-c".*?\),', r'\.target\(name: "CPCCheck".*?\),',
    r'\.target\(\s*name: "PCCheckC".*?boundarySettings\),',
    r'\.testTarget\(\s*name: "PCCheckCTests".*?boundarySettings\),',
    r'module\(\s*"CheckpointCommands".*?exclude: \["man"\]\),',
]


def manifest_without(tests):
    """Package.swift without what is not built, and without warnings as errors."""
    manifest = (ROOT / "Package.swift").read_text()
    manifest = manifest.replace(".treatAllWarnings(as: .error),", "")
    manifest = manifest.replace(" + [.strictMemorySafety()]", "")
    for pattern in [*UNUSED, rf'tests\(\s*"({"|".join(tests)})",\s*\[[^]]*\]\),']:
        manifest, found = re.subn(pattern, "", manifest, flags=re.DOTALL)
        assert found, f"{pattern} is not in Package.swift as expected"
    return manifest


def copy_package():
    """The package without warnings as errors: a mutated condition may well never be true."""
    PACKAGE.mkdir(parents=True, exist_ok=True)
    mutated = [PACKAGE / "Sources" / module for module in MODULES]
    for folder in ["Sources", "Tests", "Fixtures", "spec"]:
        for copied in (PACKAGE / folder).rglob("*"):
            original = ROOT / copied.relative_to(PACKAGE)
            if copied.is_file() and copied != SWITCH and not original.exists():
                copied.unlink()
        for source in (ROOT / folder).rglob("*"):
            target = PACKAGE / source.relative_to(ROOT)
            if source.is_dir() or any(target.is_relative_to(module) for module in mutated):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists() or target.read_bytes() != source.read_bytes():
                shutil.copyfile(source, target)
    # What no stage runs need not be built.
    manifest = manifest_without(["CommandTests", "TidyTests", "FuzzTests", "StressTests"])
    manifest = manifest.replace(
        "    targets: [\n", '    targets: [\n        .target(name: "MutantSwitch"),\n', 1)
    for module in MODULES:
        manifest, found = re.subn(
            rf'(module\(\s*"{module}",\s*\[)', r'\1"MutantSwitch", ', manifest)
        assert found == 1, f"{module} is not in Package.swift as expected"
    write_if_changed(PACKAGE / "Package.swift", manifest)


def all_sites():
    texts, sites = {}, []
    for module in MODULES:
        for path in sorted((ROOT / "Sources" / module).rglob("*.swift")):
            file = str(path.relative_to(ROOT))
            texts[file] = path.read_text()
            sites += find_sites(file, texts[file])
    number = 1
    for site in sites:
        site.number = number
        number += len(site.mutants)
    return texts, sites


def swift_build():
    """None, or the (file, line, column, message) of every error."""
    # Optimised, since the tests run a thousand times.
    result = subprocess.run(
        ["swift", "build", "--build-tests", "--package-path", PACKAGE,
         "--scratch-path", BUILD / "scratch", "-Xswiftc", "-O"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    (BUILD / "build.log").write_text(result.stdout)
    if result.returncode == 0:
        return None
    found = set(re.findall(
        r"^(\S+?\.swift):(\d+):(\d+): error: (.*)", result.stdout, re.MULTILINE))
    errors = {(file.removeprefix(f"{PACKAGE}/"), int(line), int(column), message)
              for file, line, column, message in found}
    if not any(file.startswith(f"Sources/{module}/") for file, *_ in errors
               for module in MODULES):
        sys.exit(f"the copy does not build, and no mutant is to blame: see {BUILD}/build.log")
    return errors


def build(texts, sites):
    """Leaves out the mutants that do not compile, until all others do."""
    write_if_changed(SWITCH, switch_module(sites))
    known = json.loads(DROPPED.read_text()) if DROPPED.exists() else []
    kept = [site for site in sites if place(site) not in known]
    blamed_lines = set()
    while True:
        columns = {}
        for file, text in texts.items():
            mutated, own = mutated_source(text, [site for site in kept if site.file == file])
            columns |= own
            write_if_changed(PACKAGE / file, mutated)
        errors = swift_build()
        if errors is None:
            left_out = [place(site) for site in sites if site not in kept]
            DROPPED.write_text(json.dumps(left_out))
            return kept
        dropped = set()
        for error in errors:
            dropped.update(blame(error, kept, columns, blamed_lines))
        if not dropped:
            sys.exit(f"nobody is to blame for what does not build: see {BUILD}/build.log")
        kept = [site for site in kept if site.number not in dropped]
        print(f"{len(dropped)} places do not compile; {len(kept)} left", flush=True)


def place(site):
    """What names a site while lines move."""
    return [site.file, site.source, site.what, site.nth]


def blame(error, sites, columns, blamed_lines):
    """The numbers of the sites that an error comes from: the nearest, then all of its line."""
    file, line, column, message = error
    near = [site for site in sites if site.file == file]
    if "missing return" in message:
        # It points behind the statement that may now be left out.
        near = [site for site in near if site.mutants == ["nothing"] and site.line <= line]
    if not near:
        return []
    distance = min(abs(site.line - line) for site in near)
    near = [site for site in near if abs(site.line - line) == distance]
    if (file, line) in blamed_lines:
        return [site.number for site in near]
    blamed_lines.add((file, line))
    return [min(near, key=lambda site: abs(columns[site.number] - column)).number]


# ---------------------------------------------------------------- running

def describe(site, offset):
    return f"{site.what} → {site.mutants[offset] or 'nothing'}"


def run_tests(number, stage, timeout):
    """None when every test passed, else what killed the mutant."""
    bundle = BUILD / "scratch/debug/pccheckPackageTests.xctest"
    process = subprocess.Popen(
        ["prlimit", f"--as={16 << 30}", bundle, "--testing-library", "swift-testing",
         "--filter", stage, "--no-parallel"],
        cwd=PACKAGE, text=True,
        env={**os.environ, "PCCHECK_MUTANT": str(number), "SWIFT_BACKTRACE": "enable=no"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")
    is_late = threading.Event()

    def stop():
        is_late.set()
        process.kill()

    timer = threading.Timer(timeout, stop)
    timer.start()
    try:
        failure, ran = None, False
        for line in process.stdout:
            if " recorded an issue" in line:
                failure = line
                process.kill()
                break
            ran |= "Test run with" in line and " passed after" in line
        process.wait()
    finally:
        timer.cancel()
    if is_late.is_set():
        return "took too long"
    if failure:
        return failure.strip()[:200]
    return None if ran and process.returncode == 0 else f"ended with {process.returncode}"


def time_stages():
    """Runs everything without a mutant; ten times as long, and some seconds, is too long."""
    timeouts = {}
    for stage in dict.fromkeys(sum(STAGES.values(), [])):
        start = time.monotonic()
        failure = run_tests(0, stage, 1800)
        if failure:
            sys.exit(f"without a mutant, {stage} fails: {failure}")
        timeouts[stage] = 10 * (time.monotonic() - start) + 5
        print(f"{(timeouts[stage] - 5) / 10:6.1f} s without a mutant: {stage}", flush=True)
    return timeouts


def judge(mutant, timeouts):
    site, offset = mutant
    for stage in STAGES[site.file.split("/")[1]]:
        killer = run_tests(site.number + offset, stage, timeouts[stage])
        if killer:
            return killer
    return None


# ---------------------------------------------------------------- counting

def key(mutant):
    """What names a mutant while lines move."""
    site, offset = mutant
    return (site.file, site.source, describe(site, offset), site.nth)


def entry(mutant):
    return dict(zip(("file", "source", "mutant", "nth"), key(mutant)))


def equivalents(mutants):
    known = {key(mutant) for mutant in mutants}
    entries = json.loads(EQUIVALENT.read_text())
    keys = {(item["file"], item["source"], item["mutant"], item["nth"]): item["reason"]
            for item in entries}
    for unknown in keys.keys() - known:
        sys.exit(f"{EQUIVALENT.name} names a mutant that is not there: {unknown}")
    return keys


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, help="how many to draw; all by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="only last time's survivors")
    parser.add_argument("--quick", action="store_true", help="without the slow last stage")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()

    copy_package()
    texts, sites = all_sites()
    kept = build(texts, sites)
    mutants = [(site, offset) for site in kept for offset in range(len(site.mutants))]
    total = sum(len(site.mutants) for site in sites)
    print(f"{total} mutants, {total - len(mutants)} of them do not compile", flush=True)
    equivalent = equivalents(mutants)
    if options.again:
        last = {tuple(item.values()) for item in json.loads(SURVIVORS.read_text())}
        mutants = [mutant for mutant in mutants if key(mutant) in last]
    elif options.count and options.count < len(mutants):
        mutants = random.Random(options.seed).sample(mutants, options.count)
    if options.quick:
        for stages in STAGES.values():
            stages.remove(SLOW_CHECKS)
    timeouts = time_stages()

    survivors, done, start = [], 0, time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        futures = {pool.submit(judge, mutant, timeouts): mutant for mutant in mutants}
        for future in concurrent.futures.as_completed(futures):
            site, offset = mutant = futures[future]
            done += 1
            killer = future.result()
            if killer is None:
                survivors.append(mutant)
            elif key(mutant) in equivalent:
                sys.exit(f"not equivalent, killed by {killer}: {key(mutant)}")
            word = "survived" if killer is None else f"killed: {killer}"
            with (BUILD / "verdicts.log").open("a") as log:
                log.write(f"{site.file}:{site.line}: {describe(site, offset)}: {word}\n")
            if done % 25 == 0 or done == len(mutants):
                print(f"{done} of {len(mutants)} run, {len(survivors)} survived, "
                      f"{time.monotonic() - start:.0f} s", flush=True)
    report(mutants, survivors, equivalent, options)


def report(mutants, survivors, equivalent, options):
    SURVIVORS.write_text(json.dumps([entry(mutant) for mutant in survivors], indent=1))
    excused = [mutant for mutant in survivors if key(mutant) in equivalent]
    alive = [mutant for mutant in survivors if key(mutant) not in equivalent]
    killed = len(mutants) - len(survivors)
    counted = len(mutants) - len(excused)
    score = 100 * killed / counted if counted else 100
    print("survived:")
    for site, offset in sorted(alive, key=lambda mutant: (mutant[0].file, mutant[0].line)):
        print(f"    {site.file}:{site.line}: {describe(site, offset)}"
              + (f" (place {site.nth} of the line)" if site.nth > 1 else ""))
    for module in MODULES:
        own = [mutant for mutant in mutants if f"/{module}/" in mutant[0].file]
        own_alive = [mutant for mutant in alive if f"/{module}/" in mutant[0].file]
        own_excused = [mutant for mutant in excused if f"/{module}/" in mutant[0].file]
        print(f"{module:20} {len(own):4} run, {len(own) - len(own_alive) - len(own_excused)} "
              f"killed, {len(own_alive)} survived, {len(own_excused)} equivalent")
    print(f"{len(mutants)} mutants, {killed} killed, {len(alive)} survived, {len(excused)} "
          f"equivalent: {score:.1f} % (wanted {WANTED} %), seed {options.seed}")
    sys.exit(0 if score >= WANTED else 1)


if __name__ == "__main__":
    main()
