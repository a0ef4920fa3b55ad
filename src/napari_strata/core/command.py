"""Commands as a user types them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence


def split_command(command: str) -> list[str]:
    r"""Split a command into words, as a shell does.

    On Windows a backslash separates folders (``C:\Python\python.exe``) and quotes
    nothing.

    Raises
    ------
    ValueError
        if a quotation mark has no end.
    """
    lexer = shlex.shlex(command, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    if sys.platform == "win32":
        lexer.escape = ""
    return list(lexer)


def join_command(words: Sequence[str]) -> str:
    """Join words to a command that can be pasted into this system's shell."""
    if sys.platform == "win32":
        return subprocess.list2cmdline(words)
    return shlex.join(words)
