"""Keys at rest: 24 words, the keys derived from them, and the file that holds the node's key."""
