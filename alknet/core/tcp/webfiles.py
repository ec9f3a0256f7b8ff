"""The files of ``[[web_certificates]]``, loaded, and checked by the TLS that shows them."""

from __future__ import annotations

from collections.abc import Iterable

from alknet.core.config_tables import WebCertificateFiles
from alknet.core.tcp.contexts import check_certificate
from alknet.core.tls.credentials import WebCertificate
from alknet.errors import LocalError

__all__ = ["load_web_certificates"]


def load_web_certificates(files: Iterable[WebCertificateFiles]) -> dict[str, WebCertificate]:
    """Return the certificates by server name.

    Raises:
        LocalError: One cannot be loaded or shown; it names the file.
    """
    loaded: dict[str, WebCertificate] = {}
    for one in files:
        certificate = WebCertificate.load(one.cert_file, one.key_file)
        try:
            check_certificate(certificate)
        except LocalError as exc:
            raise LocalError(f"{one.cert_file}: {exc}") from exc
        loaded |= dict.fromkeys(one.server_names, certificate)
    return loaded
