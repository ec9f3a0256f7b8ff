"""Invitations: what parses, what is refused, and that nothing shows the secret."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.core.identity import NodeId
from alknet.core.invitation import MAX_INVITATION_CHARS, Invitation
from alknet.core.ticket import Address, Ticket
from alknet.errors import LocalError

Z32 = "h6gnq3i81majz9gmkfru14fcgete84gorgtoya5ajsyg1kmsf5gy"
NODE = NodeId.parse(Z32)
SECRET = "s3cr3t" * 8


@pytest.mark.parametrize("hosts", ["127.0.0.1:4433", "[::1]:1,hub.example.org:2"])
def test_an_invitation_prints_as_it_was_written(hosts: str) -> None:
    text = f"alknet-invite://{Z32}@{hosts}/{SECRET}"
    invitation = Invitation.parse(f" {text}\n")
    assert invitation.ticket.node_id == NODE
    assert ",".join(map(str, invitation.ticket.addresses)) == hosts
    assert invitation.secret == SECRET
    assert str(invitation) == text


def test_the_scheme_and_the_key_may_have_any_form() -> None:
    text = f"ALKNET-INVITE://{NODE.fingerprint.upper()}@A:1,a:1/{SECRET}"
    expected = Invitation(Ticket(NODE, (Address("a", 1),)), SECRET)
    assert Invitation.parse(text) == expected


def test_the_repr_hides_the_secret() -> None:
    invitation = Invitation.parse(f"alknet-invite://{Z32}@a:1/{SECRET}")
    assert repr(invitation) == "<Invitation of node h6gnq3i81m>"
    assert SECRET not in repr([invitation])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing was given"),
        (f"alknet://{Z32}@a:1", "is a ticket"),
        (SECRET, "does not begin with"),
        (f"alknet-invite://{Z32}@a:1", "secret is missing"),
        (f"alknet-invite://{Z32}@a:1/", "secret is missing"),
        (f"alknet-invite://{Z32}@a:1/{SECRET[:21]}", "cannot be a secret"),
        (f"alknet-invite://{Z32}@a:1/{SECRET}/x", "cannot be a secret"),
        (f"alknet-invite://{Z32}@a:1/{SECRET} {SECRET}", "one line"),
        (f"alknet-invite://{Z32}@a:1/{SECRET}\n{SECRET}", "one line"),
        (f"alknet-invite://{Z32}/{SECRET}", "no address"),
        (f"alknet-invite://{Z32}@/{SECRET}", "no address"),
        (f"alknet-invite://{SECRET}@a:1/{SECRET}", "does not begin with a key"),
        (f"alknet-invite://{Z32}@{SECRET}/{SECRET}", "an address is not"),
        (f"alknet-invite://{Z32}@a:0/{SECRET}", "an address is not"),
        (
            f"alknet-invite://{Z32}@{','.join(f'h{n}:1' for n in range(17))}/{SECRET}",
            "at most 16 addresses",
        ),
        ("alknet-invite://" + SECRET * MAX_INVITATION_CHARS, "at most"),
    ],
)
def test_bad_invitations_say_what_is_wrong_and_quote_nothing(text: str, message: str) -> None:
    with pytest.raises(LocalError) as caught:
        Invitation.parse(text)
    assert message in str(caught.value)
    assert caught.value.__cause__ is None
    assert "s3cr3t" not in str(caught.value)


@given(
    st.text(max_size=100)
    | st.text("alknet:/@[]0123456789.,yb", max_size=100)
    | st.text(max_size=80).map(lambda text: f"alknet-invite://{text}@h:1/{SECRET}")
    | st.text(max_size=80).map(lambda text: f"alknet-invite://{Z32}@{text}/{SECRET}")
)
def test_any_text_is_an_invitation_or_a_local_error(text: str) -> None:
    refused = ""
    try:
        invitation = Invitation.parse(text)
    except LocalError as exc:
        refused = str(exc)
    else:
        assert Invitation.parse(str(invitation)) == invitation
    assert "s3cr3t" not in refused
