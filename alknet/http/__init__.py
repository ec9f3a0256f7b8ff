"""HTTP. For now one answer to everything, so that a browser or curl is told whom it has met."""

from alknet.http.h3.placeholder import NotFoundOverQuic
from alknet.http.placeholder import NotFoundHandler

__all__ = ["NotFoundHandler", "NotFoundOverQuic"]
