"""Opening a connection: connect, say hello, and tell in words what is wrong where it fails.

The hello is complete when the server's answer is there (`Connection.run` takes it). Requests that change
nothing go out right behind our first message: their answers come one round trip after the connection is made.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from storage.client.connection import Connection
from storage.client.greeting import Greeting
from storage.client.records import ClientConfig, ClientStatistics
from storage.errors import Refused, Unavailable
from storage.ports import ByteStream, Entropy, Network
from storage.transport.link import FrameReceiver
from storage.wire.frames import Kind, Traffic, encode_frame
from storage.wire.url import Access, format_address


@asynccontextmanager
async def open_connection(
    access: Access, network: Network, entropy: Entropy, config: ClientConfig, statistics: ClientStatistics
) -> AsyncIterator[Connection]:
    """Connect and begin the hello. Raises Unavailable, or Refused where the network tells a wrong pin."""
    if access.secret is None:
        raise Refused("the URL has no secret: it names the server but does not open it")
    stream = await _connect(access, network, config)
    try:
        receiver = FrameReceiver(stream, config.stall_s)
        greeting = Greeting(access, access.secret, entropy)
        with trio.move_on_after(config.connect_s) as scope:
            await stream.send_all(
                [encode_frame(len(greeting.first), Kind.HELLO, Traffic.HEAD, 0), greeting.first]
            )
        if scope.cancelled_caught:
            raise Unavailable(f"{format_address(access.address)} does not take the hello")
        yield Connection(stream, receiver, config, greeting, statistics)
    finally:
        stream.close()


async def _connect(access: Access, network: Network, config: ClientConfig) -> ByteStream:
    with trio.move_on_after(config.connect_s):
        return await network.connect(access.address, access.server_id)
    raise Unavailable(f"{format_address(access.address)} does not answer")
