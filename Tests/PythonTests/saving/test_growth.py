"""Many checkpoints through one checkpointer: nothing of the process grows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# In a process of its own, of which nothing else takes memory.
_PROGRAM = """
import ctypes, json, os, sys
import numpy as np
import pccheck.numpy

class Facts(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Facts

def moment():
    facts = mallinfo()
    return {"heap": facts.uordblks + facts.hblkhd, "descriptors": len(os.listdir("/proc/self/fd"))}

state = {"x": np.arange(1 << 15)}
with pccheck.numpy.Checkpointer(sys.argv[1]) as checkpointer:
    moments = []
    for step in range(1200):
        if step in (400, 800):
            moments.append(moment())
        assert checkpointer.save(step, state=state).wait().durable
    moments.append(moment())
print(json.dumps(moments))
"""


def test_nothing_grows(path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(path)], capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stderr
    early, middle, late = json.loads(made.stdout)
    assert early["descriptors"] == middle["descriptors"] == late["descriptors"] > 3
    # A tenth of what one object of 512 bytes for each checkpoint would take.
    assert late["heap"] - middle["heap"] < 20 << 10, (early, middle, late)
