"""Every code block of README and docs does what it says; the rules are in `tests.docs.blocks`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from alknet.core.config import check_config
from alknet.core.tls.x509 import self_signed_web_certificate
from tests.docs.blocks import LANGUAGES, ROOT, Block, Command, blocks, commands, documents
from tests.docs.shell import Shell, environment, matches, open_shell, with_free_ports

# For a loaded machine.
PYTHON_TIMEOUT_S = 120.0
# Pages whose commands are other people's programs: tests/install-foreign installs them.
FOREIGN = {"back-up-and-restore.md", "connect-with-other-tools.md", "ssh-agent.md"}
PAGES = [
    pytest.param(
        path,
        id=str(path.relative_to(ROOT)),
        marks=[pytest.mark.interop] if path.name in FOREIGN else [],
    )
    for path in documents()
]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", PAGES)
def test_blocks_of_a_page_run_as_written(path: Path, tmp_path: Path) -> None:
    # Short, for the path of a control socket must fit into 107 bytes.
    home = tmp_path / "h"
    home.mkdir(mode=0o700)
    found = [_with_ports(block, ports) for ports in [_ports()] for block in blocks(path)]
    programs = [block for block in found if _is_program(block)]
    with open_shell(home) as shell:
        for block in found:
            _check(block, shell, home)
        if programs:
            _run_python(programs, home)


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        page = (path.parent / name).resolve() if name else path
        assert page.exists(), f"{path.relative_to(ROOT)} links to {target}"
        if anchor:
            assert anchor in _anchors(page), f"{path.relative_to(ROOT)} links to {target}"


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"\]\(([^)]+)\)", index)
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").glob("*/*.md")]
    assert sorted(named) == sorted(pages)


def test_wildcards_stand_for_anything_and_all_else_for_itself() -> None:
    assert matches("id  abc\nhome  /x/y\n", "id  ...\nhome  /x/y")
    assert matches("a\nb\nc\n", "a\n...\nc")
    assert not matches("id  abc\nmore\n", "id  abc")
    assert not matches("a.c", "a+c")


def test_a_command_that_fails_or_prints_something_else_is_noticed(tmp_path: Path) -> None:
    with open_shell(tmp_path) as shell:
        assert shell.run(Command(1, "x=3; echo $x", "3")) == "3\n"
        assert shell.run(Command(2, "echo $x", "3")) == "3\n"
        with pytest.raises(AssertionError, match="exited with 3"):
            shell.run(Command(3, "(exit $x)"))
        with pytest.raises(AssertionError, match="and not"):
            shell.run(Command(4, "echo 4", "5"))
        shell.run(Command(5, "(echo up; sleep 600) &", "up"))


def test_a_program_that_fails_is_noticed_with_its_line(tmp_path: Path) -> None:
    good = Block(ROOT / "README.md", 1, "python", {}, "x = 1\n")
    bad = Block(ROOT / "README.md", 41, "python", {}, "assert x == 1\nassert x == 2\n")
    with pytest.raises(AssertionError, match=r'README\.md", line 42'):
        _run_python([good, bad], tmp_path)


def _check(block: Block, shell: Shell, home: Path) -> None:
    assert block.language in LANGUAGES, f"{block}: unknown language {block.language!r}"
    if block.language in {"console", "sh"}:
        for command in commands(block):
            try:
                shell.run(command)
            except AssertionError as exc:
                raise AssertionError(
                    f"{block.path.relative_to(ROOT)}:{command.line}: {exc}"
                ) from None
    elif block.language == "json":
        json.loads(block.code)
    elif block.language == "toml":
        _check_toml(block, home)
    elif "file" in block.options:
        (home / block.options["file"]).write_text(block.code, encoding="utf-8")


def _check_toml(block: Block, home: Path) -> None:
    certificate, key = self_signed_web_certificate()
    (home / "fullchain.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (home / "privkey.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    path = home / block.options.get("file", "checked.toml")
    path.write_text(block.code, encoding="utf-8")
    assert check_config(path) == [], str(block)


def _run_python(programs: list[Block], home: Path) -> None:
    """Run *programs* in one module; tracebacks name the page and its lines."""
    sources = [(str(block.path), "\n" * (block.line - 1) + block.code) for block in programs]
    (home / ".programs.json").write_text(json.dumps(sources), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _RUN],
        cwd=home,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PYTHON_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def _is_program(block: Block) -> bool:
    return block.language == "python" and "file" not in block.options


def _ports() -> dict[str, str]:
    return dict(with_free_ports())


def _with_ports(block: Block, ports: dict[str, str]) -> Block:
    code = re.sub(r"\b443[0-9]\b", lambda match: ports.get(match[0], match[0]), block.code)
    return Block(block.path, block.line, block.language, block.options, code)


def _anchors(page: Path) -> set[str]:
    """Name the headings as GitHub does."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


_RUN = """
import json, pathlib
for name, source in json.loads(pathlib.Path(".programs.json").read_text()):
    exec(compile(source, name, "exec"), globals())
"""
