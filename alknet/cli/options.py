"""What all commands share: ``--home``, ``--json``, examples in the help, and types of arguments."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    _FloatType = click.ParamType[float]
else:
    _FloatType = click.ParamType  # generic at run time only since click 8.4

__all__ = [
    "Command",
    "Duration",
    "Group",
    "home_given",
    "is_json",
    "the_home",
    "usage_errors",
]

_HOME = "alknet.home"
_JSON = "alknet.json"
# Longer than the first sentence of any help.
SENTENCE = 200


class Command(click.Command):
    """A command with the common options, before or after its own.

    Args:
        examples: Lines for the help, shown as they are.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        kwargs["params"] = [*(kwargs.get("params") or ()), *_common_options()]
        kwargs.setdefault("context_settings", {"help_option_names": ["-h", "--help"]})
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples below the options."""
        _write_examples(self.examples, formatter)


class Group(click.Group):
    """A group of commands with the common options, which its commands have too."""

    command_class: type[click.Command] | None = Command

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        kwargs["params"] = [*(kwargs.get("params") or ()), *_common_options()]
        kwargs.setdefault("context_settings", {"help_option_names": ["-h", "--help"]})
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the first sentence of each command in whole; click cuts it at the line's end."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, one.get_short_help_str(SENTENCE)) for name, one in found if one is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples below the commands."""
        _write_examples(self.examples, formatter)


class Duration(_FloatType):
    """A length of time: ``90``, ``90s``, ``15m``, ``12h``, ``30d`` or ``2w``, as seconds."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read *value*; a plain number counts seconds."""
        if isinstance(value, int | float):
            return float(value)
        match = _DURATION.fullmatch(str(value))
        if match is None or float(match[1]) <= 0:
            self.fail(f"{value!r} is not a duration such as 90s, 15m, 12h or 30d", param, ctx)
        seconds = float(match[1]) * _UNITS[match[2] or "s"]
        if seconds > MAX_DURATION_S:
            self.fail(f"{value!r} is longer than 100 years", param, ctx)
        return seconds


# What comes later than this, nobody meant.
MAX_DURATION_S = 100 * 365.25 * 86_400


def is_json() -> bool:
    """Whether the user asked for JSON."""
    return bool(click.get_current_context().meta.get(_JSON))


def home_given() -> Path | None:
    """Return the home that ``--home`` or ALKNET_HOME names, if either does."""
    given = click.get_current_context().meta.get(_HOME) or os.environ.get("ALKNET_HOME")
    return Path(given).expanduser().absolute() if given else None


def the_home() -> Path:
    """Return the node's home: as given, else the platform's place for a user's data."""
    given = home_given()
    if given is not None:
        return given
    import platformdirs

    return Path(platformdirs.user_data_dir("alknet", appauthor=False))


class usage_errors:  # noqa: N801  used like a function
    """Turn LocalError, which says that an argument makes no sense, into a usage error."""

    def __init__(self, param_hint: str) -> None:
        self._hint = param_hint

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        from alknet.errors import LocalError

        if isinstance(exc, LocalError):
            raise click.BadParameter(str(exc), param_hint=self._hint) from exc


def _common_options() -> list[click.Option]:
    return [
        click.Option(
            ["--home"],
            metavar="DIR",
            type=click.Path(file_okay=False),
            help="The node's directory; ALKNET_HOME, or a place in your data directory.",
            expose_value=False,
            callback=_remember_home,
        ),
        click.Option(
            ["--json"],
            is_flag=True,
            help="Print JSON, for programs; errors too, on standard error.",
            expose_value=False,
            callback=_remember_json,
        ),
    ]


def _remember_home(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value == "":  # as of an unset variable in a script: the usual home is not meant
        raise click.BadParameter("the path is empty", ctx, _param)
    if value is not None:
        ctx.meta[_HOME] = value


def _remember_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_JSON] = True


def _write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    if not examples:
        return
    with formatter.section("Examples"):
        for line in examples:
            formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhdw]?)")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
