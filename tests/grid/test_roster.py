"""The servers file: what is wrong with it is said with the line's number."""

from __future__ import annotations

import pytest

from gridfs.grid.errors import RosterError
from gridfs.grid.roster import Roster, parse_roster
from storage.wire.url import format_access
from tests.grid.servers import make_roster, server_id

LINES = [format_access(server.access) for server in make_roster(3)]


def test_a_file_of_access_lines() -> None:
    roster = parse_roster(f"# my grid\n\n{LINES[0]}\n  {LINES[1]}  \n{LINES[2]} weight=2.5 domain=cellar\n")
    assert [server.server_id for server in roster] == [server_id(index) for index in range(3)]
    assert [server.index for server in roster] == [0, 1, 2]
    assert [(server.weight, server.domain) for server in roster] == [(1, ""), (1, ""), (2.5, "cellar")]
    assert roster.servers[0].access == make_roster(1).servers[0].access
    assert len(roster) == 3


def test_servers_are_found_and_named() -> None:
    roster = parse_roster("\n".join(LINES))
    assert roster.get(server_id(1)) is roster.servers[1]
    assert roster.get(b"?" * 32) is None
    assert roster.name(server_id(1)) == f"server 2 {server_id(1).hex()[:10]}"
    assert roster.name(b"?" * 32) == "unlisted server 3f3f3f3f3f"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no server"),
        ("# nothing\n", "lists no server"),
        (f"{LINES[0]}\nhttp://example\n", "line 2: not a server URL"),
        (f"{LINES[0]}\n# x\n{LINES[0]}\n", "line 3: the same server as in line 1"),
        (f"{LINES[0]} weight=0\n", "line 1: a weight is"),
        (f"{LINES[0]} weight=nan\n", "line 1: a weight is"),
        (f"{LINES[0]} weight=many\n", "line 1: a weight is"),
        (f"{LINES[0]} domain=\n", "line 1: only weight="),
        (f"{LINES[0]} colour=blue\n", "line 1: only weight="),
        (format_access(make_roster(1).servers[0].access.public()), "line 1: this is a public URL"),
    ],
)
def test_a_wrong_line_is_named(text: str, message: str) -> None:
    with pytest.raises(RosterError) as caught:
        parse_roster(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_message_shows_a_secret() -> None:
    secret = LINES[0].split("secret=")[1]
    with pytest.raises(RosterError) as caught:
        parse_roster(f"{LINES[0]}\n{LINES[0]}")
    assert secret not in str(caught.value)
    assert secret not in repr(parse_roster(LINES[0]))


def test_a_server_is_in_a_roster_once() -> None:
    server = make_roster(1).servers[0]
    with pytest.raises(RosterError, match="twice"):
        Roster((server, server))
