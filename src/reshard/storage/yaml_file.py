"""YAML as data: nothing that it names is made, and an unknown tag is the plain value under it."""

from __future__ import annotations

from typing import Any


def load_yaml(data: bytes) -> object:
    """The value of a document.

    Raises: ValueError, also for what is nested too deep.
    """
    import yaml  # a run's own settings are the only files in it

    class Loader(yaml.SafeLoader):  # type: ignore[misc, unused-ignore]
        """Takes a tag of Python for the value that it stands before."""

    def plain(loader: Any, suffix: str, node: Any) -> object:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node)
        return loader.construct_scalar(node)

    Loader.add_multi_constructor("", plain)
    try:
        return yaml.load(data, Loader)
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(str(error).split("\n")[0]) from None
