"""node.toml: what each key means, and that every mistake is found and named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.core.address import Address
from alknet.core.config import (
    ConfigError,
    LogTable,
    NodeConfig,
    WebCertificateFiles,
    check_config,
    default_config_text,
    load_config,
    what_changed,
    what_needs_restart,
)
from alknet.core.config_lines import key_lines, line_of
from alknet.core.identity import Grant, NodeId, Peer
from alknet.core.limits import Limits
from alknet.errors import LocalError

KEYS = [NodeId(bytes([n]) * 32) for n in range(1, 4)]
NL = "\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.toml"


def problems(path: Path, text: str) -> list[str]:
    path.write_text(text)
    found = check_config(path)
    assert all(problem.file == str(path) for problem in found)
    return [str(problem).removeprefix(f"{path}:") for problem in found]


def test_no_file_means_the_defaults(path: Path) -> None:
    assert load_config(path) == NodeConfig()
    assert check_config(path) == []
    assert NodeConfig().listen == (Address("::", 4433),)
    assert NodeConfig().limits == Limits()


def test_the_text_for_new_homes_changes_nothing_and_shows_every_key(path: Path) -> None:
    text = default_config_text()
    assert problems(path, text) == []
    assert load_config(path) == NodeConfig()
    shown = "\n".join(line.removeprefix("# ") for line in text.splitlines() if " = " in line)
    for key in [*Limits.__struct_fields__, "listen", "advertise", "default_alpn", "cert_file"]:
        assert f"{key} = " in shown
    before_limits, _, limits = text.partition("[limits]\n")
    assert before_limits
    path.write_text("[limits]\n" + limits.replace("# ", ""))
    assert load_config(path).limits == Limits()


def test_a_whole_file(path: Path) -> None:
    (path.parent / "c.pem").touch()
    (path.parent / "k.pem").touch()
    path.write_text(f"""
[node]
listen = ["127.0.0.1:0", "[::1]:4433"]
advertise = ["Hub.example.org:4433"]
default_alpn = "http/1.1"

[limits]
idle_timeout_s = 60
calls_per_connection = 7

[log]
level = "debug"
format = "json"

[[peers]]
name = "hub"
id = "{KEYS[0]}"
fingerprints = ["{KEYS[1].fingerprint}", "sha256:{"AB" * 32}"]
scopes = ["echo", "fs:*"]
resources = ["tty:*", "fs:a%3Ab:read"]
display_name = "The hub"
addresses = ["h:1", "H:1"]
enabled = false

[[peers]]
name = "w1"
id = "alknet://{KEYS[2]}@[::1]:1"
addresses = ["h:2"]
may_offer = true

