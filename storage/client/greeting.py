"""The client's side of the hello, without I/O: its messages, and what is wrong with the server's."""

from __future__ import annotations

from storage.errors import Refused
from storage.identity import verify
from storage.ports import Entropy
from storage.wire import hello
from storage.wire.frames import Frame, Kind
from storage.wire.url import Access, format_address


class Greeting:
    """One hello."""

    def __init__(self, access: Access, secret: bytes, entropy: Entropy) -> None:
        self._access = access
        nonce = entropy.token(hello.NONCE_SIZE)
        self.connection_name = b""
        """See `hello.connection_name`; empty before `answered`."""
        self._opening, self.first = hello.begin(access.account, secret, access.server_id, nonce)

    @property
    def peer(self) -> str:
        """Who it is for, for a person."""
        return format_address(self._access.address)

    def expect(self, frame: Frame | None) -> int:
        """Bytes of the payload that follows the answer's frame. Raises Refused for another frame, or none."""
        if frame is None:
            # All that a server does for somebody whose first message does not prove the secret.
            raise Refused(f"{self.peer} does not accept the account's secret (wrong or retired)")
        if frame.kind is not Kind.HELLO or frame.length > hello.HELLO_SIZE_MAX:
            raise Refused(f"{self.peer} is not a gridfs storage server")
        return frame.length

    def answered(self, payload: bytes) -> bytes:
        """Check the server's message; returns the last one of ours. Raises Refused."""
        reply = hello.read_answer(self._opening, payload)
        signed = hello.signed_bytes(self._access.account, self._opening.nonce, reply.nonce)
        if not verify(self._access.server_id, reply.signature, signed):
            raise Refused("wrong pin: the server does not hold the key that the URL names")
        self.connection_name = hello.connection_name(self._access.server_id, self._opening.nonce, reply.nonce)
        return hello.finish(self._opening, reply)
