"""The commands and their order. What a command needs is imported when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from reshard.cli.convert import convert
from reshard.cli.diff import diff
from reshard.cli.explain import explain
from reshard.cli.inspect import inspect
from reshard.cli.layout import layout
from reshard.cli.layouts import layouts
from reshard.cli.plan import plan
from reshard.cli.roundtrip import roundtrip
from reshard.cli.verify import verify

EPILOG = "Exit codes, JSON documents, and every flag: docs/cli.md"


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"reshard {version('reshard')}")
        except PackageNotFoundError:
            typer.echo("reshard, run from a checkout that is not installed")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Convert training checkpoints between frameworks and parallel layouts, bit for bit."""


app = typer.Typer(
    name="reshard",
    epilog=EPILOG,
    callback=_root,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
app.command(short_help="Describe a checkpoint.")(inspect)
app.command(short_help="Convert a checkpoint to another format or parallel layout.")(convert)
app.command(short_help="Show what a conversion would do.")(plan)
app.command(short_help="Check a checkpoint, or compare two bit for bit.")(verify)
app.command(short_help="Show how two checkpoints differ, or the copies within one.")(diff)
app.command(short_help="Prove that converting there and back loses nothing.")(roundtrip)
app.add_typer(layout, short_help="Show, check, or format layouts.")
app.command(short_help="List the built-in models and their layouts.")(layouts)
app.command(short_help="Explain an error code.")(explain)
