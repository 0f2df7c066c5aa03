"""The user's own modules behind `module:function`: their sources decide tokens."""

import ast
import sysconfig
from collections.abc import Iterator
from importlib.machinery import PathFinder
from importlib.util import resolve_name
from pathlib import Path

from data_tools.columns import function_file

_INSTALLED = {"site-packages", "dist-packages"}
_NOT_LOCAL = [Path(sysconfig.get_path("stdlib")).resolve(), Path(__file__).resolve().parent]


def local_modules(name: str) -> dict[str, Path]:
    """The module of `module:function`, and those that it imports, and so on: name → file.

    Imports are read from the sources, wherever in them they stand; none is executed for it, and one whose name is
    computed is not found. The standard library, installed packages (but for the function's own) and shardtune are left
    out.

    Raises:
        UserError: there is no such function, or its module has no file.
    """
    module = name.partition(":")[0]
    found = {module: function_file(name).resolve()}
    waiting = [*_parents(module), *_imported(module, found[module])]
    while waiting:
        imported = waiting.pop()
        file = None if imported in found else _find(imported)
        if file is not None and (_is_local(file) or _top(imported) == _top(module)):
            found[imported] = file
            waiting += _imported(imported, file)
    return found


def _top(module: str) -> str:
    return module.partition(".")[0]


def _parents(module: str) -> list[str]:
    """`a` and `a.b` of `a.b.c`: importing the last runs them too."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _find(module: str) -> Path | None:
    """The file of a module; None: there is no such module, or it has no file."""
    spec = PathFinder.find_spec(_top(module))
    for name in [*_parents(module), module][1:]:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(name, spec.submodule_search_locations)
    return Path(spec.origin).resolve() if spec is not None and spec.origin is not None else None


def _is_local(file: Path) -> bool:
    return not _INSTALLED & set(file.parts) and not any(file.is_relative_to(folder) for folder in _NOT_LOCAL)


def _imported(module: str, file: Path) -> Iterator[str]:
    """Everything in the imports of a file that may be a module."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # no Python source
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            try:
                base = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:
                continue  # beyond the package: fails when it is executed
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield from (*_parents(name), name)