[[web_certificates]]
server_names = ["Hub.example.org", "*.hub.example.org"]
cert_file = "c.pem"
key_file = "k.pem"
""")
    assert load_config(path) == NodeConfig(
        listen=(Address("127.0.0.1", 0), Address("::1", 4433)),
        advertise=(Address("hub.example.org", 4433),),
        default_alpn="http/1.1",
        limits=Limits(idle_timeout_s=60.0, calls_per_connection=7),
        log=LogTable(level="debug", format="json"),
        peers=(
            Peer(
                name="hub",
                fingerprints=(
                    KEYS[0].fingerprint,
                    KEYS[1].fingerprint,
                    "SHA256:" + "ab" * 32,
                ),
                scopes=("echo", "fs:*"),
                resources=(Grant("tty", "*"), Grant("fs", "a:b", "read")),
                display_name="The hub",
                addresses=("h:1",),
                enabled=False,
                read_only=True,
            ),
            Peer(
                name="w1",
                fingerprints=(KEYS[2].fingerprint,),
                addresses=("[::1]:1", "h:2"),
                may_offer=True,
                read_only=True,
            ),
        ),
        web_certificates=(
            WebCertificateFiles(
                ("hub.example.org", "*.hub.example.org"),
                path.parent / "c.pem",
                path.parent / "k.pem",
            ),
        ),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nodes = 1", "1: nodes: unknown key (did you mean 'node'?)"),
        ("\n[node]\nlisen = []", "3: node.lisen: unknown key (did you mean 'listen'?)"),
        (
            "[node]\nidle_timeout_s = 1",
            "2: node.idle_timeout_s: unknown key (did you mean 'idle_timeout_s' of [limits]?)",
        ),
        ("[log]\nx = 1", "2: log.x: unknown key (known here: level, format)"),
        ("node = 1", "1: node: found 1, expected a table"),
        ("[peers]\nname = 'a'", "1: peers: found a table, expected a list"),
        ("peers = [1]", "1: peers: found a list, expected a list of tables"),
        ("[node]\nlisten = 4433", "2: node.listen: found 4433, expected a list"),
        ("[node]\nlisten = [1]", "2: node.listen: found a list, expected a list of strings"),
        (
            "[node]\nlisten = []",
            "2: node.listen: found an empty list, expected at least one address",
        ),
        ("[node]\nlisten = ['::']", ("2: node.listen[0]: address '::': write an IPv6 address in "
         "brackets, [::1]:443")),
        (
            "[node]\nlisten = ['[::]:1', 'example.org:1']",
            ("2: node.listen[1]: found 'example.org:1', expected an IP address and a port, "
            "such as '[::]:4433'"),
        ),
        (
            "[node]\nadvertise = ['0.0.0.0:1']",
            "2: node.advertise[0]: found '0.0.0.0:1', expected an address that others can dial",
        ),
        ("[node]\nadvertise = ['a:0']", ("2: node.advertise[0]: address 'a:0': port '0' is not a "
         "number from 1 to 65535")),
        (
            "[node]\ndefault_alpn = ''",
            "2: node.default_alpn: found '', expected 1 to 255 printable ASCII characters",
        ),
        ("[node]\ndefault_alpn = 1", "2: node.default_alpn: found 1, expected a string"),
        (
            "[log]\nlevel = 'loud'",
            '2: log.level: found "loud", expected one of "debug", "info", "warning", "error"',
        ),
        (
            "[limits]\n# a comment\nidle_timeout_s = 'x'",
            '3: limits.idle_timeout_s: found "x", expected a number',
        ),
        (
            "[limits]\nstreams_per_connection = 0",
            "2: limits.streams_per_connection: found 0, expected an integer >= 1",
        ),
        (
            "[limits]\ndial_timeout_s = -1.5",
            "2: limits.dial_timeout_s: found -1.5, expected a number > 0.0",
        ),
        ("[limits]\nframe_bytes = true", "2: limits.frame_bytes: found true, expected an integer"),
        (
            "limits.keep_alive_s = 40",
            ("1: limits.keep_alive_s: found keep_alive_s = 40 and idle_timeout_s = 30, expected "
            "keep_alive_s not to exceed idle_timeout_s"),
        ),
        (
            "[limits]\nidle_timeout_s = 5",
            ("2: limits.idle_timeout_s: found keep_alive_s = 10 and idle_timeout_s = 5, expected "
            "keep_alive_s not to exceed idle_timeout_s"),
        ),
        (
            "[limits]\nidle_timeout_s = 2026-01-01",
            "2: limits.idle_timeout_s: found a date, expected a number",
        ),
        (f"[[peers]]\nid = '{KEYS[0]}'", "1: peers[0]: the key 'name' is missing"),
        ("[[peers]]\nname = 'a'", ("1: peers[0]: a peer needs its key: write 'id' or "
         "'fingerprints'")),
        (f"[[peers]]\nname = 'owner'\nid = '{KEYS[0]}'", ("2: peers[0].name: peer name 'owner' is "
         "reserved")),
        (
            "[[peers]]\nname = 'a'\nid = 'zzz'",
            ("3: peers[0].id: 'zzz' is not a node id: 3 characters, expected 52 (z-base-32), 64 "
            "(hex) or 'ed25519:' and 64"),
        ),
        (
            f"[[peers]]\nname = 'a'\nid = '{KEYS[0]}'\nscopes = ['x', 'a*b']",
            ("4: peers[0].scopes[1]: scope 'a*b' must be letters, digits and any of '.', '_', "
            "':', '/', '-', with at most one '*', at its end"),
        ),
        (
            f"[[peers]]\nname = 'a'\nid = '{KEYS[0]}'\nresources = ['tty']",
            ("4: peers[0].resources[0]: grant 'tty' is not 'type:id' or 'type:id:action' (write "
            "':' inside an id as %3A)"),
        ),
        (
            f"[[peers]]\nname = 'a'\nid = '{KEYS[0]}'\naddresses = ['h']",
            "4: peers[0].addresses[0]: address 'h' has no port, expected 'host:port'",
        ),
        (
            f'[[peers]]\nname = "a"\nid = "{KEYS[0]}"\ndisplay_name = "\\u001b"',
            "4: peers[0].display_name: '\\x1b' is not at most 128 printable characters",
        ),
        (
            f"[[peers]]\nname='a'\nid='{KEYS[0]}'\n[[peers]]\nname='a'\nid='{KEYS[1]}'",
            "5: peers[1].name: the name 'a' is taken by line 2",
        ),
        (
            (f"[[peers]]\nname='a'\nid='{KEYS[0]}'\n[[peers]]\nname='b'\n"
            f"fingerprints=['{KEYS[0]}']"),
            f"6: peers[1].fingerprints: the key '{KEYS[0].fingerprint}' is taken by line 3",
        ),
        ("[[web_certificates]]\ncert_file = 1", None),
        ("[node]\nx =", "2: not valid TOML: invalid value"),
        ("[node]\n[node]", "2: not valid TOML: cannot declare ('node',) twice"),
        ("x = '''", "1: not valid TOML: expected \"'''\""),
    ],
)  # fmt: skip
def test_each_mistake_is_named(path: Path, text: str, expected: str | None) -> None:
    found = problems(path, text)
    if expected is None:
        assert len(found) == 3
        return
    assert found == [expected]
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}:{expected}"


def test_all_mistakes_are_reported_at_once_in_their_order(path: Path) -> None:
    found = problems(path, "[[peers]]\n\n[log]\nlevel = 1\ncolour = 2\n[limits]\nx = 3\n")
    assert [line.split(":")[0] for line in found] == ["1", "1", "4", "5", "7"]
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(caught.value.problems) == 5


def test_web_certificates_are_checked(path: Path) -> None:
    (path.parent / "k.pem").touch()
    rows = """
