"""Uses an installed package with nothing else at hand; prints the version of Python."""

import os
import platform
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

import numpy as np

import pccheck
import pccheck.metrics
import pccheck.numpy
import pccheck.policies

state = {"x": np.arange(100_000), "note": "a nest", "list": [1, 2.5, None]}
with pccheck.Checkpointer("run.pcc", codec="zstd") as checkpointer:
    assert checkpointer.save(7, state).wait().durable
    assert checkpointer.stats()["recent"]
loaded = pccheck.load("run.pcc")
assert np.array_equal(loaded["x"], state["x"]) and loaded["list"] == state["list"]
arrays = {"x": np.zeros(100_000, np.int64)}
with pccheck.numpy.Checkpointer("arrays.pcc") as checkpointer:
    checkpointer.save(1, state=state).wait()
try:
    pccheck.load("missing.pcc")
except pccheck.FileMissing as error:
    assert "missing.pcc" in str(error)
else:
    raise AssertionError("a missing file was loaded")
assert "torch" not in sys.modules

licenses = {path.name for path in files("pccheck") or () if "licenses" in path.parts}
parts = {"libxxhash0", "libzstd1", "liburing-dev", "swift", "swift-argument-parser"}
assert {"LICENSE", *parts} <= licenses, licenses

# Its own copies, beside those that Python itself may have loaded.
with open("/proc/self/maps") as maps:
    names = {line.split()[-1] for line in maps if "/" in line}
for library in ("libpccheck", "libzstd", "libxxhash"):
    found = [name for name in names if library in name]
    assert any(name.startswith(sys.prefix) for name in found), (library, found)



def output_of(*words: str) -> str:
    """What a command prints, which has to end well."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


module = (sys.executable, "-m", "pccheck")
assert "step 7 in slot" in output_of(*module, "inspect", "run.pcc")
assert "loads step 7" in output_of(*module, "fsck", "--verify", "full", "run.pcc")
output_of(*module, "extract", "run.pcc", "-q", "-o", "x.safetensors")
output_of(*module, "extract", "run.pcc", "-q", "-o", "x.npz")
with np.load("x.npz") as archive:
    assert np.array_equal(archive["x"], state["x"])
output_of(*module, "convert", "x.safetensors", "-o", "x.pcc")
assert np.array_equal(pccheck.load("x.pcc")["x"], state["x"])
# By the names that messages use.
scripts = Path(sys.executable).parent
for words in ("pcfsck run.pcc", "pcinspect slots run.pcc", "pcextract run.pcc --list"):
    tool, *rest = words.split()
    assert "7" in output_of(str(scripts / tool), *rest)
output_of(str(scripts / "pccheck"), "keep", "run.pcc", "-o", "kept.pcc")
output_of(str(scripts / "pccheck"), "convert", "kept.pcc", "-o", "kept.safetensors")
refused = subprocess.run([*module, "nothing"], capture_output=True, text=True, check=False)
assert refused.returncode == 16 and "Usage: pccheck" in refused.stderr
# The program is the wheel's, and so are its libraries: asked for, the loader lists them.
program = Path(pccheck.__file__).parent / "bin" / "pccheck"
loaded = subprocess.run(
    [program], env={"LD_TRACE_LOADED_OBJECTS": "1"}, capture_output=True, text=True, check=True
).stdout.splitlines()
for library in ("libzstd", "libxxhash"):
    (line,) = (line for line in loaded if library in line)
    assert str(program.parents[2]) in os.path.realpath(line.split()[2]), line

# An exit with a save in flight finishes it.
code = "import numpy, pccheck; pccheck.Checkpointer('end.pcc').save(3, {'x': numpy.ones(1000000)})"
subprocess.run([sys.executable, "-c", code], check=True)
assert pccheck.checkpoints("end.pcc")[0].step == 3
print(platform.python_version())
