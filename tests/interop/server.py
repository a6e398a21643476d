"""Runs scripts beside frameworks that are imported once.  Not a test itself.

    PYTHON tests/interop/server.py

Each line of standard input is a JSON list: the folder to work in, the file that takes what is
printed, folders whose packages come first, the script, and its arguments. It is answered with the
script's exit code, on a line. Importing the frameworks costs more than most of what the tests do
with them, so every script runs in a process that is forked from one that has them.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from importlib import import_module
from pathlib import Path

MAKE = Path(__file__).resolve().parents[2] / "fixtures" / "make"
# `ranks` first: it sets the environment that the frameworks read when they are imported.
# Classes that transformers imports where they are first asked for are imported by their modules.
IMPORTED = ("ranks", "torch", "deepspeed", "transformers.models.llama.modeling_llama")


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what the frameworks say while they are imported is no answer
    sys.path.insert(0, str(MAKE))
    for name in IMPORTED:
        import_module(name)
    for line in sys.stdin:
        folder, log, first, script, *arguments = json.loads(line)
        process = os.fork()
        if process == 0:
            sys.path[:1] = [str(Path(script).parent), *first]
            _run(folder, log, script, arguments)
        _, status = os.waitpid(process, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


def _run(folder: str, log: str, script: str, arguments: list[str]) -> None:
    """Run a script as its interpreter would, in this process, and end it."""
    code = 1
    try:
        os.chdir(folder)
        printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - printed, and the exit code says it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
