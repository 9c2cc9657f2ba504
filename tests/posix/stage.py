"""A case is run twice, on a reference file system of the kernel and on the mount, and must answer alike.

    @case
    def test_mkdir_over_a_file(): ...            # returns an Answer; runs in a fresh directory

    @case(root=True, reference="tmpfs")          # needs root; compared with tmpfs instead of ext4
    @pytest.mark.parametrize("kind", kinds())
    def test_more(kind): ...

What the standard itself fixes is asserted inside the case, and so of both file systems. `differences`
lists the cases whose answers differ for good; they must go on to differ.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from tests.posix.calls import Answer
from tests.posix.differences import DIFFERENT

Case = Callable[..., Answer]


@dataclass
class Stage:
    """Where cases play: directories on the references and on the mount."""

    references: dict[str, Path]
    mount: Path
    _number: Iterator[int] = field(default_factory=itertools.count)

    def play(self, name: str, body: Case, reference: str, arguments: dict[str, Any]) -> None:
        """Run a case on both sides. AssertionError where its answers differ."""
        number = next(self._number)
        wanted = run_in(self.references[reference] / f"case{number}", body, arguments)
        seen = run_in(self.mount / f"case{number}", body, arguments)
        if name in DIFFERENT:
            assert seen != wanted, f"{name} answers alike now: take it out of differences.py"
        else:
            assert seen == wanted, f"the mount answers {seen}, {reference} answers {wanted}"


def run_in(place: Path, body: Case, arguments: dict[str, Any]) -> Answer:
    """The answer of one case in a new directory."""
    place.mkdir(mode=0o755)
    place.chmod(0o755)
    with contextlib.chdir(place):
        return body(**arguments)


@overload
def case(body: Case, /) -> Callable[..., None]: ...
@overload
def case(*, reference: str = "ext4", root: bool = False) -> Callable[[Case], Callable[..., None]]: ...
def case(body: Case | None = None, /, *, reference: str = "ext4", root: bool = False) -> Any:
    """Make a test of a case. `root`: not a test for ordinary users, who could not do what it does."""
    if body is None:
        return functools.partial(case, reference=reference, root=root)

    @functools.wraps(body)
    def test(stage: Stage, request: Any, **arguments: Any) -> None:
        stage.play(request.node.name, body, reference, arguments)

    signature = inspect.signature(body)
    first = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("stage", "request")
    ]
    test.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*first, *signature.parameters.values()], return_annotation=None
    )
    if root and os.geteuid() != 0:
        test.__test__ = False  # type: ignore[attr-defined]
    return test
