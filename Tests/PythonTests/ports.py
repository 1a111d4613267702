"""Ports for the jobs of the tests, which several processes run at once."""

from __future__ import annotations

import itertools
import os
import socket

# Below those that the kernel gives to whom asks for any: nobody gets one of these in between.
_FIRST = 20_000
_PORTS_OF_A_PROCESS = 1_000
_process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_numbers = itertools.count()


def free_port() -> int:
    """A port of 127.0.0.1 that no other process of the tests gets, and on which nobody listens."""
    while True:
        port = _FIRST + _process * _PORTS_OF_A_PROCESS + next(_numbers) % _PORTS_OF_A_PROCESS
        with socket.socket() as probe:
            # The last job may have left connections that only wait for their end.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
