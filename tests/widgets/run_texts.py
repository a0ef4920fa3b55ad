"""Run copied commands and scripts in one process, and compute what they should give.

Usage: ``python run_texts.py``, with a JSON object per line on the standard input; each is
answered by a line with its result. One process, because torch takes seconds to import.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
import traceback
from typing import Any

import numpy as np

import napari_strata as ns
from napari_strata.cli import commands


def run_command(text: str) -> dict[str, Any]:
    """Run a command as a shell would; return its status and messages."""
    program, *words = shlex.split(text)
    assert program == "napari-strata"
    printed = io.StringIO()
    arguments, sys.argv = sys.argv, [program, *words]
    status: Any = 0
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            commands.main()
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.argv = arguments
    return {"status": status, "printed": printed.getvalue()}


def run_python(text: str) -> dict[str, Any]:
    """Run a script; return its status, and the scores that it computed."""
    printed = io.StringIO()
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(text, "<copied text>", "exec"), names)
    except BaseException:
        return {"status": 1, "printed": traceback.format_exc()}
    confusion = names.get("confusion")
    scores = None if confusion is None else confusion.as_dict()
    return {"status": 0, "printed": printed.getvalue(), "scores": scores}


def open_image(file: str) -> Any:
    """Open the image of a layer, as `save_image` in the test stored it."""
    stored = np.load(file)
    names = tuple(map(str, stored["channel_names"]))
    return ns.Image(
        stored["data"],
        str(stored["axes"]),
        scale=tuple(stored["scale"]),
        units=tuple(map(str, stored["units"])),
        channel_names=names,
    )


def train(
    image: str, labels: str, classes: Any, overrides: Any, out: str
) -> dict[str, Any]:
    """Train on what the layers show."""
    whole = open_image(image)
    annotated = whole.labels_like(np.load(labels), classes=ns.ClassMap(**classes))
    pair = ns.AnnotatedImage(whole, annotated)
    ns.train("default", [pair], out=out, overrides=overrides, device="cpu")
    return {"status": 0}


def predict(image: str, model: str, out: str) -> dict[str, Any]:
    """Predict what the layer shows."""
    np.save(out, ns.predict(model, open_image(image), device="cpu").data)
    return {"status": 0}


def main() -> None:
    """Answer requests until the input ends."""
    works = {
        "command": run_command,
        "python": run_python,
        "train": train,
        "predict": predict,
    }
    for line in sys.stdin:
        request = json.loads(line)
        result = works[request.pop("work")](**request)
        print(json.dumps({"answer": result}), flush=True)


if __name__ == "__main__":
    main()
