"""The tasks that run now, as the tree of nurseries that holds them."""

from __future__ import annotations

import msgspec
import trio

__all__ = ["MAX_TASKS", "TaskNode", "render", "task_tree"]

# Bounds the answer of `node/tasks`: about 1 MiB of JSON.
MAX_TASKS = 10_000
# Deeper nesting is cut: the answer is decoded by recursion.
MAX_DEPTH = 48


class TaskNode(msgspec.Struct, frozen=True):
    """A task and the tasks in its nurseries.

    Attributes:
        name: Full name of the function that the task runs, or what it was named.
        waits_in: The innermost function that it waits in, if that can be told.
        nurseries: One tuple of children for each nursery that it has open, the outermost first.
        cut: Tasks below it that are left out, for the tree is too large or too deep.
    """

    name: str
    waits_in: str | None = None
    nurseries: tuple[tuple[TaskNode, ...], ...] = ()
    cut: int = 0


def task_tree(root: trio.lowlevel.Task | None = None, *, max_tasks: int = MAX_TASKS) -> TaskNode:
    """Take a picture of the tasks below *root*, by default of all that this run has.

    Args:
        root: Where to begin; None for the main task of `trio.run` and what is below it.
        max_tasks: The most tasks in the picture.
    """
    task = root or _main_task()
    return _node(task, _Budget(max_tasks - 1), depth=1)


def render(tree: TaskNode) -> str:
    """Draw *tree* for people, a line per task; a second nursery of a task is set off by ``~``."""
    return "\n".join(_lines(tree))


class _Budget:
    def __init__(self, tasks: int) -> None:
        self.tasks = tasks

    def take(self, wanted: int) -> int:
        granted = max(0, min(wanted, self.tasks))
        self.tasks -= granted
        return granted


def _node(task: trio.lowlevel.Task, budget: _Budget, depth: int) -> TaskNode:
    nurseries: list[tuple[TaskNode, ...]] = []
    cut = 0
    for nursery in task.child_nurseries:
        children = sorted(nursery.child_tasks, key=lambda child: child.name)
        granted = budget.take(len(children)) if depth < MAX_DEPTH else 0
        cut += len(children) - granted
        nurseries.append(tuple(_node(child, budget, depth + 1) for child in children[:granted]))
    return TaskNode(task.name, _waits_in(task), tuple(nurseries), cut)


def _main_task() -> trio.lowlevel.Task:
    """Go up from here to the task below Trio's root, which holds Trio's own tasks beside it."""
    task = trio.lowlevel.current_task()
    while (nursery := task.parent_nursery) is not None:
        if nursery.parent_task.parent_nursery is None:
            break
        task = nursery.parent_task
    return task


def _waits_in(task: trio.lowlevel.Task) -> str | None:
    """Name the last frame that is not Trio's own."""
    name = None
    for frame, _ in task.iter_await_frames():
        module = frame.f_globals.get("__name__", "")
        if not module.startswith("trio."):
            name = f"{module}.{frame.f_code.co_qualname}"
    return name


def _lines(node: TaskNode) -> list[str]:
    where = f"  ({node.waits_in})" if node.waits_in and node.waits_in != node.name else ""
    lines = [f"{node.name}{where}"]
    children = [(child, number) for number, nest in enumerate(node.nurseries) for child in nest]
    for i, (child, number) in enumerate(children):
        is_last = i == len(children) - 1 and not node.cut
        branch = ("└" if is_last else "├") + ("─ " if number == 0 else "~ ")
        below = _lines(child)
        lines.append(f"{branch}{below[0]}")
        lines.extend(("   " if is_last else "│  ") + line for line in below[1:])
    if node.cut:
        lines.append(f"└─ … {node.cut} more")
    return lines
