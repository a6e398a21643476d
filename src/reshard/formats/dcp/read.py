"""Reads a distributed checkpoint: every chunk becomes a box of its tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from reshard.formats.dcp.collect import Collected, collect
from reshard.formats.dcp.folders import Folder, find_step
from reshard.formats.dcp.olmo_config import read_olmo_config
from reshard.formats.dcp.side_files import newer_files, read_side_files, stale_files
from reshard.formats.dcp.training import read_training, unlike_states
from reshard.formats.run_files import HF_CONFIG
from reshard.language import load_layout
from reshard.models.config_json import CONFIG, model_config_of
from reshard.plan.catalog import Catalog
from reshard.storage.dcp_chunks import ChunkReader

_CONSOLIDATED = "consolidated/config.json"
"""Where NeMo-Automodel has the configuration, next to the weights once more."""

LAYOUT = """\
# The checkpoint says itself which box of which tensor each chunk is: nothing is cut by rank.
layout dcp {
    "**" = [...] optional
}
"""


def read(
    path: Path,
    *,
    step: str | None = None,
    strict_layout: bool = True,
    read_weights: Callable[[Path], Catalog] | None = None,
) -> Catalog:
    """The catalog of a distributed checkpoint.

    Args:  path: the folder with `.metadata`; one with folders of its own for model and optimizer;
           or that of a run, with folders of several steps.
           step: which of these; the last whole one by default.
           read_weights: reads a folder of weights in Hugging Face's form.
    Raises: ReshardError[incomplete-dcp | unknown-step | several-models | bad-metadata |
            missing-chunk | missing-file | chunk-mismatch | unsupported-dcp |
            ambiguous-optimizer-ids | incomplete-megatron | source-unreadable | truncated].
    """
    folder = find_step(path, step)
    chunks = ChunkReader(folder.root)
    weights = _weights(folder, read_weights)
    beside = (model_config_of(folder.root / name) for name in (CONFIG, HF_CONFIG))
    config = weights.config if weights else next(filter(None, beside), None)
    files = read_side_files(folder)
    collected: Collected = collect(folder, chunks, config, weights, is_attribute=files.is_lightning)
    chunks.refuse_overlaps()
    training, steps = read_training(folder, collected, files)
    withheld = (replace(item, level="warning") for item in collected.withheld)
    stale = (*stale_files(folder, chunks), *newer_files(folder, chunks))
    oddities = (*folder.oddities, *(weights.oddities if weights else ()))
    return Catalog(
        format="dcp",
        version=collected.version,
        root=str(folder.root.resolve()),
        mesh={"copy": collected.copies} if collected.copies > 1 else {},
        tensors=collected.listed_tensors(),
        layout=load_layout(LAYOUT, "dcp layout"),
        training=training,
        config=weights.config if weights else read_olmo_config(folder.root),
        aliases=collected.aliases or None,
        buffers=collected.buffers,
        names_of=collected.names_of,
        frozen=collected.frozen,
        files=(*(weights.files if weights else ()), *chunks.files.values()),
        oddities=(*oddities, *stale, *steps, *unlike_states(collected), *withheld),
        left=(*(weights.left if weights else ()), *collected.left),
        withheld=collected.withheld,
    )


def _weights(folder: Folder, read_weights: Callable[[Path], Catalog] | None) -> Catalog | None:
    """The catalog of weights that lie beside the folder of the optimizer, as of the step."""
    if not folder.weights or read_weights is None:
        return None
    catalog, at = read_weights(folder.root / folder.weights), folder.weights
    config = catalog.config or model_config_of(folder.root / at / _CONSOLIDATED)
    return replace(
        catalog,
        config=config,
        tensors=tuple(
            replace(
                tensor,
                fragments=tuple(
                    replace(part, file=f"{at}/{part.file}") for part in tensor.fragments
                ),
            )
            for tensor in catalog.tensors
        ),
        files=tuple(replace(file, path=f"{at}/{file.path}") for file in catalog.files),
        left=tuple(replace(item, file=f"{at}/{item.file}") for item in catalog.left),
    )
