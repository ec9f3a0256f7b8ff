"""Which addresses a ticket names, also where the system does not say."""

from __future__ import annotations

import resource

import pytest

from alknet.core.address import Address
from alknet.core.endpoint.interfaces import MAX_ADVERTISED, reachable_addresses
from alknet.errors import LocalError

ANY = Address("0.0.0.0", 4433)


def test_a_wildcard_stands_for_what_the_interfaces_have() -> None:
    found = reachable_addresses([ANY])
    assert 1 <= len(found) <= MAX_ADVERTISED
    assert all(address.port == 4433 and not address.is_unspecified for address in found)


def test_who_is_out_of_descriptors_hears_so() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(LocalError, match="addresses: too many open files"):
            reachable_addresses([ANY])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
