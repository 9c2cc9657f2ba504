"""The server's side of the hello: who proves an account's secret gets in, others get silence.

`admit` takes the client's first message, which proves the secret already, and answers it; the `Guest` knows
what the last one must be, which shows that the first was not a repeated one. Until that has come the session
takes only requests that change nothing, so that a client can send such ones right behind its first message.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from storage.identity import Account, Identity, find_account
from storage.ports import ByteStream, Disk, Entropy
from storage.transport.link import FrameReceiver
from storage.wire import hello
from storage.wire.frames import Kind, Traffic, encode_frame


@dataclass(frozen=True, slots=True)
class Guest:
    """A peer whose first message proved an account's secret."""

    account: Account
    opening: hello.ClientHello
    nonce: bytes
    """The server's."""
    server_id: bytes

    @property
    def connection_name(self) -> bytes:
        return hello.connection_name(self.server_id, self.opening.nonce, self.nonce)

    def proves(self, payload: bytes) -> bool:
        """Whether this is the last message of the hello."""
        return hello.is_proof(self.account.secret, self.opening, self.nonce, payload)


class Admission:
    """Knows the server's key and where its accounts are."""

    def __init__(self, identity: Identity, disk: Disk, directory: str, entropy: Entropy) -> None:
        self._identity = identity
        self._disk = disk
        self._directory = directory
        self._entropy = entropy

    async def admit(self, stream: ByteStream, receiver: FrameReceiver, deadline_s: float) -> Guest | None:
        """Begin the hello. None where the peer is nobody or too slow: then the caller closes, silently.

        Raises Unavailable where the peer is gone, Refused where it sends no frames.
        """
        with trio.move_on_after(deadline_s):
            return await self._admit(stream, receiver)
        return None

    async def _admit(self, stream: ByteStream, receiver: FrameReceiver) -> Guest | None:
        payload = await _receive(receiver)
        opening = hello.read_hello(payload) if payload is not None else None
        if opening is None:
            return None
        account = find_account(self._disk, self._directory, opening.account)
        if account is None or not hello.knows_secret(opening, account.secret):
            return None
        nonce = self._entropy.token(hello.NONCE_SIZE)
        signature = self._identity.sign(hello.signed_bytes(account.name, opening.nonce, nonce))
        reply, payload = hello.answer(
            opening, account.secret, self._identity.server_id, nonce, signature, account.rights
        )
        await stream.send_all([encode_frame(len(payload), Kind.HELLO, Traffic.HEAD, 0), payload])
        return Guest(account, opening, nonce, self._identity.server_id) if reply.version else None


async def _receive(receiver: FrameReceiver) -> bytes | None:
    """The payload of one frame of the hello; None for anything else, before memory is taken for it."""
    frame = await receiver.frame()
    if frame is None or frame.kind is not Kind.HELLO or frame.length > hello.HELLO_SIZE_MAX:
        return None
    return await receiver.message(frame.length)
