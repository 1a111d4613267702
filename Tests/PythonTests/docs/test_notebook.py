"""A notebook whose cells run again, in a kernel of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbclient
import nbformat

import pccheck

OPEN = "ckpt = pccheck.Checkpointer('run.pcc')"
CELLS = [
    "import logging, sys, numpy as np, pccheck\n"
    "logging.basicConfig(level='INFO', stream=sys.stdout, format='%(message)s')",
    OPEN + "\nckpt.save(1, {'x': np.ones(1000)}).wait().durable",
    # The cell runs again: the name still holds the first one.
    OPEN,
    "pccheck.close_all()",
    OPEN + "\nckpt.save(2, {'x': np.ones(1000)}).wait().durable",
    # The frames of the error would keep alive what they hold, but not what only the name held.
    "del ckpt",
    "with pccheck.Checkpointer('run.pcc') as ckpt:\n    print(ckpt.steps())",
    "with pccheck.Checkpointer('run.pcc') as ckpt:\n    print(ckpt.steps())",
    "ckpt",
]


def outputs(cell: Any) -> str:
    """What is shown below a cell."""
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            parts.append(output.text)
        elif output.output_type == "error":
            parts.append(f"{output.ename}: {output.evalue}")
        else:
            parts.append(output.data["text/plain"])
    return "\n".join(parts)


def test_cells_that_run_again(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in CELLS]
    )
    nbformat.write(notebook, tmp_path / "run.ipynb")
    notebook = nbformat.read(tmp_path / "run.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=60, kernel_name="python3", allow_errors=True,
        resources={"metadata": {"path": str(tmp_path)}},
    )  # fmt: skip
    client.execute()
    shown = [outputs(cell) for cell in notebook.cells]
    assert shown[0] == ""
    # One line of progress, from the logger, and the value of the cell.
    assert "step 1: " in shown[1] and " staged in " in shown[1] and shown[1].endswith("True")
    said = f"Locked: {tmp_path}/run.pcc: this process has the file open already, since "
    assert shown[2].startswith(said)
    assert "use that one, or close() it first" in shown[2]
    assert "pccheck.close_all()" in shown[2]
    assert shown[3] == "1" and shown[4].endswith("True")
    assert shown[5] == ""
    assert shown[6] == shown[7] == "[2, 1]\n", shown
    assert shown[8] == f"<pccheck.checkpointer.Checkpointer '{tmp_path}/run.pcc' closed>"
    assert [info.step for info in pccheck.checkpoints(tmp_path / "run.pcc")] == [2, 1]
