"""aioquic's TLS state machine with other parts below it: key schedule and messages.

`SwiftContext` has the methods of aioquic's `tls.Context`, their very code; where one looks up a
function of its module that is replaced, it finds ours. So the order of messages, every check and
every alert remain aioquic's, and its own `Context` is left as it was. What is replaced, and
compared with the original in tests: `keys` and `messages`.

`alknet.core.quic.seams` fails the import when a method no longer uses what is replaced.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from types import CodeType, FunctionType

from aioquic import tls

from alknet.core.quic import keys, messages

__all__ = ["REPLACED", "SwiftContext", "unused"]

REPLACED: dict[str, Callable[..., object]] = {"KeySchedule": keys.KeySchedule, **messages.REPLACED}
"""By aioquic's name of it."""


class SwiftContext(tls.Context):
    """aioquic's TLS context on our key schedule and messages; only ever made by `adopt`."""


class _KeyScheduleProxy(tls.KeyScheduleProxy):
    """aioquic's own, of our key schedules."""


def unused(replaced: Mapping[str, Callable[..., object]] = REPLACED) -> list[str]:
    """Return what of *replaced* the installed aioquic does not use, or has with other arguments."""
    used = {name for kind in _ORIGINS for method in _methods(kind) for name in _looked_up(method)}
    return [
        f"tls.{name}"
        for name, ours in replaced.items()
        if name not in used or _parameters(ours) != _parameters(getattr(tls, name, None))
    ]


def _parameters(function: Callable[..., object] | None) -> int:
    return len(inspect.signature(function).parameters) if function is not None else -1


def _methods(kind: type) -> list[FunctionType]:
    return [method for method in vars(kind).values() if isinstance(method, FunctionType)]


def _looked_up(method: FunctionType) -> set[str]:
    """Return the names that a method uses, those of functions within it included."""
    inner = [code for code in method.__code__.co_consts if isinstance(code, CodeType)]
    return {name for code in (method.__code__, *inner) for name in code.co_names}


def _adopt(kind: type, origin: type, names: dict[str, object], replaced: Iterable[str]) -> None:
    """Give *kind* the methods of *origin* that use what is *replaced*; they find *names*."""
    for method in _methods(origin):
        if not _looked_up(method).isdisjoint(replaced):
            ours = FunctionType(
                method.__code__, names, method.__name__, method.__defaults__, method.__closure__
            )
            ours.__kwdefaults__, ours.__doc__ = method.__kwdefaults__, method.__doc__
            setattr(kind, method.__name__, ours)


_ORIGINS = (tls.Context, tls.KeyScheduleProxy)


_names: dict[str, object] = {**vars(tls), **REPLACED, "KeyScheduleProxy": _KeyScheduleProxy}
_adopt(_KeyScheduleProxy, tls.KeyScheduleProxy, _names, REPLACED)
_adopt(SwiftContext, tls.Context, _names, (*REPLACED, "KeyScheduleProxy"))
