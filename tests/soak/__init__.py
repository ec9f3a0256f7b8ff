"""A node under everything at once, for long: ``python -m tests.soak`` (`make soak`)."""
