from __future__ import annotations

import re

import pytest

from alknet.core.invitation import Invitation
from tests.cli.kit import Cli, running_node


def test_invite_prints_the_invitation_alone_and_says_where_to_put_it(made: Cli) -> None:
    result = made.ok("peer", "invite", "w1", "--scope", "echo", "--address", "hub.example:4433")
    invitation = Invitation.parse(result.out)
    assert result.out == f"{invitation}\n"
    assert list(map(str, invitation.ticket.addresses)) == ["hub.example:4433"]
    assert str(invitation.ticket.node_id) == made.ok("id", "--json").json["id"]
    assert len(invitation.secret) == 52
    assert "alknet worker join" in result.err
    assert "never as an argument" in result.err
    assert "does not run" in result.err
    assert invitation.secret not in result.err
    state = b"".join(path.read_bytes() for path in made.home.glob("node.db*"))
    assert invitation.secret.encode() not in state


def test_an_invitation_lives_for_ten_minutes_or_as_long_as_is_said(made: Cli) -> None:
    made.ok("peer", "invite", "w1", "--scope", "a", "--resource", "tty:*", "--address", "h:1")
    made.ok("peer", "invite", "w2", "--ttl", "1h", "--address", "h:1")
    found = {one["name"]: one for one in made.ok("peer", "invites", "--json").json["invitations"]}
    lives = {name: one["expires_at"] - one["created_at"] for name, one in found.items()}
    assert lives == {"w1": pytest.approx(600), "w2": pytest.approx(3_600)}
    assert (found["w1"]["scopes"], found["w1"]["resources"]) == (["a"], ["tty:*"])
    assert not found["w1"]["expired"]


def test_of_a_running_node_the_invitation_says_where_it_really_listens(made: Cli) -> None:
    with running_node(made.home) as running:
        made_json = made.ok("peer", "invite", "w1", "--json").json
        invitation = Invitation.parse(made_json["invitation"])
        assert str(invitation.ticket) == running.ticket
        assert made_json["addresses"] == [str(invitation.ticket.addresses[0])]
        assert re.fullmatch("[a-z0-9]{8}", made_json["id"])
        on_terminal = made.ok("peer", "invite", "w2")
        assert f"reached, where it runs, at: {made_json['addresses'][0]}\n" in on_terminal.err
        assert "WARNING: only this machine reaches it" in on_terminal.err
        assert "does not run" not in on_terminal.err


def test_uninvite_takes_an_id_and_repeats_no_secret(made: Cli) -> None:
    one = made.ok("peer", "invite", "w1", "--json", "--address", "h:1").json
    whole = made.fails(2, "peer", "uninvite", one["invitation"])
    assert one["invitation"][-20:] not in whole.err
    assert made.ok("peer", "uninvite", one["id"]).out == f"invitation {one['id']} revoked\n"
    assert made.ok("peer", "invites", "--json").json == {"invitations": []}
    again = made.fails(1, "peer", "uninvite", one["id"], "--json")
    assert again.error["code"] == "NOT_FOUND"
    assert "makes one" in made.ok("peer", "invites").err


def test_of_a_stopped_node_it_says_which_addresses_it_took_from_where(made: Cli) -> None:
    (made.home / "node.toml").write_text('[node]\nlisten = ["127.0.0.1:4433"]\n')
    result = made.ok("peer", "invite", "w1")
    assert "reached, as configured, at: 127.0.0.1:4433\n" in result.err
    assert "WARNING: only this machine reaches it" in result.err
    (made.home / "node.toml").write_text('[node]\nadvertise = ["hub.example:4433"]\n')
    advertised = made.ok("peer", "invite", "w2")
    assert "reached, as configured, at: hub.example:4433\n" in advertised.err
    given = made.ok("peer", "invite", "w3", "--address", "h:1", "--address", "127.0.0.1:2")
    assert "reached, as --address says, at: h:1, 127.0.0.1:2\n" in given.err
    assert "WARNING" not in advertised.err + given.err


