"""Opening a connection: connect, say hello, and tell in words what is wrong where it fails."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from storage.client.connection import Connection
from storage.client.records import ClientConfig, ClientStatistics
from storage.errors import Refused, Unavailable
from storage.identity import verify
from storage.ports import ByteStream, Entropy, Network
from storage.transport.link import FrameReceiver
from storage.wire import hello
from storage.wire.frames import Kind, Traffic, encode_frame
from storage.wire.url import Access, format_address


@asynccontextmanager
async def open_connection(
    access: Access, network: Network, entropy: Entropy, config: ClientConfig, statistics: ClientStatistics
) -> AsyncIterator[Connection]:
    """Connect and say hello. Raises Unavailable, or Refused for a wrong pin, secret or version."""
    if access.secret is None:
        raise Refused("the URL has no secret: it names the server but does not open it")
    stream = await _connect(access, network, config)
    try:
        receiver = FrameReceiver(stream, config.stall_s)
        with trio.move_on_after(config.connect_s) as scope:
            await _say_hello(stream, receiver, access, access.secret, entropy)
        if scope.cancelled_caught:
            raise Unavailable(f"{format_address(access.address)} does not complete the hello")
        statistics.connects += 1
        yield Connection(stream, receiver, config)
    finally:
        stream.close()


async def _connect(access: Access, network: Network, config: ClientConfig) -> ByteStream:
    with trio.move_on_after(config.connect_s):
        return await network.connect(access.address, access.server_id)
    raise Unavailable(f"{format_address(access.address)} does not answer")


async def _say_hello(
    stream: ByteStream, receiver: FrameReceiver, access: Access, secret: bytes, entropy: Entropy
) -> None:
    opening, payload = hello.begin(access.account, secret, access.server_id, entropy.token(hello.NONCE_SIZE))
    await _send_hello(stream, payload)
    frame = await receiver.frame()
    if frame is None:
        # All that a server does for somebody whose first message does not prove the secret.
        raise Refused(
            f"{format_address(access.address)} does not accept the account's secret (wrong or retired)"
        )
    if frame.kind is not Kind.HELLO or frame.length > hello.HELLO_SIZE_MAX:
        raise Refused(f"{format_address(access.address)} is not a gridfs storage server")
    reply = hello.read_answer(opening, await receiver.message(frame.length))
    signed = hello.signed_bytes(access.account, opening.nonce, reply.nonce)
    if not verify(access.server_id, reply.signature, signed):
        raise Refused("wrong pin: the server does not hold the key that the URL names")
    await _send_hello(stream, hello.finish(opening, reply))


async def _send_hello(stream: ByteStream, payload: bytes) -> None:
    await stream.send_all([encode_frame(len(payload), Kind.HELLO, Traffic.HEAD, 0), payload])
