"""An honest client's calls while others attack the node.

The attacker shares the honest client's core, for the server has one to itself: the same packets
sent to a socket that nobody reads are therefore a case too, and what an attack does to the *node*
is the ratio to that case.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from alknet.core.ticket import Ticket
from benchmarks.attacks import ATTACKS
from benchmarks.bench_call import OURS
from benchmarks.table import Aim, Row, Table, row_of
from benchmarks.workers import ROOT, Bench, running

IDLE = "idle"
DEAF = "noise to a deaf socket"
RATES = (5_000, 20_000)
NOTES = [
    "One call in flight, over QUIC, from a peer that the node knows. Attackers are strangers.",
    (
        "An attack runs at a fixed rate, on the honest client's core, but only while the client "
        "waits (`SCHED_IDLE`); `packets/s` is what it managed. "
        f"«{DEAF}» is what sharing the core does to the honest client by itself."
    ),
    "Limits are the defaults, but for connections: 10,000 per address and identity.",
    "Server CPU per packet is what the node spends beside the calls, which cost it as when idle.",
    "TLS byte by byte: 200 connections; a packet is a byte on one of them.",
]


def run(is_quick: bool) -> Table:
    seconds, rounds, rates = (0.3, 1, RATES[:1]) if is_quick else (2.0, 3, RATES)
    rows = measure(list(ATTACKS), rates, seconds=seconds, rounds=rounds)
    aims = [
        Aim(f"{case_name(name, rate)} / {IDLE}, {OURS[0].name}, p99 us", 2, is_at_least=False)
        for name in (DEAF, *ATTACKS)
        for rate in rates
    ]
    return Table("hostile", "Calls under attack", IDLE, rows, NOTES, aims, is_by_case=True)


def case_name(attack: str, rate: int) -> str:
    return f"{attack}, {rate:,}/s"


def measure(
    attacks: Sequence[str], rates: Sequence[int], *, seconds: float, rounds: int
) -> list[Row]:
    """Alternate rounds of all attacks with idle ones, and with attacks on nobody."""
    found: dict[str, list[dict[str, float]]] = {}
    with running(OURS[:1]) as (bench,), deaf_socket() as deaf:
        (address,) = (a for a in Ticket.parse(bench.address["ticket"]).addresses)
        target = (address.host, address.port)
        bench.open(1)
        for _ in range(rounds):
            idle = _Load(bench, seconds)
            found.setdefault(IDLE, []).append(idle.figures)
            for rate in rates:
                with attacking("noise", deaf, rate):
                    figures = _Load(bench, seconds).figures
                found.setdefault(case_name(DEAF, rate), []).append(figures)
                for name in attacks:
                    with attacking(name, target, rate) as sent:
                        load = _Load(bench, seconds)
                    figures = load.figures | load.beside(sent, idle)
                    found.setdefault(case_name(name, rate), []).append(figures)
        bench.close()
    return [row_of(OURS[0].name, case, figures) for case, figures in found.items()]


class _Load:
    """Calls for so many seconds, and what they and all beside them cost the server."""

    def __init__(self, bench: Bench, seconds: float) -> None:
        before = bench.server.cpu_s()
        self._found = bench.client.ask("calls", seconds=seconds, in_flight=1)
        self._cpu_s = bench.server.cpu_s() - before
        self.figures = {"p99 us": self._found["p99"] * 1e6, "p50 us": self._found["p50"] * 1e6}

    def beside(self, sent: dict[str, float], idle: _Load) -> dict[str, float]:
        """Return the attack's rate, and what the server spent on a packet of it beside the calls.

        Unlike the times of calls this says the same on a machine that has other work.
        """
        rate = sent["packets"] / sent["seconds"]
        of_calls = idle._cpu_s / idle._found["calls"] * self._found["calls"]
        cost = (self._cpu_s - of_calls) / (rate * self._found["seconds"])
        return {"packets/s": rate, "server CPU us/packet": max(0.0, cost) * 1e6}


@contextmanager
def attacking(name: str, target: tuple[str, int], rate: float) -> Iterator[dict[str, float]]:
    """Attack *target* during the block; what was sent is known after it."""
    host, port = target
    sent: dict[str, float] = {}
    core = max(os.sched_getaffinity(0))  # the clients'
    command = [sys.executable, "-m", "benchmarks.attacks", str(core), name]
    process = subprocess.Popen(
        [*command, host, str(port), str(rate)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        _answer(process, name)
        # What is measured is how long the *node* lets the honest client wait, not its core.
        os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
        yield sent
        assert process.stdin is not None
        process.stdin.close()
        sent.update(_answer(process, name))
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _answer(process: subprocess.Popen[bytes], name: str) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the attack «{name}» has ended; its standard error says why")
    answer: dict[str, Any] = msgspec.json.decode(line)
    return answer


@contextmanager
def deaf_socket() -> Iterator[tuple[str, int]]:
    """Yield the address of a socket that nobody reads."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()
