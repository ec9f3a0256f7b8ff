"""Between transports and handlers: admission, supervision, revocation, drain, control socket."""

from alknet.core.endpoint.endpoint import AcceptTls, Endpoint
from alknet.core.endpoint.live import ConnectionStatus
from alknet.core.endpoint.tasks import TaskNode, render, task_tree

__all__ = [
    "AcceptTls",
    "ConnectionStatus",
    "Endpoint",
    "TaskNode",
    "render",
    "task_tree",
]
