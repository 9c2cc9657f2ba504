"""The hello: both sides prove that they know the account's secret, and the server its key, sending neither.

Three messages. The client's first already proves the secret, so that whoever does not know it gets no answer
at all, not even that there is a gridfs server. The server answers with a signature of its Ed25519 key and a
proof of the secret over both nonces, the client ends with its own over both, so that nothing can be replayed.
Pure: nonces are handed in. A wrong proof is an outcome (`None` or `Refused`), not a crash.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec
from blake3 import blake3
from msgspec import Meta, Struct

from storage.errors import Refused
from storage.wire.frames import WIRE_VERSIONS
from storage.wire.messages import Hash, Id16, Signature

MAGIC = b"gridfs\r\n"
HELLO_SIZE_MAX = 1024
"""Payload bytes of any message of the hello: what an unknown peer can make the other side hold."""
NONCE_SIZE = 32

_OPEN = b"gridfs 2026 hello open\0"
_SERVER = b"gridfs 2026 hello server\0"
_CLIENT = b"gridfs 2026 hello client\0"

Versions = Annotated[list[Annotated[int, Meta(ge=1, le=65535)]], Meta(min_length=1, max_length=16)]
M = TypeVar("M", bound="_Message")


class _Message(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An array of its fields in order. These three never change, whatever the version."""


class ClientHello(_Message, frozen=True):
    magic: Annotated[bytes, Meta(min_length=8, max_length=8)]
    versions: Versions
    account: Id16
    nonce: Hash
    proof: Hash


class ServerHello(_Message, frozen=True):
    version: Annotated[int, Meta(ge=0, le=65535)]
    """The version chosen; 0 where none of the client's is spoken here, and the connection ends."""
    versions: Versions
    server_id: Hash
    nonce: Hash
    proof: Hash
    signature: Signature
    rights: Annotated[str, Meta(max_length=16)]


class ClientProof(_Message, frozen=True):
    proof: Hash


@dataclass(frozen=True, slots=True)
class Opening:
    """What the client keeps between its two messages."""

    account: bytes
    secret: bytes
    nonce: bytes
    server_id: bytes


def begin(account: bytes, secret: bytes, server_id: bytes, nonce: bytes) -> tuple[Opening, bytes]:
    """The client's side so far, and the payload of its first message."""
    proof = _proof(secret, _OPEN, _versions(WIRE_VERSIONS), account, nonce)
    hello = ClientHello(MAGIC, list(WIRE_VERSIONS), account, nonce, proof)
    return Opening(account, secret, nonce, server_id), msgspec.msgpack.encode(hello)


def read_hello(payload: bytes | bytearray | memoryview) -> ClientHello | None:
    """The client's first message as the server reads it; None for anything else."""
    hello = _decode(ClientHello, payload)
    return hello if hello is not None and hello.magic == MAGIC else None


def knows_secret(hello: ClientHello, secret: bytes) -> bool:
    """Whether the first message comes from somebody who knows the secret (or repeats such a message)."""
    proof = _proof(secret, _OPEN, _versions(hello.versions), hello.account, hello.nonce)
    return hmac.compare_digest(proof, hello.proof)


def signed_bytes(account: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    """What the server signs with its key."""
    return _SERVER + account + client_nonce + server_nonce


def connection_name(server_id: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    """96 bytes that no other connection shares: each side chose one of the nonces."""
    return server_id + client_nonce + server_nonce


def answer(
    hello: ClientHello, secret: bytes, server_id: bytes, nonce: bytes, signature: bytes, rights: str
) -> tuple[ServerHello, bytes]:
    """The server's message and its payload. `signature` is over `signed_bytes`."""
    version = next((version for version in WIRE_VERSIONS if version in hello.versions), 0)
    proof = _server_proof(
        secret, version, WIRE_VERSIONS, hello.account, server_id, hello.nonce, nonce, rights
    )
    reply = ServerHello(version, list(WIRE_VERSIONS), server_id, nonce, proof, signature, rights)
    return reply, msgspec.msgpack.encode(reply)


def read_answer(opening: Opening, payload: bytes | bytearray | memoryview) -> ServerHello:
    """The server's message as the client reads it. Raises Refused in words that name what is wrong.

    The signature is left to the caller, who has the means to check it.
    """
    reply = _decode(ServerHello, payload)
    if reply is None:
        raise Refused("the peer is not a gridfs storage server")
    if reply.server_id != opening.server_id:
        raise Refused(
            f"wrong pin: the server's key begins with {reply.server_id.hex()[:16]}, "
            f"the URL says {opening.server_id.hex()[:16]}"
        )
    proof = _server_proof(
        opening.secret,
        reply.version,
        reply.versions,
        opening.account,
        reply.server_id,
        opening.nonce,
        reply.nonce,
        reply.rights,
    )
    if not hmac.compare_digest(proof, reply.proof):
        raise Refused("wrong secret: the server does not know the secret of this account")
    if reply.version not in WIRE_VERSIONS:
        raise Refused(
            f"the server speaks version {_list(reply.versions)} of the protocol, "
            f"this client {_list(WIRE_VERSIONS)}: update the older one"
        )
    return reply


def finish(opening: Opening, reply: ServerHello) -> bytes:
    """The payload of the client's second message."""
    return msgspec.msgpack.encode(ClientProof(_client_proof(opening.secret, opening.nonce, reply.nonce)))


def is_proof(
    secret: bytes, hello: ClientHello, nonce: bytes, payload: bytes | bytearray | memoryview
) -> bool:
    """Whether the client's second message proves the secret over both nonces."""
    message = _decode(ClientProof, payload)
    return message is not None and hmac.compare_digest(
        _client_proof(secret, hello.nonce, nonce), message.proof
    )


def _server_proof(
    secret: bytes,
    version: int,
    versions: list[int] | tuple[int, ...],
    account: bytes,
    server_id: bytes,
    client_nonce: bytes,
    server_nonce: bytes,
    rights: str,
) -> bytes:
    chosen = version.to_bytes(2, "big") + _versions(versions)
    return _proof(secret, _SERVER, chosen, account, server_id, client_nonce, server_nonce, rights.encode())


def _client_proof(secret: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    return _proof(secret, _CLIENT, client_nonce, server_nonce)


def _versions(versions: list[int] | tuple[int, ...]) -> bytes:
    """Length first, so that no two lists run into what follows them alike."""
    return bytes([len(versions)]) + b"".join(version.to_bytes(2, "big") for version in versions)


def _list(versions: list[int] | tuple[int, ...]) -> str:
    return ", ".join(map(str, versions))


def _proof(secret: bytes, *parts: bytes) -> bytes:
    """BLAKE3 keyed with the secret. Only the last part may vary in length by itself."""
    return blake3(b"".join(parts), key=secret).digest()


def _decode(kind: type[M], payload: bytes | bytearray | memoryview) -> M | None:
    if len(payload) > HELLO_SIZE_MAX:
        return None
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
