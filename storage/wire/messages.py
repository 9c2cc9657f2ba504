"""Messages: what the payloads of REQUEST, REPLY and FAIL frames say, as msgpack arrays with a leading tag.

Pure. Every length and number is checked against its limit while decoding, before memory is taken for it;
bulk bytes never pass through here. Fields and limits are tabled in SPEC.md.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from storage.errors import Conflict, Corrupt, Exhausted, Missing, Refused, StorageError, Unavailable
from storage.format.head import GENERATION_MAX, WRAPPED_MAX
from storage.wire.frames import PAYLOAD_SIZE_MAX

SHARES_MAX = 4096
"""Shares named by one request."""
READV_SPANS_MAX = 8192
"""Ranges of one readv, over all its shares."""
READV_SIZE_MAX = 32 * 1024 * 1024
"""Bytes that one readv may ask for."""
PUT_SIZE_MAX = 32 * 1024 * 1024
"""Bytes of shares in one put."""
SHARE_SIZE_MAX = 16 * 1024 * 1024
"""Bytes of one share."""
RECORD_SIZE_MAX = 64 * 1024
"""Payload of one head log record."""
HEAD_READ_SIZE_MAX = 128 * 1024
"""Payload bytes after which a head read stops; the last record may pass it."""
HEAD_APPEND_MAX = 32
"""Records of one head append; their payloads and the rest fit a frame."""
HEAD_KEYS_MAX = 4
"""Head signing keys that one connection may show."""
FAILURE_TEXT_MAX = 500

REQUESTS_WINDOW = 256
"""Requests of one connection that may be unanswered."""
PUT_WINDOW = PUT_SIZE_MAX
"""Bytes of put bodies of one connection that may be unanswered."""
REPLY_WINDOW = 2 * READV_SIZE_MAX
"""Bytes that the unanswered readvs of one connection may ask for together."""

_U63 = 2**63 - 1
Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
Id16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
ShareNumber = Annotated[int, Meta(ge=0, le=255)]
Unsigned = Annotated[int, Meta(ge=0, le=_U63)]
Size = Annotated[int, Meta(ge=0, le=SHARE_SIZE_MAX)]
Payload = Annotated[bytes, Meta(max_length=RECORD_SIZE_MAX)]
ShortText = Annotated[str, Meta(max_length=FAILURE_TEXT_MAX)]


class _Record(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An array of its fields in order."""


class Key(_Record, frozen=True):
    pack_id: Hash
    number: ShareNumber


class ShareRead(_Record, frozen=True):
    pack_id: Hash
    number: ShareNumber
    ranges: Annotated[list[Unsigned], Meta(min_length=2, max_length=2 * READV_SPANS_MAX)]
    """offset, length, offset, length, ..."""


class PutShare(_Record, frozen=True):
    pack_id: Hash
    number: ShareNumber
    size: Annotated[int, Meta(ge=1, le=SHARE_SIZE_MAX)]


class Position(_Record, frozen=True):
    """A place in a head log."""

    epoch: Unsigned
    sequence: Unsigned


class HeadEntry(_Record, frozen=True):
    """One record of a head log."""

    epoch: Unsigned
    sequence: Unsigned
    previous: Hash
    payload: Payload
    signature: Signature
    mount_id: Id16


class Successor(_Record, frozen=True):
    """The recovery key's word that a head log belongs to another key now."""

    generation: Annotated[int, Meta(ge=1, le=GENERATION_MAX)]
    verifying_key: Hash
    wrapped: Annotated[bytes, Meta(max_length=WRAPPED_MAX)]
    signature: Signature


class Standing(_Record, frozen=True):
    """How a head log stands."""

    epoch: Unsigned
    mount_id: Id16
    successor: Successor | None
    newest: HeadEntry | None


class Request(_Record, frozen=True, tag=0):
    """Any message of a REQUEST frame."""


class Readv(Request, frozen=True, tag=1):
    shares: Annotated[list[ShareRead], Meta(min_length=1, max_length=SHARES_MAX)]


