"""Lengths of time and numbers of bytes, as people like to read them."""

from __future__ import annotations

__all__ = ["amount", "duration", "milliseconds"]


def duration(seconds: float) -> str:
    """Say a length of time in its two largest units."""
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{whole}s"
    if whole < 3_600:
        return f"{whole // 60}m {whole % 60}s"
    if whole < 86_400:
        return f"{whole // 3_600}h {whole % 3_600 // 60}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3_600}h"


def milliseconds(seconds: float) -> str:
    """Say a short time in milliseconds, with as many digits as mean something."""
    value = seconds * 1000
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def amount(count: int) -> str:
    """Say a number of bytes with a binary prefix."""
    value = float(count)
    for prefix in ("", "Ki", "Mi", "Gi"):
        if value < 1024:
            return f"{value:.0f}{prefix}" if not prefix or value >= 10 else f"{value:.1f}{prefix}"
        value /= 1024
    return f"{value:.1f}Ti"
