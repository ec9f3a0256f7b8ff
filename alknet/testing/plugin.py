"""The pytest plugin: fixtures with which users test their own operations and handlers."""
