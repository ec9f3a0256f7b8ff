"""aioquic's hot methods for plain 1-RTT traffic, written anew; everything else stays aioquic's.

Nine of ten packets of a live connection hold STREAM and ACK frames and nothing else. For those
`receive`, `acks` and `send` do what aioquic does, without its general machinery; whatever is not
plain goes to the original method of the same name. tests/core/quic/hotpath runs the same traffic
through both and compares events, bytes and state.
"""
