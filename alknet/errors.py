"""The families of errors that alknet raises.

A class answers two questions: whose fault is it, and can I go on? Resources that broke raise
Trio's own errors (`trio.ClosedResourceError`, `trio.BrokenResourceError`,
`trio.BusyResourceError`); the subclasses in `alknet.core.contracts` add the wire's code to them.
No message holds a secret or a whole payload.
"""

from __future__ import annotations

__all__ = [
    "AlknetError",
    "Conflict",
    "Denied",
    "LocalError",
    "Malformed",
    "NotFound",
    "PeerError",
    "StoreError",
    "Unavailable",
    "Violation",
]


class AlknetError(Exception):
    """Everything that alknet itself raises on purpose."""


class LocalError(AlknetError):
    """The caller broke the rules: a bug, a misuse or a bad configuration. Retrying is useless."""


class PeerError(AlknetError):
    """The other side broke the protocol. Nothing that it sent can be relied on.

    Attributes:
        close_code: The application close code that a connection ended for this reason carries.
    """

    close_code = 2


class Malformed(PeerError):
    """Bytes from a peer do not parse. The only error that ``*_untrusted`` functions raise."""


class Violation(PeerError):
    """The bytes parse, but say something that is not allowed at this point."""


class Denied(AlknetError):
    """The caller, authenticated or not, may not do this.

    Attributes:
        reason: One sentence that is safe to send to the other side.
        is_failed_authentication: A token or key was refused (counts against the address), as
            opposed to a proven identity that lacks a right.
    """

    def __init__(self, reason: str, *, is_failed_authentication: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_failed_authentication = is_failed_authentication


class Unavailable(AlknetError):
    """It cannot be done now (link, store, quota, shutdown), but may work later.

    Attributes:
        retry_after_s: A hint in seconds, or None when nobody knows.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotFound(AlknetError):
    """The thing named does not exist, or the caller may not know that it does."""


class Conflict(AlknetError):
    """The state of the world is not what the caller assumed: a name taken, a version passed."""


class StoreError(AlknetError):
    """A store could not read or write its backing file or server. Nothing was changed."""
