"""SSH: the agent that signs with the vault's user keys."""
