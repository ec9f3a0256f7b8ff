"""TLS 1.3 over byte streams: TCP sockets, Unix sockets, memory streams, relayed streams."""
