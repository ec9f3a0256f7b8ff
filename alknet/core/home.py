"""The names of a home's files, for all who open them. Imports nothing, so commands start fast."""

from __future__ import annotations

__all__ = ["CONFIG_FILE", "NODE_FILES", "STATE_FILE"]

CONFIG_FILE = "node.toml"
"""The configuration; written by people, read by the node."""

NODE_FILES = ("vault.alk", "vault.alk.prev", "node.key")
"""A home with one of them has a node; the last is from before there were vaults, and with the
second alone the vault itself was lost."""

STATE_FILE = "state.json"
"""Peers and tokens of homes from before there were stores; see `alknet.stores.legacy`."""
