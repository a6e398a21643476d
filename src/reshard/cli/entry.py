"""The entry point: runs a command and turns whatever happens into text and an exit code."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

import typer

from reshard.cli.console import error_document, print_error, print_json, print_message
from reshard.cli.streams import flush, open_missing
from reshard.errors import Diagnostic, Exit, ReshardError, as_bug

# The base of every complaint about the command line; typer does not export it by name.
_UsageFault: type[Exception] = next(
    item
    for item in typer.BadParameter.__mro__
    if issubclass(item, Exception) and item.__name__ == "ClickException"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:  arguments: those of the process if None.
    Returns: the exit code (docs/cli.md).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    before = words[: words.index("--")] if "--" in words else words
    as_json, color = "--json" in before, "--no-color" not in before
    open_missing()
    try:
        code = _run(words, before)
        flush(sys.stdout)
        return code
    except ReshardError as error:
        _report(error, as_json, color)
        return int(error.exit_code)
    except KeyboardInterrupt as error:
        _report_interrupt(str(error) or "interrupted; nothing was left behind", as_json)
        return int(Exit.INTERRUPTED)
    except Exception as error:
        if os.environ.get("RESHARD_DEBUG"):
            raise
        _report_bug(error, as_json)
        return int(Exit.BUG)


def _run(words: list[str], before: list[str]) -> int:
    from typer.main import get_command

    from reshard.cli.app import app

    # Not through the command's own main(): that turns interrupts and broken pipes into codes.
    command = get_command(app)
    try:
        with command.make_context("reshard", list(words) or ["--help"]) as context:
            code = command.invoke(context)
    except BrokenPipeError:  # of a help text, which is not printed by us
        return int(Exit.OK)
    except typer.Exit as end:
        return int(Exit.USAGE) if not words else end.exit_code
    except _UsageFault as fault:
        wrong = _usage_error(fault)
        report = _value_of("--junit", before)
        if report is not None:
            from reshard.cli.checks import write_failure

            write_failure(" ".join(["reshard", *words[:1]]), report, [], wrong)
        raise wrong from None
    return code if isinstance(code, int) else int(Exit.OK)


def _value_of(option: str, words: Sequence[str]) -> str | None:
    """What an option says in a command line that is wrong elsewhere."""
    for number, word in enumerate(words):
        if word == option and number + 1 < len(words):
            return words[number + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def _usage_error(fault: Exception) -> ReshardError:
    """A complaint about the command line in the form of all our messages."""
    context = getattr(fault, "ctx", None)
    path = context.command_path if context is not None else "reshard"
    message = fault.format_message() if hasattr(fault, "format_message") else str(fault)
    message = re.sub(r"'([^']*)'", r"`\1`", " ".join(message.split())).replace("Value error, ", "")
    fact, *advice = re.split(r" \((?=Possible|Did)|\. (?=Did)", message)
    helps = [_lowered(text.removesuffix(")")) for text in advice]
    return ReshardError(
        Diagnostic("usage", _lowered(fact), helps=(*helps, f"see `{path} --help`")), Exit.USAGE
    )


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def _report(error: ReshardError, as_json: bool, color: bool) -> None:
    if as_json:
        print_json(error_document(error), ok=False)
        flush(sys.stdout)
    else:
        print_error(error, color=color)


def _report_interrupt(text: str, as_json: bool) -> None:
    print_message(text)
    if as_json:
        lines = text.removeprefix("interrupted; ").split("\n")
        item = Diagnostic("interrupted", "interrupted", notes=(lines[0],), helps=tuple(lines[1:]))
        print_json(error_document(ReshardError(item, Exit.INTERRUPTED)), ok=False)
        flush(sys.stdout)


def _report_bug(error: Exception, as_json: bool) -> None:
    _report(as_bug(error), as_json, True)
