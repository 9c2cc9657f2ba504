"""The rules of the house that no other tool checks: what core code must not touch, and sizes.

Core code is everything that runs in simulation. There, time, chance, files and threads come through
storage.ports only: one stray `os.urandom`, and a seed no longer gives the same run twice.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("storage", "gridfs")
EDGES = (
    "storage/host",
    "storage/transport",
    "storage/cli",
    "storage/system",
    "gridfs/cli",
    "gridfs/control",
    "gridfs/daemon",
    "gridfs/fuse",
    "gridfs/host",
)
"""Where the machine is touched: real adapters, FUSE, sockets of the control channel, command lines."""

FORBIDDEN_IMPORTS = frozenset(
    """
    time random uuid secrets datetime pathlib socket ssl select selectors threading subprocess
    multiprocessing concurrent asyncio shutil tempfile glob fcntl
    """.split()  # noqa: SIM905 - a list would take twenty lines
)
FORBIDDEN_CALLS = frozenset(("hash", "open", "input", "print"))
ALLOWED_OF_OS = frozenset(("fsencode", "fsdecode", "path", "strerror"))
ALLOWED_OF_OS_PATH = frozenset(("join", "dirname", "basename", "normpath", "isabs", "commonpath"))
FORBIDDEN_OF_TRIO = frozenset(
    """
    to_thread from_thread open_file Path run_process open_tcp_stream open_unix_socket socket SSLStream
    open_tcp_listeners serve_tcp
    """.split()  # noqa: SIM905
)
SET_BUILDERS = frozenset(("set", "frozenset"))
SET_OPERATORS = (ast.BitOr, ast.BitAnd, ast.Sub, ast.BitXor)
ORDER_MATTERS = frozenset(("list", "tuple", "iter", "enumerate", "next", "zip", "map", "filter", "reversed"))

MODULE_LINES_USUAL = 370
MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 90


TOP_LEVEL = frozenset(
    """
    .ci .gitignore CHANGELOG.md LICENSE README.md gridfs pyproject.toml scripts storage tests
    """.split()  # noqa: SIM905
)


def test_nothing_else_lies_at_the_top() -> None:
    """What programs leave where they run must not get into a commit by accident."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    found = subprocess.run(
        ["git", "ls-tree", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert frozenset(found.stdout.split()) <= TOP_LEVEL


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def core_modules() -> list[Path]:
    return [path for path in modules() if not name_of(path).startswith(EDGES)]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ---- what core code must not touch ------------------------------------------------------------------


def breaches(source: str) -> list[str]:
    """Every use of something forbidden, as "LINE: what"."""
    tree = ast.parse(source)
    return [f"{line}: {what}" for line, what in sorted(_breaches(tree))]


def _breaches(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in FORBIDDEN_IMPORTS:
                    yield node.lineno, f"import of {alias.name}"
        elif isinstance(node, ast.ImportFrom) and not node.level:
            first = (node.module or "").split(".")[0]
            if first in FORBIDDEN_IMPORTS or first == "os":
                yield node.lineno, f"import from {node.module}"
        elif isinstance(node, ast.Attribute):
            yield from _forbidden_attribute(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in FORBIDDEN_CALLS:
            yield node.lineno, f"call of {ast.unparse(node.func)}()"
    for scope in ast.walk(tree):
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            yield from _iterations_over_sets(scope)


def _forbidden_attribute(node: ast.Attribute) -> Iterator[tuple[int, str]]:
    words = ast.unparse(node).split(".")
    if words[0] == "os" and len(words) == 2 and not words[1].isupper() and words[1] not in ALLOWED_OF_OS:
        yield node.lineno, f"use of os.{words[1]}"
    if words[:2] == ["os", "path"] and len(words) == 3 and words[2] not in ALLOWED_OF_OS_PATH:
        yield node.lineno, f"use of os.path.{words[2]}"
    if words[0] == "trio" and len(words) == 2 and words[1] in FORBIDDEN_OF_TRIO:
        yield node.lineno, f"use of trio.{words[1]}"


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope without those of functions inside it; a class includes its methods."""
    waiting = list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(scope, ast.ClassDef) or not isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
        ):
            waiting.extend(ast.iter_child_nodes(node))


def _iterations_over_sets(scope: ast.AST) -> Iterator[tuple[int, str]]:
    """Loops whose order is that of a set, and so that of hashes, which differ between processes.

    In a function plain names are followed, in a class the attributes of self.
    """
    nodes = list(_own_nodes(scope))
    wanted = ast.Attribute if isinstance(scope, ast.ClassDef) else ast.Name
    names = {
        ast.unparse(target)
        for node in nodes
        for target, value, annotation in _assignments(node)
        if isinstance(target, wanted) and (_is_set(value, frozenset()) or _is_set_type(annotation))
    }
    if not isinstance(scope, ast.ClassDef | ast.Module):
        arguments = scope.args  # type: ignore[attr-defined]
        names |= {a.arg for a in arguments.args + arguments.kwonlyargs if _is_set_type(a.annotation)}
    for node in nodes:
        if isinstance(scope, ast.ClassDef) and not isinstance(getattr(node, "iter", None), ast.Attribute):
            continue
        iterated: list[ast.expr] = []
        if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            iterated = [node.iter]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ORDER_MATTERS:
            iterated = list(node.args)
        for expression in iterated:
            if _is_set(expression, frozenset(names)) and not _builds_a_set(node, nodes):
                yield expression.lineno, f"iteration over a set: {ast.unparse(expression)}"


def _assignments(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr | None, ast.expr | None]]:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield target, node.value, None
    elif isinstance(node, ast.AnnAssign):
        yield node.target, node.value, node.annotation


def _is_set_type(annotation: ast.expr | None) -> bool:
    text = "" if annotation is None else ast.unparse(annotation).split("[")[0].lower()
    return text in SET_BUILDERS


def _is_set(value: ast.expr | None, names: frozenset[str]) -> bool:
    if isinstance(value, ast.Set | ast.SetComp):
        return True
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        return value.func.id in SET_BUILDERS
    if isinstance(value, ast.BinOp) and isinstance(value.op, SET_OPERATORS):
        return _is_set(value.left, names) or _is_set(value.right, names)
    return isinstance(value, ast.Name | ast.Attribute) and ast.unparse(value) in names


def _builds_a_set(node: ast.AST, nodes: list[ast.AST]) -> bool:
    """Is this the loop of a set comprehension, of sorted(), or of what else forgets the order?"""
    if not isinstance(node, ast.comprehension):
        return False
    for outer in nodes:
        if isinstance(outer, ast.SetComp) and node in outer.generators:
            return True
        if isinstance(outer, ast.Call) and isinstance(outer.func, ast.Name):
            forgets = outer.func.id in ("sorted", "any", "all", "sum", "min", "max", "len", *SET_BUILDERS)
            if forgets and any(node in getattr(argument, "generators", ()) for argument in outer.args):
                return True
    return False


@pytest.mark.parametrize("path", core_modules(), ids=name_of)
def test_core_code_touches_the_machine_through_ports_only(path: Path) -> None:
    assert breaches(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from random import Random",
        "import uuid as ids",
        "from os import urandom",
        "import os\nos.urandom(3)",
        "import os\nos.path.exists('x')",
        "hash('text')",
        "open('file')",
        "import trio\ntrio.to_thread.run_sync(f)",
        "for x in {1, 2}: pass",
        "[x for x in set(y)]",
        "def f(s: set[int]):\n    for x in s: pass",
        "def f():\n    s = set()\n    return list(s)",
        "def f(a, b):\n    s = {1} | a\n    for x in s - b: pass",
        "class A:\n    def __init__(self):\n        self.s: set[int] = set()\n"
        "    def f(self):\n        for x in self.s: pass",
    ],
)
def test_the_check_sees_a_breach(source: str) -> None:
    assert breaches(source)


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.path.join('a', 'b')\nos.O_RDONLY",
        "def f():\n    s = set()\n    return sorted(s)",
        "def f(s: set[int]):\n    return {x + 1 for x in s}, any(x for x in s)",
        "def f(s: dict[int, int]):\n    for x in s: pass",
        "def f():\n    s = set()\ndef g(s):\n    for x in s: pass",
    ],
)
def test_the_check_lets_good_code_pass(source: str) -> None:
    assert breaches(source) == []


# ---- nothing of the machine it was written on -------------------------------------------------------


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_no_path_of_a_person_in_the_code(path: Path) -> None:
    text = path.read_text()
    for beginning in ("/" + "home/", "/" + "root/", "/" + "work/", "/" + "Users/"):
        assert beginning not in text


# ---- sizes ------------------------------------------------------------------------------------------


def test_nine_modules_in_ten_are_small_and_none_is_huge() -> None:
    lines = {name_of(path): len(path.read_text().splitlines()) for path in modules()}
    large = {name: count for name, count in lines.items() if count > MODULE_LINES_USUAL}
    assert len(large) <= len(lines) / 10, large
    assert not {name: count for name, count in large.items() if count > MODULE_LINES_MAX}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_functions_fit_on_a_screen(path: Path) -> None:
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    }
    assert not long
