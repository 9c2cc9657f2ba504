"""Server URLs: they say the same when read back, and every mistake is one line without the secret."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import Refused
from storage.ports import Address, TlsAddress, UnixAddress
from storage.wire.url import RIGHTS, Access, format_access, format_address, parse_access, parse_listen

SERVER = bytes(range(32))
SECRET = bytes(range(100, 132))
KEY = "aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypq"
FULL = Access(SERVER, UnixAddress("/run/grid/1.sock"), b"\x01" * 16, SECRET, "full")

paths = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=80).map(
    "/".__add__
)
hosts = st.sampled_from(["localhost", "example.org", "192.0.2.7", "2001:db8::1"])
addresses: st.SearchStrategy[Address] = st.one_of(
    paths.map(UnixAddress), st.builds(TlsAddress, hosts, st.integers(1, 65535))
)


def test_golden_urls() -> None:
    assert format_access(FULL.public()) == f"gridfs+unix:///run/grid/1.sock?key={KEY}"
    assert format_access(Access(SERVER, TlsAddress("::1", 7))) == f"gridfs+tls://[::1]:7?key={KEY}"
    assert format_access(FULL) == (
        f"gridfs+unix:///run/grid/1.sock?key={KEY}&account={'01' * 16}&rights=full"
        "&secret=mrswmz3infvgw3dnnzxxa4lson2hk5txpb4xu634pv7h7aebqkbq"
    )


@given(
    addresses,
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=16, max_size=16).filter(any),
    st.binary(min_size=32, max_size=32),
    st.sampled_from(RIGHTS),
)
def test_urls_say_the_same_when_read_back(
    address: Address, server_id: bytes, account: bytes, secret: bytes, rights: str
) -> None:
    access = Access(server_id, address, account, secret, rights)
    line = format_access(access)
    assert "\n" not in line
    assert " " not in line
    assert parse_access(line + "\n") == access
    assert parse_access(format_access(access.public())) == Access(server_id, address)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda line: "", "one line"),
        (lambda line: line + " more", "one line"),
        (lambda line: line + "\n" + line, "one line"),
        (lambda line: line + "ü", "one line"),
        (lambda line: line * 100, "one line"),
        (lambda line: line.replace("gridfs+unix", "https"), "begin with"),
        (lambda line: line.replace("///run", "//run"), "absolute path"),
        (lambda line: line.replace("/run", "/%00run"), "absolute path"),
        (lambda line: line.replace("gridfs+unix:///run/grid/1.sock", "gridfs+tls://host"), "HOST:PORT"),
        (
            lambda line: line.replace("gridfs+unix:///run/grid/1.sock", "gridfs+tls://h:99999"),
            "read as a URL",
        ),
        (lambda line: line.replace("gridfs+unix:///run/grid/1.sock", "gridfs+tls://[h:1"), "read as a URL"),
        (lambda line: line.replace("key=", "pin="), "only key"),
        (lambda line: line.replace(f"key={KEY}&", ""), "is missing"),
        (lambda line: line.replace(KEY, KEY[:-1]), "key must be 32 bytes"),
        (lambda line: line.replace(KEY, KEY.upper()), "key must be 32 bytes"),
        (lambda line: line.replace(KEY, KEY[:-1] + "r"), "key must be 32 bytes"),
        (lambda line: line.replace("&rights=full", ""), "belong together"),
        (lambda line: line.replace("rights=full", "rights=all"), "rights must be"),
        (lambda line: line.replace("01" * 16, "01" * 15), "account must be"),
        (lambda line: line.replace("01" * 16, "00" * 16), "account must be"),
        (lambda line: line.replace("&secret=", "&secret=x"), "secret must be"),
        (lambda line: line + "&key=" + KEY, "twice"),
        (lambda line: line + "#x", "'#'"),
    ],
)
def test_mistakes_are_one_line_without_the_secret(change, word) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Refused, match=word) as caught:
        parse_access(change(format_access(FULL)))
    text = str(caught.value)
    assert "\n" not in text
    assert "mrswmz3" not in text


@given(st.text(max_size=120))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    for line in (text, f"gridfs+unix:///x?key={KEY}{text}", f"gridfs+tls://{text}?key={KEY}"):
        try:
            access = parse_access(line)
        except Refused:
            continue
        assert parse_access(format_access(access)) == access


def test_the_secret_is_not_in_a_repr() -> None:
    assert repr(SECRET) not in repr(FULL)
    assert "mrswmz3" not in repr(FULL)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/s", UnixAddress("/run/s")),
        ("unix:relative/s", UnixAddress("relative/s")),
        ("tls://localhost:0", TlsAddress("localhost", 0)),
        ("tls://[::1]:77", TlsAddress("::1", 77)),
    ],
)
def test_listen_addresses(text: str, address: Address) -> None:
    assert parse_listen(text) == address
    assert format_address(address) == text


@pytest.mark.parametrize(
    "text", ["", "unix:", "tcp://h:1", "tls://h", "tls://:1", "tls://h:1/x", "tls://h:x", "h:1"]
)
def test_other_listen_addresses_are_refused(text: str) -> None:
    with pytest.raises(Refused, match="unix:PATH or tls://HOST:PORT"):
        parse_listen(text)
