"""From an arrangement to what a target wants, with the side files that go along to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from reshard.formats.registry import TARGETS, module_of
from reshard.formats.run_files import is_of_training
from reshard.plan.arrangement import Arrangement
from reshard.plan.catalog import Catalog, Left
from reshard.plan.kept_keys import kept_keys
from reshard.plan.output import FileBytes, Output
from reshard.plan.target import Target
from reshard.store.regular_file import as_source_error
from reshard.store.side_files import read_side_files

_OF_TRAINING = "it belongs to the training run, and a model folder holds none"


def prepare(arrangement: Arrangement, target: Target, settings: Mapping[str, object]) -> Output:
    """What a target wants of an arrangement.

    Args:  settings: keyword arguments of the target's own (`max_file_nbytes` of universal).
    Raises: everything that makes the target impossible.
    """
    catalog = arrangement.catalog
    names = side_files_for(target.format, catalog)
    arrangement = replace(
        arrangement,
        catalog=replace(catalog, side_files={name: catalog.side_files[name] for name in names}),
    )
    module = module_of(TARGETS[target.format].module)
    with as_source_error(Path(catalog.root)):
        output = module.prepare(arrangement, target, **settings)
        assert isinstance(output, Output)
        return _with_side_files(output, arrangement.catalog)


def side_files_for(target: str, catalog: Catalog) -> tuple[str, ...]:
    """Names of the side files that go along to a target.

    Args:  target: name of a format.
    """
    return tuple(name for name in catalog.side_files if not _why_not(target, name))


def left_by(target: str, catalog: Catalog) -> tuple[Left, ...]:
    """What of a source does not reach a target, tensors aside."""
    files = ((path, _why_not(target, name)) for name, path in catalog.side_files.items())
    return (
        *catalog.left,
        *(Left(path, "", why) for path, why in files if why),
        *_keys_left(target, catalog),
    )


def _keys_left(target: str, catalog: Catalog) -> tuple[Left, ...]:
    """Keys that only the program that wrote the source reads, where the target is of another.

    A distributed checkpoint's own warning says the rest.
    """
    if TARGETS[target].weights_only:
        return tuple(replace(item, why=_OF_TRAINING) for item in kept_keys(catalog.training))
    run_of = TARGETS[target].run_of
    return kept_keys(catalog.training) if run_of not in ("", catalog.training.writer) else ()


def _with_side_files(output: Output, catalog: Catalog) -> Output:
    """Write side files as they are, where the target has no files of these names."""
    if output.beside is None:
        return output
    names = {*output.files, *(item.file for item in output.head), *output.made_last}
    paths = {
        name: f"{output.beside}{output.elsewhere.get(name, name)}" for name in catalog.side_files
    }
    data = read_side_files(catalog, (name for name, path in paths.items() if path not in names))
    extra = (FileBytes(paths[name], 0, content) for name, content in data.items())
    return replace(output, head=(*output.head, *extra))


def _why_not(target: str, name: str) -> str:
    """Why a side file does not go along; empty if it does."""
    if not TARGETS[target].carries_files:
        return f"a {TARGETS[target].title} has no place for it"
    if TARGETS[target].weights_only and is_of_training(name):
        return _OF_TRAINING
    return ""
