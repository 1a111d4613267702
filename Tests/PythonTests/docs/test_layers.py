"""spec/ARCHITECTURE.md says which part of the package may import which; the sources obey."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT

PACKAGE = ROOT / "Sources" / "Python" / "pccheck"


def table() -> dict[str, set[str]]:
    """Part → the parts that it may import, out of the table under *The Python package*."""
    text = (ROOT / "spec" / "ARCHITECTURE.md").read_text()
    section = text.split("## The Python package\n")[1].split("\n## ")[0]
    found: dict[str, set[str]] = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 5 and cells[1].startswith("`"):
            imports = set(re.findall(r"`([\w/.]+)`", cells[3]))
            for name in re.findall(r"`([\w/.]+)`", cells[1]):
                found[name] = imports
    return found


def part_of(path: Path) -> str:
    """A folder such as ``_core/``, or a public module such as ``torch.py``."""
    inside = path.relative_to(PACKAGE)
    return f"{inside.parts[0]}/" if len(inside.parts) > 1 else inside.name


def imported(path: Path) -> Iterator[Path]:
    """The modules of the package that a module imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "pccheck" for alias in node.names), path
        if not isinstance(node, ast.ImportFrom):
            continue
        assert node.level or (node.module or "").split(".")[0] != "pccheck", path
        if not node.level:
            continue
        base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for alias in node.names:
            for module in (base / alias.name, base):
                if module.with_suffix(".py").is_file():
                    yield module.with_suffix(".py")
                    break
            else:
                yield base / "__init__.py"


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def test_every_part_of_the_package_is_in_the_table() -> None:
    # What `import pccheck` offers, and the program, are above everything.
    tops = {"__init__.py", "__main__.py", "_version.py"}
    assert {part_of(path) for path in sources()} - tops == table().keys()


def test_parts_import_only_what_the_table_allows() -> None:
    allowed = table()
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {other.relative_to(PACKAGE)}"
        for path in sources()
        if (own := part_of(path)) in allowed
        for other in imported(path)
        if part_of(other) not in {*allowed[own], own, "errors.py", "_version.py"}
    ]
    assert not wrong, "spec/ARCHITECTURE.md does not allow it: " + "; ".join(wrong)


def test_the_table_goes_upwards() -> None:
    below = {"errors.py", "_core/"}
    for part, imports in table().items():
        assert imports <= below, f"{part} climbs to {imports - below}"
        below.add(part)



def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {path: set(imported(path)) - {path} for path in sources()}
    # The package itself is run before any module of it, whatever that imports.
    done: set[Path] = {PACKAGE / "__init__.py"}

    def walk(path: Path, trail: list[Path]) -> None:
        assert path not in trail, " → ".join(
            str(item.relative_to(PACKAGE)) for item in [*trail[trail.index(path) :], path]
        )
        if path not in done:
            for other in sorted(graph[path]):
                walk(other, [*trail, path])
            done.add(path)

    for path in graph:
        walk(path, [])


def test_saving_and_loading_of_torch_do_not_import_each_other() -> None:
    for own, other in (("saving", "loading"), ("loading", "saving")):
        for path in (PACKAGE / "_torch" / own).rglob("*.py"):
            folders = {module.parent for module in imported(path)}
            assert PACKAGE / "_torch" / other not in folders, path


def test_the_walk_names_functions_that_exist() -> None:
    text = (ROOT / "spec" / "ARCHITECTURE.md").read_text()
    section = text.split("## The walk of one tensor\n")[1].split("\n## ")[0]
    steps = re.findall(r"`([\w/]+\.(?:py|swift))`: `([\w.]+)`", section)
    assert len(steps) > 25
    for name, function in steps:
        folder = PACKAGE if name.endswith(".py") else ROOT / "Sources"
        # A name without folders stands where its module has it.
        found = [folder / name] if (folder / name).is_file() else list(folder.rglob(name))
        assert len(found) == 1, name
        source = found[0].read_text()
        for word in function.split("."):
            assert re.search(rf"\b(?:def|class|func) {word}\b", source), f"{name}: {function}"
