"""Uses an installed package with nothing else at hand; prints the version of Python."""

import platform
import subprocess
import sys

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

# Its own copies, beside those that Python itself may have loaded.
with open("/proc/self/maps") as maps:
    names = {line.split()[-1] for line in maps if "/" in line}
for library in ("libpccheck", "libzstd", "libxxhash"):
    found = [name for name in names if library in name]
    assert any(name.startswith(sys.prefix) for name in found), (library, found)

for arguments in (
    "ls run.pcc", "verify run.pcc", "export run.pcc -o x.safetensors",
    "convert x.safetensors -o x.pcc",
):  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "pccheck", *arguments.split()], check=True, stdout=subprocess.DEVNULL
    )

# An exit with a save in flight finishes it.
code = "import numpy, pccheck; pccheck.Checkpointer('end.pcc').save(3, {'x': numpy.ones(1000000)})"
subprocess.run([sys.executable, "-c", code], check=True)
assert pccheck.checkpoints("end.pcc")[0].step == 3
print(platform.python_version())