class Put(Request, frozen=True, tag=2):
    """Followed by the bytes of all shares, one after the other."""

    file_system: Id16
    epoch: Unsigned
    sequence: Unsigned
    shares: Annotated[list[PutShare], Meta(min_length=1, max_length=SHARES_MAX)]


class Have(Request, frozen=True, tag=3):
    file_system: Id16
    epoch: Unsigned
    sequence: Unsigned
    keys: Annotated[list[Key], Meta(min_length=1, max_length=SHARES_MAX)]


class Release(Request, frozen=True, tag=4):
    file_system: Id16
    epoch: Unsigned
    sequence: Unsigned
    keys: Annotated[list[Key], Meta(min_length=1, max_length=SHARES_MAX)]


class HeadClaim(Request, frozen=True, tag=5):
    first_key: Hash
    recovery_public: Hash
    epoch: Unsigned
    mount_id: Id16
    signature: Signature
    successor: Successor | None


class HeadAppend(Request, frozen=True, tag=6):
    log: Hash
    entries: Annotated[list[HeadEntry], Meta(min_length=1, max_length=HEAD_APPEND_MAX)]
    """Each names the hash of the one before it."""


class HeadRead(Request, frozen=True, tag=7):
    log: Hash
    after: Position | None
    limit_bytes: Annotated[int, Meta(ge=1, le=HEAD_READ_SIZE_MAX)]


class HeadTrim(Request, frozen=True, tag=8):
    log: Hash
    before: Position
    signature: Signature


class Info(Request, frozen=True, tag=9):
    pass


class HeadLook(Request, frozen=True, tag=10):
    log: Hash


class HeadDrop(Request, frozen=True, tag=11):
    log: Hash
    epoch: Unsigned
    signature: Signature


class Leased(Request, frozen=True, tag=12):
    """Which shares does this account lease for a file system?"""

    file_system: Id16
    after: Key | None
    limit: Annotated[int, Meta(ge=1, le=SHARES_MAX)]


class HeadKey(Request, frozen=True, tag=13):
    """A head signing key is with the client: the signature is over the connection's name."""

    verifying_key: Hash
    signature: Signature


AnyRequest = (
    Readv
    | Put
    | Have
    | Release
    | HeadClaim
    | HeadAppend
    | HeadRead
    | HeadTrim
    | Info
    | HeadLook
    | HeadDrop
    | Leased
    | HeadKey
)


class Reply(_Record, frozen=True, tag=0):
    """Any message of a REPLY frame."""


class ReadReply(Reply, frozen=True, tag=1):
    """Followed by that many bytes in all."""

    lengths: Annotated[list[Unsigned], Meta(max_length=READV_SPANS_MAX)] | None
    """Bytes per span of the request, in its order; nil where every span is whole."""


class FlagsReply(Reply, frozen=True, tag=2):
    """The answer to put, have and release: one flag per share, in the order asked."""

    flags: Annotated[list[bool], Meta(max_length=SHARES_MAX)]


class ClaimReply(Reply, frozen=True, tag=3):
    epoch: Unsigned
    mount_id: Id16
    newest: HeadEntry | None


class DoneReply(Reply, frozen=True, tag=4):
    pass


class RecordsReply(Reply, frozen=True, tag=5):
    records: Annotated[list[HeadEntry], Meta(max_length=2048)]


class InfoReply(Reply, frozen=True, tag=6):
    version: ShortText
    sync_policy: ShortText
    space_total: Unsigned
    space_free: Unsigned
    shares: Unsigned
    share_bytes: Unsigned


class StandingReply(Reply, frozen=True, tag=7):
    standing: Standing | None


class KeysReply(Reply, frozen=True, tag=8):
    """By pack id and number, ascending."""

    keys: Annotated[list[Key], Meta(max_length=SHARES_MAX)]


AnyReply = (
    ReadReply | FlagsReply | ClaimReply | DoneReply | RecordsReply | InfoReply | StandingReply | KeysReply
)


class Failure(_Record, frozen=True):
    """The message of a FAIL frame."""

    code: Annotated[int, Meta(ge=0, le=6)]
    """0: the request was cancelled; else which error, see FAILURES."""
    text: ShortText


