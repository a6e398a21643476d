"""Adapters of PEFT: small weights beside a base model, which is not in their folder.

Source: peft/utils/constants.py, peft/peft_model.py `save_pretrained`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reshard.plan.catalog import Catalog

SAFETENSORS = "adapter_model.safetensors"
TORCH = "adapter_model.bin"
CONFIG = "adapter_config.json"
_KEY = "adapter_config"
"""Of a source's configuration, under which that of its adapter is."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter says of itself.

    Args:  kind: e.g. `LORA`; "" if it does not say.  base_model: likewise.
    """

    kind: str
    base_model: str


def of_adapter(config: Mapping[str, object] | None) -> Mapping[str, object]:
    """The configuration of a source that is an adapter.

    Args:  config: its `adapter_config.json`; None if there is none.
    """
    return {_KEY: dict(config or {})}


def adapter_of(catalog: Catalog) -> Adapter | None:
    """What adapter a source is; None for one that is none."""
    config = (catalog.config or {}).get(_KEY)
    if not isinstance(config, Mapping):
        return None
    kind, base = config.get("peft_type"), config.get("base_model_name_or_path")
    return Adapter(kind if isinstance(kind, str) else "", base if isinstance(base, str) else "")


def is_complete_adapter(catalog: Catalog) -> bool | None:
    """Whether an adapter has its configuration beside it; None for what is none."""
    return None if adapter_of(catalog) is None else CONFIG in catalog.side_files
