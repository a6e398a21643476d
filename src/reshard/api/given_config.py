"""A `config.json` that the user gives, for a source that has none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from reshard.formats.run_files import is_of_model
from reshard.models.config_json import CONFIG, bad_config, load_config
from reshard.plan.catalog import Catalog, SourceFile
from reshard.store.source import LocalSource

_HELP = "give the `config.json` that transformers wrote for the model"


def with_given_config(catalog: Catalog, path: Path) -> Catalog:
    """The catalog with a configuration, which takes the place of the source's own `config.json`; of
    what else the source states of its model, that goes before.

    Args:  path: of a `config.json`; or of a folder that holds it, of which the files go along that
           belong to a model too: its tokenizer, and what it generates with.
    Raises: ReshardError[bad-config | missing-file].
    """
    config = read_config(path)
    paths = {CONFIG: _file_of(path)}
    if path.is_dir():
        names = (name for name in LocalSource(path).files() if is_of_model(name))
        paths |= {name: path / name for name in names if name != CONFIG}
    recorded = catalog.config or {}
    files = {name: _file(item, Path(catalog.root)) for name, item in paths.items()}
    return replace(
        catalog,
        config={**recorded, **config} if CONFIG in catalog.side_files else {**config, **recorded},
        files=(*catalog.files, *files.values()),
        side_files={**catalog.side_files, **{name: item.path for name, item in files.items()}},
    )


def _file(path: Path, root: Path) -> SourceFile:
    """A file as it is now, by its path from the root of the source."""
    status = path.stat()
    relative = Path(os.path.relpath(path.absolute(), root)).as_posix()
    return SourceFile(relative, status.st_size, status.st_mtime_ns)


def read_config(path: Path, option: str = "--config") -> Mapping[str, object]:
    """A configuration with a `model_type`, as tagged JSON.

    Args:  path: of a `config.json`, or of a folder that holds it.  option: that gives it.
    Raises: ReshardError[bad-config | missing-file].
    """
    file = _file_of(path)
    source = LocalSource(file.parent)
    source.need(file.name, f"`{option}`", "give a `config.json`, or the folder that contains it")
    config = load_config(source, file.name, _HELP)
    if not isinstance(config.get("model_type"), str):
        raise bad_config(file, "it states no `model_type`", _HELP)
    return config


def _file_of(path: Path) -> Path:
    return path / CONFIG if path.is_dir() else path