[[web_certificates]]
server_names = ["a.example", "a b", "127.0.0.1"]
cert_file = "gone.pem"
key_file = "k.pem"
[[web_certificates]]
server_names = []
cert_file = "k.pem"
key_file = "k.pem"
[[web_certificates]]
server_names = ["A.example"]
cert_file = "k.pem"
key_file = "k.pem"
"""
    assert problems(path, rows) == [
        (
            "3: web_certificates[0].server_names[1]: found 'a b', expected a DNS name, or '*.' "
            "and a DNS name"
        ),
        (
            "3: web_certificates[0].server_names[2]: found '127.0.0.1', expected a DNS name, or "
            "'*.' and a DNS name"
        ),
        f"4: web_certificates[0].cert_file: there is no file '{path.parent / 'gone.pem'}'",
        "7: web_certificates[1].server_names: found an empty list, expected a name",
        "11: web_certificates[2].server_names: the server name 'a.example' is taken by line 3",
    ]


def test_a_file_that_is_not_text_is_named(path: Path) -> None:
    path.write_bytes(b"[node]\n\xff = 1\n")
    assert [str(problem) for problem in check_config(path)] == [f"{path}:2: the file is not UTF-8"]


def test_a_file_that_cannot_be_read_is_an_error(path: Path) -> None:
    path.mkdir()
    with pytest.raises(LocalError, match="cannot read"):
        load_config(path)


def test_very_deep_toml_is_a_problem_not_a_crash(path: Path) -> None:
    assert len(problems(path, "x = " + "[" * 100_000)) == 1


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", "99999999999999999999999"])
def test_numbers_that_are_none_are_refused(path: Path, value: str) -> None:
    assert len(problems(path, f"[limits]\nidle_timeout_s = {value}")) == 1
    assert len(problems(path, f"[limits]\nstreams_per_connection = {value}")) == 1


def test_lines_are_found_whatever_stands_between(path: Path) -> None:
    text = '''\
# [not] = "a table"
top = """
[fake]
key = 1 \\""" "quoted"
"""
a.b.c = 1
[ t . "q.r" ]
list = [ # [
  "x = 1]",
  { k = 1 },
]
last = \'\'\'
[x]\'\'\'
[[arr]]
n = 1
[arr.sub]
m = 1
[[arr]]
n = 2
'''
    lines = key_lines(text)
    expected = {
        ("top",): 2,
        ("a", "b", "c"): 6,
        ("t", "q.r"): 7,
        ("t", "q.r", "list"): 8,
        ("t", "q.r", "last"): 12,
        ("arr", 0): 14,
        ("arr", 0, "n"): 15,
        ("arr", 0, "sub", "m"): 17,
        ("arr", 1): 18,
        ("arr", 1, "n"): 19,
    }
    assert {key: lines[key] for key in expected} == expected
    assert ("fake",) not in lines
    assert ("x",) not in lines
    assert line_of(lines, ("t", "q.r", "list", 1, "k")) == 8
    assert line_of(lines, ("nowhere", 3)) == 1


@given(st.text("[]{}\"'=#.\n ab\\1", max_size=60))
def test_the_search_for_lines_ends_on_any_text(text: str) -> None:
    assert all(1 <= line <= text.count(NL) + 1 for line in key_lines(text).values())


def test_what_needs_a_restart() -> None:
    old = NodeConfig()
    new = NodeConfig(
        listen=(Address("::", 1),),
        default_alpn="http/1.1",
        limits=Limits(idle_timeout_s=60),
        log=LogTable(level="debug", format="json"),
        peers=(Peer(name="a"),),
        web_certificates=(WebCertificateFiles(("a",), Path("c"), Path("k")),),
    )
    assert what_changed(old, new) == [
        "node.listen",
        "node.default_alpn",
        "limits.idle_timeout_s",
        "log.level",
        "log.format",
        "peers",
        "web_certificates",
    ]
    assert what_needs_restart(old, new) == ["node.listen", "log.format"]
    assert what_changed(new, new) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('node.store = "mysql://h/d"', "expected an address such as 'postgresql://"),
        ('node.store = "postgresql://u:hunter2@h/d"', "found a password"),
        ('node.store = "postgresql://u@h/d?password=hunter2"', "found a password"),
        ('node.store = "postgresql://[hunter2"', "expected an address such as"),
        ('node.store_file = "gone"', "there is no file"),
    ],
)
def test_a_store_s_address_is_checked_and_a_password_never_shown(
    path: Path, text: str, expected: str
) -> None:
    [problem] = problems(path, text)
    assert expected in problem
    assert "hunter2" not in problem


def test_a_store_s_address_or_its_file_is_taken_but_not_both(path: Path) -> None:
    path.with_name("store.url").write_text("postgresql://u:p@h/d")
    path.write_text('node.store = "postgresql://u@h/d"')
    assert load_config(path).store == "postgresql://u@h/d"
    path.write_text('node.store_file = "store.url"')
    assert load_config(path).store_file == path.with_name("store.url")
    both = 'node.store = "postgresql://u@h/d"\nnode.store_file = "store.url"'
    assert "expected one of the two" in problems(path, both)[0]
