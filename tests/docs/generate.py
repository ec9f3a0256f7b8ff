"""The pages of docs/reference that are made from the code: ``python -m tests.docs.generate``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from tests.docs.blocks import ROOT
from tests.docs.pages import (
    access,
    api,
    cli,
    composition,
    config,
    errors,
    federation,
    keys,
    ownership,
    peers,
    visibility,
)

__all__ = ["PAGES", "main"]

PAGES: Mapping[str, Callable[[], str]] = {
    "access.md": access.page,
    "api.md": api.page,
    "cli.md": cli.page,
    "composition.md": composition.page,
    "config.md": config.page,
    "errors.md": errors.page,
    "federation.md": federation.page,
    "keys.md": keys.page,
    "ownership.md": ownership.page,
    "peers.md": peers.page,
    "visibility.md": visibility.page,
}
"""What makes each page of docs/reference."""


def main() -> int:
    """Write the pages that are not what they should be, and name them."""
    directory = ROOT / "docs" / "reference"
    for name, make in PAGES.items():
        path = directory / name
        text = make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"{path.relative_to(ROOT)} written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
