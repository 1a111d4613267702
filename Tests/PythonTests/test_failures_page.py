"""Every case of spec/PYTHON-FAILURES.md runs as it stands there, and says what stands there."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import failure_cases
import pytest
from conftest import ROOT
from failure_cases import Case

import pccheck

PAGE = ROOT / "spec" / "PYTHON-FAILURES.md"
SECTION = re.compile(r"^### (.+?)\n(.*?)(?=^##|\Z)", re.M | re.S)
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.M | re.S)

PRELUDE = """
import signal, subprocess, pccheck, torch, numpy as np, pccheck.torch as pcc
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
large = nn.Linear(2048, 2048, bias=False)
optimizer = torch.optim.AdamW(model.parameters())
state = {"x": np.zeros(1 << 20)}
slow = {"pool": "8 MiB", "chunk": "1 MiB"}
"""
