"""Mutants that change nothing that could be seen: by the line, what became of it, and why."""

from __future__ import annotations

__all__ = ["EQUIVALENT"]

SLOWER = "the general way is taken, to the same end"
COUNTED = "what is set does not matter: `StreamLimit` counts how often"
IS_NEXT_IN_ORDER = (
    "if delivery is QuicDeliveryState.ACKED and start == sender._buffer_start"
    " and (sender._buffer_fin is None) and (sender._reset_error_code is None)"
    " and (not len(sender._acked)):"
)
IS_NEW_SEALER = (
    "if sealer is None or sealer.aead is not crypto.send.aead"
    " or sealer.cid is not self._peer_cid.cid:"
)

EQUIVALENT: dict[tuple[str, str], str] = {
    ("if length == 2:", "if False:"): SLOWER,
    (
        "self.mask = hp._mask if hp._is_chacha20 else hp._encryptor.update",
        "self.mask = hp._mask if True else hp._encryptor.update",
    ): SLOWER,
    (
        (
            "if loss._rtt_smoothed != inbound.rtt_smoothed"
            " or loss._rtt_variance != inbound.rtt_variance:"
        ),
        "if True:",
    ): SLOWER,
    (
        "if number > space.largest_received_packet:",
        "if number >= space.largest_received_packet:",
    ): "a duplicate is dropped before",
    ("if lower > window._lower:", "if lower >= window._lower:"): "only a duplicate is equal",
    (
        "elif number > expected + half and number >= 2 * half:",
        "elif number > expected + half and number > 2 * half:",
    ): "in the first window no number is as large; in a later one the first half says no",
    ("if TYPE_CHECKING:", "if False:"): "names of types, which nobody looks up while it runs",
    (
        "streams = list(raised) if len(raised) == 1 else list(connection._streams.values())",
        "streams = list(raised) if False else list(connection._streams.values())",
    ): SLOWER,
    ("if more:", "if True:"): SLOWER,
    ("if self._datagrams:", "if True:"): SLOWER,
    ("if order[-1] is not stream:", "if True:"): SLOWER,
    ("if len(order) < 2:", "if False:"): SLOWER,
    ("return order", "pass"): SLOWER,
    ("if len(order) <= FEW_STREAMS:", "if True:"): SLOWER,
    ("if len(order) <= FEW_STREAMS:", "if False:"): SLOWER,
    ("if len(order) <= FEW_STREAMS:", "if len(order) < FEW_STREAMS:"): SLOWER,
    ("if len(order) <= FEW_STREAMS:", "if len(order) > FEW_STREAMS:"): SLOWER,
    ("FEW_STREAMS = 8", "FEW_STREAMS = 9"): SLOWER,
    (IS_NEXT_IN_ORDER, "if False:"): SLOWER,
    (IS_NEW_SEALER, "if True:"): SLOWER,
    (
        "bucket = 0.0 if bucket < step else bucket - step",
        "bucket = 0.0 if bucket <= step else bucket - step",
    ): "of equal ones nothing is left, either way",
    ("return (0, False)", "return (0, True)"): "what is then in the packet is data, which elicits",
    (
        "self._stream_limit(stream_id).value += 1",
        "self._stream_limit(stream_id).value -= 1",
    ): COUNTED,
    (
        "self._stream_limit(stream_id).value += 1",
        "self._stream_limit(stream_id).value += 2",
    ): COUNTED,
}
