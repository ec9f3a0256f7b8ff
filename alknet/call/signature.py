"""Read what an operation's function takes and gives from its annotations."""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from types import FrameType
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from alknet.call.context import Context
from alknet.errors import LocalError

__all__ = ["Signature", "caller_names", "read_signature"]


class Signature(msgspec.Struct, frozen=True):
    """What a function takes and gives.

    Attributes:
        context_name: The parameter that gets the `Context`, if any.
        input_name: The parameter that gets the input, if any.
        input_type: Its annotation.
        items_name: The parameter that gets the input items of an upload, if any.
        item_type: What each of them is.
        output_type: What is returned, or of each item that is yielded.
        is_generator: It is an async generator function.
        unbound: It is a method, seen in its class: it has no instance yet.
    """

    context_name: str | None
    input_name: str | None
    input_type: Any
    items_name: str | None
    item_type: Any
    output_type: Any
    is_generator: bool
    unbound: bool


def caller_names(depth: int) -> Mapping[str, object]:
    """Return the local names *depth* calls up, so that local types can be named in annotations.

    With ``from __future__ import annotations`` those are text, and a type that was made inside a
    function is in no module.
    """
    frames: list[FrameType] = []
    frame: FrameType | None = sys._getframe(depth)  # noqa: SLF001  as dataclasses and enum do
    while frame is not None and frame.f_locals is not frame.f_globals:
        frames.append(frame)
        if "__qualname__" not in frame.f_locals:  # a class body sees the function around it
            break
        frame = frame.f_back
    names: dict[str, object] = {}
    for outer in reversed(frames):
        names.update(outer.f_locals)
    return names


def read_signature(function: Callable[..., object], names: Mapping[str, object]) -> Signature:
    """Read *function*'s annotations; *names* are seen beside those of its module.

    Raises:
        LocalError: It is not async, an annotation is missing, is unknown or makes no sense.
    """
    is_generator = inspect.isasyncgenfunction(function)
    if not is_generator and not inspect.iscoroutinefunction(function):
        raise LocalError("it is not an async function")
    parameters = list(inspect.signature(function).parameters.values())
    unbound = _is_method(function, parameters)
    if unbound:
        parameters = parameters[1:]
    hints = _hints(function, names)
    context_name, input_name, items_name = _parameters(parameters, hints)
    return Signature(
        context_name=context_name,
        input_name=input_name,
        input_type=None if input_name is None else hints[input_name],
        items_name=items_name,
        item_type=None if items_name is None else get_args(hints[items_name])[0],
        output_type=_output(hints, is_generator=is_generator),
        is_generator=is_generator,
        unbound=unbound,
    )


def _is_method(function: Callable[..., object], parameters: list[inspect.Parameter]) -> bool:
    """Whether *function* stands in a class body and waits for its instance."""
    if inspect.ismethod(function) or not parameters:
        return False
    _, _, place = function.__qualname__.rpartition("<locals>.")
    return "." in place and parameters[0].annotation is inspect.Parameter.empty


def _hints(function: Callable[..., object], names: Mapping[str, object]) -> dict[str, Any]:
    try:
        return get_type_hints(function, localns=dict(names), include_extras=True)
    except NameError as exc:
        raise LocalError(
            f"an annotation names {exc.name!r}, which is not known when the operation is made "
            "(a type imported under TYPE_CHECKING?)"
        ) from exc
    except (TypeError, SyntaxError, AttributeError) as exc:
        raise LocalError(f"an annotation is not valid: {exc}") from exc


def _parameters(
    parameters: list[inspect.Parameter], hints: Mapping[str, Any]
) -> tuple[str | None, str | None, str | None]:
    """Return the names of those for the context, the input and its items."""
    found: dict[str, str] = {}
    for parameter in parameters:
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            raise LocalError(f"parameter {parameter.name!r} cannot be given by its name")
        if parameter.name not in hints:
            raise LocalError(f"parameter {parameter.name!r} has no annotation")
        role = _role(hints[parameter.name])
        if role in found:
            raise LocalError(
                f"parameter {parameter.name!r} is too many: there is one Context, one input "
                "(put more values into a msgspec.Struct) and one AsyncIterator"
            )
        found[role] = parameter.name
    return found.get("context"), found.get("input"), found.get("items")


def _role(hint: object) -> str:
    if hint is Context:
        return "context"
    return "items" if get_origin(hint) in {AsyncIterator, AsyncIterable} else "input"


def _output(hints: Mapping[str, Any], *, is_generator: bool) -> Any:
    if "return" not in hints:
        raise LocalError("the return annotation is missing")
    output = hints["return"]
    if not is_generator:
        return output
    if get_origin(output) not in {AsyncIterator, AsyncGenerator, AsyncIterable}:
        raise LocalError("an async generator is annotated AsyncIterator[T] or AsyncGenerator[T]")
    return get_args(output)[0]
