"""What configurations call sizes and facts, as far as what ships tells."""

from __future__ import annotations

import re
from functools import cache

from reshard.formats.megatron.model_facts import argument_names
from reshard.formats.model_facts import config_keys
from reshard.language.library import shipped_texts

_WORD = re.compile(r"[A-Za-z_]\w*")
_NO_NAME = re.compile(r'"(?:\\.|[^"\\\n])*"|#[^\n]*')


@cache
def vocabulary() -> frozenset[str]:
    """Names that may stand in sizes, conditions, and `config` lines."""
    said = [_NO_NAME.sub(" ", text) for text in shipped_texts()]
    found = {word for text in said for word in _WORD.findall(text)}
    return frozenset((*found, *argument_names(), *config_keys()))