def test_a_second_invitation_for_a_name_replaces_the_first_and_says_so(made: Cli) -> None:
    first = made.ok("peer", "invite", "w1", "--address", "h:1", "--json").json
    other = made.ok("peer", "invite", "w2", "--address", "h:1", "--json").json
    assert first["replaces"] == other["replaces"] == []
    again = made.ok("peer", "invite", "w1", "--address", "h:1")
    assert f"It replaces invitation {first['id']}, which nobody had used" in again.err
    found = made.ok("peer", "invites", "--json").json["invitations"]
    assert sorted(one["name"] for one in found) == ["w1", "w2"]
    [second] = [one["id"] for one in found if one["name"] == "w1"]
    assert second in again.err
    third = made.ok("peer", "invite", "w1", "--address", "h:1", "--json").json
    assert third["replaces"] == [second]


def test_a_name_that_was_taken_meanwhile_revokes_no_invitation(made: Cli) -> None:
    made.ok("peer", "invite", "w1", "--address", "h:1")
    made.ok("peer", "add", "w1", f"ed25519:{'ab' * 32}")
    made.fails(1, "peer", "invite", "w1", "--address", "h:1")
    assert len(made.ok("peer", "invites", "--json").json["invitations"]) == 1


def test_an_invitation_is_revoked_by_the_name_that_it_is_for_too(made: Cli) -> None:
    one = made.ok("peer", "invite", "w1", "--address", "h:1", "--json").json
    assert made.ok("peer", "uninvite", "@w1").out == f"invitation {one['id']} revoked\n"
    two = made.ok("peer", "invite", "w1", "--address", "h:1", "--json").json
    done = made.ok("peer", "uninvite", "w1", "--json").json
    assert done == {"id": two["id"], "ids": [two["id"]], "done": "revoked"}


def test_what_is_no_invitation_is_told_with_what_was_meant(made: Cli) -> None:
    one = made.ok("peer", "invite", "worker7", "--address", "h:1", "--json").json
    near = made.fails(1, "peer", "uninvite", "worker", "--json").error
    assert near["message"] == "no invitation 'worker'"
    assert near["hint"].startswith("did you mean 'worker7'? 'alknet peer invites' lists")
    slip = f"{one['id'][:-1]}_"
    assert f"did you mean '{one['id']}'?" in made.fails(1, "peer", "uninvite", slip).err
    # Of letters that no id has.
    far = made.fails(1, "peer", "uninvite", "v0lv0l", "--json").error
    assert far["hint"] == "'alknet peer invites' lists those that were not used"


@pytest.mark.parametrize(
    "arguments",
    [
        ("any",),
        ("W1",),
        ("w1", "--scope", "a b"),
        ("w1", "--resource", "x"),
        ("w1", "--ttl", "31d"),
        ("w1", "--ttl", "soon"),
        ("w1", "--address", "h"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(made: Cli, arguments: tuple[str, ...]) -> None:
    made.fails(2, "peer", "invite", *arguments)
    assert made.ok("peer", "invites", "--json").json == {"invitations": []}


def test_a_name_that_a_peer_has_gets_no_invitation(made: Cli) -> None:
    made.ok("peer", "add", "bob", made.ok("id", "--json").json["id"])
    result = made.fails(1, "peer", "invite", "bob", "--address", "h:1", "--json")
    assert result.error["code"] == "CONFLICT"
    assert result.error["message"] == "a peer named 'bob' exists"
    assert "'alknet peer remove bob'" in result.error["hint"]


def test_without_an_address_there_is_no_invitation(made: Cli) -> None:
    (made.home / "node.toml").write_text('[node]\nlisten = ["127.0.0.1:0"]\n')
    result = made.fails(1, "peer", "invite", "w1", "--json")
    assert "no address is known" in result.error["message"]
    assert "--address" in result.error["hint"]


def test_invitations_are_in_the_audit_log(made: Cli) -> None:
    one = made.ok("peer", "invite", "w1", "--json", "--address", "h:1").json
    made.ok("peer", "uninvite", one["id"])
    actions = [row["action"] for row in made.ok("audit", "--json").lines]
    assert actions[-2:] == ["enrolment.create", "enrolment.revoke"]
