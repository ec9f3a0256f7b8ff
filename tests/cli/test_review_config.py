"""``config check`` finds what would keep `up` from starting, beyond what the file alone tells."""

from __future__ import annotations

import pytest

from tests.cli.kit import Cli

CERTIFICATE = '[[web_certificates]]\nserver_names = ["x.test"]\n{}\n'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[node]\ndefault_alpn = "nosuch"\n', "'nosuch' is served by no handler"),
        (
            CERTIFICATE.format('cert_file = "node.toml"\nkey_file = "node.toml"'),
            "holds no PEM certificate",
        ),
    ],
)
def test_what_only_a_start_would_find_is_found(made: Cli, text: str, found: str) -> None:
    (made.home / "node.toml").write_text(text)
    result = made.fails(1, "config", "check", "--json")
    assert result.error["code"] == "CONFIG"
    assert found in result.error["message"]
    assert found in made.fails(1, "config", "check").err
