"""Messages and the hello: golden bytes, limits, refusals, and decoders that survive anything."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import errors
from storage.errors import Refused, StorageError
from storage.wire import hello
from storage.wire import messages as wire
from storage.wire.frames import PAYLOAD_SIZE_MAX

PACK = bytes(range(32))
KEY = wire.Key(PACK, 3)
ENTRY = wire.HeadEntry(1, 2, b"p" * 32, b"payload", b"s" * 64, b"m" * 16)
SUCCESSOR = wire.Successor(1, PACK, b"wrapped", b"s" * 64)
REQUESTS: list[wire.AnyRequest] = [
    wire.Readv([wire.ShareRead(PACK, 5, [0, 4096, 70000, 1])]),
    wire.Put(b"f" * 16, 1, 2, [wire.PutShare(PACK, 0, 2_000_000)]),
    wire.Have(b"f" * 16, 1, 2, [KEY]),
    wire.Release(b"f" * 16, 1, 2, [KEY]),
    wire.HeadClaim(PACK, PACK, 4, b"m" * 16, b"s" * 64, None),
    wire.HeadClaim(PACK, PACK, 4, b"m" * 16, b"s" * 64, SUCCESSOR),
    wire.HeadAppend(PACK, [ENTRY, ENTRY]),
    wire.HeadRead(PACK, wire.Position(1, 2), 1000),
    wire.HeadRead(PACK, None, 1),
    wire.HeadTrim(PACK, wire.Position(1, 2), b"s" * 64),
    wire.Info(),
    wire.HeadLook(PACK),
    wire.HeadDrop(PACK, 4, b"s" * 64),
    wire.Leased(b"f" * 16, None, 4096),
    wire.Leased(b"f" * 16, KEY, 1),
    wire.HeadKey(PACK, b"s" * 64),
]
REPLIES: list[wire.AnyReply] = [
    wire.ReadReply(None),
    wire.ReadReply([0, 10]),
    wire.FlagsReply([True, False]),
    wire.ClaimReply(1, b"m" * 16, ENTRY),
    wire.ClaimReply(1, b"m" * 16, None),
    wire.DoneReply(),
    wire.RecordsReply([ENTRY, ENTRY]),
    wire.InfoReply("1.0", "group", 2, 1, 0, 0),
    wire.StandingReply(None),
    wire.StandingReply(wire.Standing(1, b"m" * 16, SUCCESSOR, ENTRY)),
    wire.KeysReply([KEY]),
]


def test_golden_messages() -> None:
    """The worked bytes of SPEC.md."""
    assert wire.encode_request(REQUESTS[0]).hex() == (
        "92019193c420" + PACK.hex() + "059400cd1000ce0001117001"
    )
    assert wire.encode_request(wire.Info()).hex() == "9109"
    assert wire.encode_reply(wire.ReadReply([0, 10])).hex() == "920192000a"
    assert wire.encode_failure(wire.CANCELLED).hex() == "9200a9" + b"cancelled".hex()


@pytest.mark.parametrize("request_", REQUESTS, ids=wire.request_name)
def test_requests_round_trip(request_: wire.AnyRequest) -> None:
    assert wire.decode_request(wire.encode_request(request_)) == request_


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: type(reply).__name__)
def test_replies_round_trip(reply: wire.AnyReply) -> None:
    assert wire.decode_reply(wire.encode_reply(reply)) == reply


def _encode(*values: object) -> bytes:
    return msgspec.msgpack.encode(values)


MANY = wire.READV_SPANS_MAX + 1


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(_encode(99), id="unknown tag"),
        pytest.param(_encode(9, 1), id="a field too many"),
        pytest.param(_encode(9) + b"x", id="bytes behind"),
        pytest.param(_encode(1, []), id="no shares"),
        pytest.param(_encode(1, [[PACK, 256, [0, 1]]]), id="share number too high"),
        pytest.param(_encode(1, [[PACK[:31], 1, [0, 1]]]), id="short pack id"),
        pytest.param(_encode(1, [[PACK, 1, [-1, 1]]]), id="negative offset"),
        pytest.param(_encode(1, [[PACK, 1, [0, -1]]]), id="negative length"),
        pytest.param(_encode(1, [[PACK, 1, [0, 0]]]), id="empty span"),
        pytest.param(_encode(1, [[PACK, 1, [0, 1, 2]]]), id="offset without length"),
        pytest.param(_encode(1, [[PACK, 1, [2**63, 1]]]), id="offset out of range"),
        pytest.param(_encode(1, [[PACK, 1, [0, wire.READV_SIZE_MAX + 1]]]), id="too many bytes"),
        pytest.param(_encode(1, [[PACK, 1, [0, 1] * 4097], [PACK, 2, [0, 1] * 4096]]), id="too many spans"),
        pytest.param(_encode(1, [[PACK, 1, [0, 1] * MANY]]), id="too many spans of one share"),
        pytest.param(_encode(2, b"f" * 16, 1, 1, [[PACK, 1, 0]]), id="empty share"),
        pytest.param(_encode(2, b"f" * 16, 1, 1, [[PACK, 1, wire.SHARE_SIZE_MAX + 1]]), id="share too long"),
        pytest.param(_encode(2, b"f" * 16, 1, 1, [[PACK, 1, wire.SHARE_SIZE_MAX]] * 3), id="put too long"),
        pytest.param(_encode(2, b"f" * 15, 1, 1, [[PACK, 1, 1]]), id="short file system id"),
        pytest.param(_encode(3, b"f" * 16, 1, 1, [[PACK, 1]] * 4097), id="too many keys"),
        pytest.param(_encode(7, PACK, None, wire.HEAD_READ_SIZE_MAX + 1), id="head read too long"),
        pytest.param(_encode(5, PACK, PACK, 1, b"m" * 16, b"s" * 64), id="claim without a last field"),
        pytest.param(
            _encode(5, PACK, PACK, 1, b"m" * 16, b"s" * 64, [0, PACK, b"", b"s" * 64]), id="generation 0"
        ),
        pytest.param(
            _encode(5, PACK, PACK, 1, b"m" * 16, b"s" * 64, [1, PACK, bytes(4097), b"s" * 64]),
            id="too many wrapped keys",
        ),
        pytest.param(_encode(12, b"f" * 16, None, 4097), id="too many keys wanted"),
        pytest.param(b"\x92\x01\xdd\xff\xff\xff\xff", id="claims four billion shares"),
        pytest.param(b"\x96\x02\xc6\xff\xff\xff\xff", id="claims four billion bytes"),
    ],
)
def test_a_request_out_of_its_limits_is_refused(payload: bytes) -> None:
    with pytest.raises(Refused, match="malformed"):
        wire.decode_request(payload)


def test_a_record_longer_than_its_limit_is_refused() -> None:
    entry = ENTRY.__class__(1, 2, b"p" * 32, bytes(wire.RECORD_SIZE_MAX + 1), b"s" * 64, b"m" * 16)
    with pytest.raises(Refused, match="malformed"):
        wire.decode_request(wire.encode_request(wire.HeadAppend(PACK, [entry])))


def test_the_largest_messages_fit_one_frame() -> None:
    reads = [wire.ShareRead(PACK, 255, [2**31, 4096, 2**31, 4096]) for _ in range(wire.SHARES_MAX)]
    assert len(wire.encode_request(wire.Readv(reads))) <= PAYLOAD_SIZE_MAX
    lengths = [2**20] * wire.READV_SPANS_MAX
    assert len(wire.encode_reply(wire.ReadReply(lengths))) <= PAYLOAD_SIZE_MAX
    full = wire.HeadEntry(2**62, 2**62, PACK, bytes(wire.RECORD_SIZE_MAX), b"s" * 64, b"m" * 16)
    records = [full] * (wire.HEAD_READ_SIZE_MAX // wire.RECORD_SIZE_MAX + 1)
    assert len(wire.encode_reply(wire.RecordsReply(records))) <= PAYLOAD_SIZE_MAX
    keys = wire.KeysReply([wire.Key(PACK, 255)] * wire.SHARES_MAX)
    assert len(wire.encode_reply(keys)) <= PAYLOAD_SIZE_MAX


def test_a_request_that_cannot_be_sent_is_refused_to_the_caller() -> None:
    reads = [wire.ShareRead(PACK, 255, [2**62, 2**24] * 4) for _ in range(wire.SHARES_MAX)]
    with pytest.raises(Refused, match="too long"):
        wire.encode_request(wire.Readv(reads))


@given(st.binary(max_size=300))
def test_decoders_take_any_bytes(payload: bytes) -> None:
    for decode in (wire.decode_request, wire.decode_reply, wire.decode_failure):
        with contextlib.suppress(Refused):
            decode(payload)


@given(st.sampled_from(REQUESTS), st.data())
def test_the_request_decoder_takes_any_mutation(request_: wire.AnyRequest, data: st.DataObject) -> None:
    payload = bytearray(wire.encode_request(request_))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    for candidate in (payload, payload[:cut]):
        with contextlib.suppress(Refused):
            wire.encode_request(wire.decode_request(candidate))


@pytest.mark.parametrize("kind", wire.FAILURES[1:])
def test_errors_keep_their_kind_and_words(kind: type[StorageError]) -> None:
    failure = wire.decode_failure(wire.encode_failure(wire.failure_of(kind("what to do"))))
    error = wire.error_of(failure)
    assert type(error) is kind
    assert str(error) == "what to do"


def test_long_error_texts_are_cut() -> None:
    failure = wire.failure_of(errors.Unavailable("x" * 10_000))
    assert wire.decode_failure(wire.encode_failure(failure)).text == "x" * wire.FAILURE_TEXT_MAX


# The hello

ACCOUNT, SECRET, SERVER = b"a" * 16, b"s" * 32, b"i" * 32
CLIENT_NONCE, SERVER_NONCE = b"c" * 32, b"n" * 32


def _greeting(secret: bytes = SECRET) -> tuple[hello.Opening, hello.ClientHello]:
    opening, payload = hello.begin(ACCOUNT, secret, SERVER, CLIENT_NONCE)
    message = hello.read_hello(payload)
    assert message is not None
    return opening, message


def _answer(message: hello.ClientHello, secret: bytes = SECRET, server: bytes = SERVER) -> bytes:
    return hello.answer(message, secret, server, SERVER_NONCE, b"g" * 64, "full")[1]


def test_golden_hello() -> None:
    """Fixed bytes: a change here is another version of the protocol."""
    opening, payload = hello.begin(ACCOUNT, SECRET, SERVER, CLIENT_NONCE)
    message = hello.read_hello(payload)
    assert message is not None
    assert payload.hex() == (
        "95"
        "c4086772696466730d0a"
        "9101"
        "c410" + ACCOUNT.hex() + "c420" + CLIENT_NONCE.hex() + "c420"
        "941b0003ecd676baeaea3ce8aae90b94f8040ba0542c610ca603cfaa7974abad"
    )
    assert message.proof.hex() == "941b0003ecd676baeaea3ce8aae90b94f8040ba0542c610ca603cfaa7974abad"
    reply = hello.read_answer(opening, _answer(message))
    assert reply.proof.hex() == "ba340d11f3329363d8ba83910dafc3f740f5ccb77ed88bb417fd45e632159838"
    assert (
        hello.finish(opening, reply).hex() == "91c420"
        "20dc1d26c229789053e29142779ae50b330cb28a8a28542627d39457d36891ff"
    )


def test_the_hello_proves_both_sides() -> None:
    opening, message = _greeting()
    assert hello.knows_secret(message, SECRET)
    reply = hello.read_answer(opening, _answer(message))
    assert (reply.rights, reply.version) == ("full", 1)
    assert hello.is_proof(SECRET, message, SERVER_NONCE, hello.finish(opening, reply))


def test_a_wrong_secret_is_noticed_on_both_sides() -> None:
    opening, message = _greeting(b"x" * 32)
    assert not hello.knows_secret(message, SECRET)
    with pytest.raises(Refused, match="wrong secret"):
        hello.read_answer(opening, _answer(message, SECRET))


def test_another_server_is_a_wrong_pin() -> None:
    opening, message = _greeting()
    with pytest.raises(Refused, match="wrong pin"):
        hello.read_answer(opening, _answer(message, SECRET, b"j" * 32))


def test_a_proof_is_good_for_its_nonces_only() -> None:
    opening, message = _greeting()
    proof = hello.finish(opening, hello.read_answer(opening, _answer(message)))
    assert not hello.is_proof(SECRET, message, b"m" * 32, proof)
    assert not hello.is_proof(SECRET, message, SERVER_NONCE, proof[:-1])


def test_rights_and_versions_of_the_answer_cannot_be_changed() -> None:
    opening, message = _greeting()
    changed = _answer(message).replace(b"full", b"read")
    with pytest.raises(Refused, match="wrong secret"):
        hello.read_answer(opening, changed)


def test_no_common_version_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    opening, message = _greeting()
    monkeypatch.setattr(hello, "WIRE_VERSIONS", (7, 9))
    answer = _answer(message)
    monkeypatch.undo()
    with pytest.raises(Refused, match=r"speaks version 7, 9 .* this client 1"):
        hello.read_answer(opening, answer)


@given(st.binary(max_size=400))
def test_the_hello_decoders_take_any_bytes(payload: bytes) -> None:
    opening, message = _greeting()
    assert hello.read_hello(payload) is None
    assert not hello.is_proof(SECRET, message, SERVER_NONCE, payload)
    with pytest.raises(Refused, match="not a gridfs"):
        hello.read_answer(opening, payload)


@given(st.data())
def test_any_change_of_the_first_message_is_noticed(data: st.DataObject) -> None:
    _, payload = hello.begin(ACCOUNT, SECRET, SERVER, CLIENT_NONCE)
    changed = bytearray(payload)
    changed[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    message = hello.read_hello(changed)
    assert message is None or not hello.knows_secret(message, SECRET)
