"""The wire of ``alknet/call``, sans-IO: frames, envelopes, and the checks of a peer's JSON.

Theory of operation
===================

**Frames.** A byte stream carries frames: N as u32 big-endian, then N bytes of UTF-8 JSON, with N
from 1 to a limit that the session raises once the peer has proven who it is (`FrameDecoder`). A
message transport (WebSocket) carries one envelope per message, without N.

**Envelopes.** ``{"type": …, "id": …, "payload": {…}}``, all three required, other keys ignored.
The id is 1 to 128 bytes, chosen by the side that requests, and is all that ties messages together.

**Who may send what.** Each side is caller of its own requests and callee of the other's:

====================  ======================  =====================================================
event                 from                    when
====================  ======================  =====================================================
`Requested`           caller                  with an id that it has not in flight
`InputItem`           caller                  op types ``upload`` and ``bidi``, before `InputEnd`
`InputEnd`            caller                  once
`Responded`           callee                  once: it ends a query or mutation; or any number of
                                              times, within the credit: items of a subscription
`Completed`           callee                  ends a subscription
`Failed`              callee                  ends any call
`Aborted`             either                  from the caller: please end it (the answer is `Failed`
                                              with ``ABORTED``); from the callee: ends the call
`Credit`              who receives items      so many more items may be sent
`ConnectionClose`     either                  last, on carriers without a close code of their own
====================  ======================  =====================================================

**Faults** are of two kinds. Bytes that cannot be trusted to mean anything raise `Malformed`, and
the stream that they came on is lost: bad lengths, bad UTF-8, bad JSON, more than 64 levels,
duplicate keys in the envelope, a missing part. What is wrong with *one call* comes back as
`Faulty`, and ends that call alone: a bad ``window`` or ``timeout_ms``, a bad operation name, an
integer that JavaScript could not hold.

**Checked by scans, not by parsing.** The depth is judged before the parser sees the bytes, since
its own guard is the interpreter's recursion limit. Both scans have a fast path that common frames
take (few brackets; no run of 16 digits).

**Not supported on purpose**: compression, a handshake, a version (another wire is another ALPN).
"""

from alknet.call.proto.envelope import decode_envelope_untrusted, encode_event
from alknet.call.proto.events import (
    MAX_CREDIT,
    MAX_ID_BYTES,
    MAX_KEY_BYTES,
    Aborted,
    Completed,
    ConnectionClose,
    Credit,
    Event,
    Failed,
    Faulty,
    InputEnd,
    InputItem,
    Requested,
    Responded,
    Unknown,
)
from alknet.call.proto.framing import HEADER_BYTES, FrameDecoder, encode_frame
from alknet.call.proto.scan import MAX_DEPTH, MAX_SAFE_INTEGER, is_too_deep

__all__ = [
    "HEADER_BYTES",
    "MAX_CREDIT",
    "MAX_DEPTH",
    "MAX_ID_BYTES",
    "MAX_KEY_BYTES",
    "MAX_SAFE_INTEGER",
    "Aborted",
    "Completed",
    "ConnectionClose",
    "Credit",
    "Event",
    "Failed",
    "Faulty",
    "FrameDecoder",
    "InputEnd",
    "InputItem",
    "Requested",
    "Responded",
    "Unknown",
    "decode_envelope_untrusted",
    "encode_event",
    "encode_frame",
    "is_too_deep",
]
