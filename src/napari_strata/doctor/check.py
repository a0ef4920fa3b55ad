"""A check and how it is told: as text for people, as a line of JSON for a program."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Check:
    """One thing looked at: what was found, and for a problem what to do."""

    name: str
    status: Status
    text: str
    cure: str = ""


def as_text(checks: Iterable[Check]) -> str:
    """The checks for a bug report: a line each, and the cure below it where there is one."""
    lines = []
    for check in checks:
        lines.append(f"{check.status:8}{check.name}: {check.text}")
        if check.cure:
            lines.append(f"{'':8}  what to do: {check.cure}")
    return "\n".join(lines)


def as_json(check: Check) -> str:
    """A check as one line; `from_json` takes it back."""
    return json.dumps(asdict(check))


def from_json(line: str) -> Check:
    """The check in a line. Raises ValueError when it is anything else."""
    try:
        return Check(**json.loads(line))
    except TypeError:
        raise ValueError(f"not a check: {line[:80]}") from None


def find_version(name: str) -> str:
    """The version of an installed distribution, or an empty text."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def listed(versions: Mapping[str, str]) -> str:
    """``torch 2.15.0, timm missing``."""
    return ", ".join(
        f"{name} {number or 'missing'}" for name, number in versions.items()
    )


def last_line(text: str) -> str:
    """What a program said last, where errors say what they are; at most 300 characters."""
    return (text.strip().splitlines() or [""])[-1].strip()[:300]
