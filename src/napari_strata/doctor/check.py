"""Results of checks, as text for people and as lines of JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Check:
    """Result of one check; `cure` is the advice for a problem."""

    name: str
    status: Status
    text: str
    cure: str = ""


def as_text(checks: Iterable[Check]) -> str:
    """Format checks for a bug report: a line each, and the cure below it."""
    lines = []
    for check in checks:
        lines.append(f"{check.status:8}{check.name}: {check.text}")
        if check.cure:
            lines.append(f"{'':8}  what to do: {check.cure}")
    return "\n".join(lines)


def as_json(check: Check) -> str:
    """Format a check as one line of JSON."""
    return json.dumps(asdict(check))


def from_json(line: str) -> Check:
    """Parse a line of `as_json`. Raises ValueError for any other line."""
    try:
        return Check(**json.loads(line))
    except TypeError:
        raise ValueError(f"not a check: {line[:80]}") from None


def find_version(name: str) -> str:
    """Return the version of an installed distribution; empty when it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def format_versions(versions: Mapping[str, str]) -> str:
    """Format versions: ``torch 2.15.0, timm missing``."""
    return ", ".join(
        f"{name} {number or 'missing'}" for name, number in versions.items()
    )


def last_line(text: str) -> str:
    """Return the last line of a program's output, which describes its error."""
    return (text.strip().splitlines() or [""])[-1].strip()[:300]
