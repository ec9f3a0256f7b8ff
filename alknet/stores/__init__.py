"""Where peers, API keys and ownership are kept: in memory, or in one file of the node's home."""
