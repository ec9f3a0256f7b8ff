"""The QUIC transport: Trio around a sans-IO QUIC.

`engine` is the one module that touches aioquic's private names, `handshake` its TLS half;
`endpoint` owns a UDP socket and its timers; `connection` and `stream` are the contract's faces.
"""
