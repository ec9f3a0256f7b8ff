"""Programs as operations: ``[[command]]`` in ``node.toml``.

A program runs for one call, in a sandbox and under limits; it reads the input as JSON and writes
the output as JSON. `alknet.commands.launch` is a program of its own, which starts it, confines it
and ends it with all that it started.
"""
