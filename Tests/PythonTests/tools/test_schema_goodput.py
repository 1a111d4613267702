"""The JSON of pccheck goodput is what spec/schemas/pccheck-goodput.json says."""

from __future__ import annotations

from pathlib import Path

from pccheck_commands import Command

goodput = Command("goodput")


def test_schema_is_strict() -> None:
    goodput.check_schema()


def test_traces_of_each_kind(tmp_path: Path) -> None:
    spot = tmp_path / "spot.csv"
    spot.write_text("time_seconds,nodes\n0,4\n9000,3\n20000,4\n50000,0\n60000,4\n")
    again = tmp_path / "again.json"
    again.write_text(
        '{"kind": "preemption", "events": [[0, "add", "a"], [5, "add", "b"], '
        '[9000, "remove", "a"], [12000, "add", "c"], [20000, "remove", "b"]]}'
    )
    failures = tmp_path / "failures.csv"
    failures.write_text(
        "# node_count: 8\n# end_seconds: 864000\nnode,start_seconds,end_seconds\n"
        "a,40000,90000\nb,400000,410000\n"
    )
    document = goodput(spot, again, failures, "--replications", 200)
    assert [trace["kind"] for trace in document["traces"]] == [
        "availability", "preemption", "failures",
    ]  # fmt: skip
    assert [pool["setting"] for pool in document["pooled"]] == ["spot"]
    for trace in document["traces"]:
        assert len(trace["policies"]) == 11
        for row in trace["policies"]:
            losses = sum(row[part] for part in ("blocked", "redone", "restart", "waiting"))
            assert abs(row["goodput"]["value"] + losses - 1) < 1e-9


def test_synthetic_traces() -> None:
    arguments = ["--synthetic", "--replications", 100, "--synthetic-nodes", 20]
    document = goodput(*arguments)
    assert document["traces"][0]["setting"] == "synthetic"
    assert document["traces"][0]["paper_count"] is None
    assert document == goodput(*arguments)