FAILURES: tuple[type[StorageError], ...] = (
    StorageError,
    Unavailable,
    Corrupt,
    Missing,
    Conflict,
    Refused,
    Exhausted,
)
CANCELLED = Failure(0, "cancelled")

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[AnyRequest] = msgspec.msgpack.Decoder(AnyRequest)
_replies: msgspec.msgpack.Decoder[AnyReply] = msgspec.msgpack.Decoder(AnyReply)
_failures = msgspec.msgpack.Decoder(Failure)
T = TypeVar("T")


def encode_request(message: Request) -> bytes:
    """The payload of a REQUEST frame. Raises Refused where a field is out of its limits."""
    payload = _encoder.encode(message)
    if len(payload) > PAYLOAD_SIZE_MAX:
        raise Refused(
            f"the request is too long: {len(payload)} bytes, at most {PAYLOAD_SIZE_MAX} are allowed"
        )
    return payload


def decode_request(payload: bytes | bytearray | memoryview) -> AnyRequest:
    """Raises Refused for anything but a well-formed request inside all limits."""
    request = _decode(_requests, payload)
    if isinstance(request, Readv):
        _check_ranges(request)
    elif isinstance(request, Put) and sum(share.size for share in request.shares) > PUT_SIZE_MAX:
        raise Refused(f"malformed message: a put of more than {PUT_SIZE_MAX} bytes")
    return request


def encode_reply(message: Reply) -> bytes:
    """The payload of a REPLY frame."""
    payload = _encoder.encode(message)
    assert len(payload) <= PAYLOAD_SIZE_MAX
    return payload


def decode_reply(payload: bytes | bytearray | memoryview) -> AnyReply:
    """Raises Refused for anything but a well-formed reply."""
    return _decode(_replies, payload)


def encode_failure(failure: Failure) -> bytes:
    return _encoder.encode(failure)


def failure_of(error: StorageError) -> Failure:
    """The wire's form of an error; its text is cut to the limit."""
    codes = [code for code in range(1, len(FAILURES)) if isinstance(error, FAILURES[code])]
    return Failure(codes[0] if codes else 1, str(error)[:FAILURE_TEXT_MAX])


def decode_failure(payload: bytes | bytearray | memoryview) -> Failure:
    """Raises Refused for anything but a well-formed failure."""
    return _decode(_failures, payload)


def error_of(failure: Failure) -> StorageError:
    """The error that a FAIL frame stands for."""
    return FAILURES[failure.code](failure.text)


_NAMES: dict[type[Request], str] = {
    Readv: "readv",
    Put: "put",
    Have: "have",
    Release: "release",
    HeadClaim: "head_claim",
    HeadAppend: "head_append",
    HeadRead: "head_read",
    HeadTrim: "head_trim",
    Info: "info",
    HeadLook: "head_look",
    HeadDrop: "head_drop",
    Leased: "leased",
    HeadKey: "head_key",
}


def changes_nothing(request: Request) -> bool:
    """Whether a request only reads. Such may be sent before the hello is complete."""
    return isinstance(request, Readv | HeadRead | HeadLook | Info | Leased)


def request_name(request: Request) -> str:
    """The kind of a request, for counters and messages."""
    return _NAMES[type(request)]


def read_size(request: Readv) -> int:
    """Bytes that a readv asks for."""
    return sum(sum(share.ranges[1::2]) for share in request.shares)


def _check_ranges(request: Readv) -> None:
    if any(len(share.ranges) % 2 for share in request.shares):
        raise Refused("malformed message: a range without a length")
    if sum(len(share.ranges) for share in request.shares) > 2 * READV_SPANS_MAX:
        raise Refused(f"malformed message: more than {READV_SPANS_MAX} spans")
    if any(min(share.ranges[1::2]) < 1 for share in request.shares):
        raise Refused("malformed message: an empty span")
    if read_size(request) > READV_SIZE_MAX:
        raise Refused(f"malformed message: a readv of more than {READV_SIZE_MAX} bytes")


def _decode(decoder: msgspec.msgpack.Decoder[T], payload: bytes | bytearray | memoryview) -> T:
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"malformed message: {error}") from error
