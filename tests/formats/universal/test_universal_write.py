"""What is written as a universal checkpoint."""

from __future__ import annotations

from pathlib import Path

from universal_source import TRAINING, arrange, convert, read_whole, tp_catalog, wholes

from reshard.formats.universal.read import read


def test_every_tensor_comes_out_whole(tmp_path: Path) -> None:
    convert(arrange(tp_catalog(tmp_path / "src")), tmp_path / "out")
    catalog = read(tmp_path / "out")
    expected = {key: data.tobytes() for key, data in wholes().items()}
    expected["rng", "extra"] = bytes(range(40, 48))
    assert read_whole(catalog) == expected
    assert catalog.training == TRAINING
