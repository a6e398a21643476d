"""Whole tensors of a catalog, through its own layout and the engine."""

from __future__ import annotations

import numpy as np

from reshard.engine.compare import read_array
from reshard.language import load_layout
from reshard.plan.arrangement import Arrangement
from reshard.plan.bind import bind
from reshard.plan.build import build_array
from reshard.plan.catalog import Catalog
from reshard.plan.plan import ArraySpec
from reshard.plan.prove import prove_sources
from reshard.store.source_files import SourceFiles


def arrange(catalog: Catalog, layout: str | None = None) -> Arrangement:
    """The catalog through its layout, proved."""
    arrangement = bind(load_layout(layout) if layout else catalog.layout, catalog)
    prove_sources(arrangement)
    return arrangement


def wholes(arrangement: Arrangement) -> dict[tuple[str, str], np.ndarray]:
    """Every whole tensor by name and state."""
    out = {}
    with SourceFiles(arrangement.catalog.root, arrangement.catalog.files) as files:
        for whole in arrangement.wholes:
            numel = int(np.prod(whole.shape))
            spec = ArraySpec(
                whole.name, whole.state, whole.dtype, numel, whole.segments, whole.shape
            )
            out[whole.name, whole.state] = np.asarray(
                read_array(build_array(arrangement, spec), files)
            ).reshape(whole.shape)
    return out
