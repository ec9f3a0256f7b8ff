"""Between transports and handlers: admission, supervision, revocation, drain, control socket."""

from alknet.core.endpoint.control import CONTROL_ALPN, connect_control, serve_control
from alknet.core.endpoint.endpoint import AcceptTls, Endpoint
from alknet.core.endpoint.live import ConnectionStatus
from alknet.core.endpoint.tasks import TaskNode, render, task_tree

__all__ = [
    "CONTROL_ALPN",
    "AcceptTls",
    "ConnectionStatus",
    "Endpoint",
    "TaskNode",
    "connect_control",
    "render",
    "serve_control",
    "task_tree",
]
