"""The line that names a server and, with its secret, opens it: one URL without spaces.

    gridfs+unix:///run/grid/1.sock?key=BASE32[&account=HEX&rights=full&secret=BASE32]
    gridfs+tls://host:port?key=BASE32[&account=HEX&rights=full&secret=BASE32]

Without account, rights and secret it is public: an address and the pinned key. Paths are percent-encoded.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from storage.errors import Refused
from storage.ports import Address, TlsAddress, UnixAddress

SERVER_ID_SIZE = 32
ACCOUNT_SIZE = 16
SECRET_SIZE = 32
RIGHTS = ("read", "full", "repair", "admin")
LINE_SIZE_MAX = 4096
NO_ACCOUNT = bytes(ACCOUNT_SIZE)

_UNIX = "gridfs+unix"
_TLS = "gridfs+tls"
_PARAMETERS = ("key", "account", "rights", "secret")


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a server, and as whom."""

    server_id: bytes
    """The server's Ed25519 public key, 32 bytes, pinned."""
    address: Address
    account: bytes = NO_ACCOUNT
    """16 bytes; zeros in a public URL."""
    secret: bytes | None = field(default=None, repr=False)
    """32 bytes; None in a public URL, which does not open anything."""
    rights: str = ""
    """What the account may do, one of RIGHTS, as a hint; the server decides. Empty in a public URL."""

    def public(self) -> Access:
        """The same server without account and secret."""
        return Access(self.server_id, self.address)


def format_access(access: Access) -> str:
    """The line for `access`, without a line break; with the secret if it has one."""
    parameters = "key=" + _to_text(access.server_id)
    if access.secret is not None:
        parameters += (
            f"&account={access.account.hex()}&rights={access.rights}&secret={_to_text(access.secret)}"
        )
    if isinstance(access.address, UnixAddress):
        return f"{_UNIX}://{quote(access.address.path)}?{parameters}"
    return f"{_TLS}://{_format_host(access.address.host)}:{access.address.port}?{parameters}"


def parse_access(line: str) -> Access:
    """Read one line. Raises Refused with one line that says what is wrong, never with the secret in it."""
    text = line.strip()
    if not text or len(text) > LINE_SIZE_MAX or not text.isascii() or not text.isprintable() or " " in text:
        raise Refused("not a server URL: one line such as gridfs+unix:///PATH?key=... is expected")
    try:
        url = urlsplit(text)
        address = _parse_address(url.scheme, url.netloc, url.path, url.hostname, url.port)
        pairs = parse_qsl(url.query, keep_blank_values=True, strict_parsing=True)
    except ValueError as error:
        # A ValueError of urllib may quote the text it was given, so it is not repeated.
        raise Refused("not a server URL: it cannot be read as a URL") from error
    if url.fragment:
        raise Refused("not a server URL: nothing may follow a '#'")
    values = dict(pairs)
    if len(values) != len(pairs):
        raise Refused("not a server URL: a parameter is given twice")
    for name in values:
        if name not in _PARAMETERS:
            raise Refused("not a server URL: only key, account, rights and secret may follow the '?'")
    if "key" not in values:
        raise Refused("not a server URL: the server's key (key=...) is missing")
    server_id = _to_bytes(values["key"], SERVER_ID_SIZE, "key")
    if len(values) == 1:
        return Access(server_id, address)
    if len(values) != len(_PARAMETERS):
        raise Refused("not a server URL: account, rights and secret belong together")
    if values["rights"] not in RIGHTS:
        raise Refused(f"not a server URL: rights must be one of {', '.join(RIGHTS)}")
    try:
        account = bytes.fromhex(values["account"])
    except ValueError:
        account = b""
    if len(account) != ACCOUNT_SIZE or account == NO_ACCOUNT:
        raise Refused("not a server URL: account must be 32 hexadecimal digits, not all zero")
    return Access(
        server_id, address, account, _to_bytes(values["secret"], SECRET_SIZE, "secret"), values["rights"]
    )


def parse_listen(text: str) -> Address:
    """Read `unix:PATH` or `tls://HOST:PORT`, as the command line takes it. Raises Refused.

    The path is returned as it is given; the caller makes it absolute.
    """
    if text.startswith("unix:") and len(text) > len("unix:") and "\0" not in text:
        return UnixAddress(text.removeprefix("unix:"))
    try:
        url = urlsplit(text)
        if url.scheme == "tls" and url.hostname and url.port is not None and not (url.path or url.query):
            return TlsAddress(url.hostname, url.port)
    except ValueError:
        pass
    raise Refused(f"cannot listen on {text!r}: unix:PATH or tls://HOST:PORT is expected")


def format_address(address: Address) -> str:
    """`unix:PATH` or `tls://HOST:PORT`, for messages."""
    if isinstance(address, UnixAddress):
        return "unix:" + address.path
    return f"tls://{_format_host(address.host)}:{address.port}"


def _parse_address(scheme: str, netloc: str, path: str, host: str | None, port: int | None) -> Address:
    if scheme == _UNIX:
        decoded = unquote(path, errors="surrogateescape")
        if netloc or not decoded.startswith("/") or "\0" in decoded:
            raise Refused("not a server URL: gridfs+unix:// must be followed by an absolute path")
        return UnixAddress(decoded)
    if scheme == _TLS:
        if not host or not port or path or "@" in netloc:
            raise Refused("not a server URL: gridfs+tls:// must be followed by HOST:PORT")
        return TlsAddress(host, port)
    raise Refused("not a server URL: it must begin with gridfs+unix:// or gridfs+tls://")


def _format_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _to_text(value: bytes) -> str:
    return base64.b32encode(value).decode().rstrip("=").lower()


def _to_bytes(text: str, size: int, name: str) -> bytes:
    try:
        value = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        value = b""
    # Only the canonical form: two spellings of one key would make one server look like two.
    if len(value) != size or _to_text(value) != text:
        raise Refused(f"not a server URL: {name} must be {size} bytes in lower-case base32")
    return value
