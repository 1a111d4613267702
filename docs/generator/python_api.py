"""One page for each public module of the Python package, made from its docstrings."""

from __future__ import annotations

import ast

from repository import ROOT, DocumentationError, Pages

_PACKAGE = ROOT / "Sources/Python/pccheck"
_FIRST = ["__init__", "torch", "numpy"]


def pages() -> Pages:
    modules = [path.stem for path in sorted(_PACKAGE.glob("*.py")) if _public_names(path.stem)]
    modules.sort(key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    return {_page_name(name): _page(name) for name in modules}


def _public_names(module: str) -> list[str]:
    """The literal `__all__` of a module, or nothing."""
    for statement in ast.parse((_PACKAGE / f"{module}.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return list(ast.literal_eval(statement.value))
    return []


def _page_name(module: str) -> str:
    return f"api/python/{'pccheck' if module == '__init__' else module}.md"


def _page(module: str) -> str:
    """What a class inherits is shown too, but not with each of the errors."""
    if module == "errors":
        return "# pccheck.errors\n\n::: pccheck.errors\n"
    if module != "__init__":
        return f"# pccheck.{module}\n\n::: pccheck.{module}\n{_OPTIONS}"
    names = _public_names(module)
    if not names:
        raise DocumentationError(f"{_PACKAGE}/__init__.py has no literal __all__")
    members = "".join(f"        - {name}\n" for name in names)
    return f"# pccheck\n\n{_ERRORS}::: pccheck\n{_OPTIONS}      members:\n{members}"


_OPTIONS = "    options:\n      inherited_members: true\n"
_ERRORS = "The exceptions are on [pccheck.errors](errors.md); `pccheck` has their names too.\n\n"
