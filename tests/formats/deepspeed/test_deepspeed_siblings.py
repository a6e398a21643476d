"""Files with one pickle and other numbers: each is read from its own bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from deepspeed_forge import Run, floats, save
from deepspeed_oracle import arrange, wholes

from reshard.errors import ReshardError
from reshard.formats.deepspeed.read import read
from reshard.storage.sibling_files import Siblings
from reshard.storage.torch_file import open_torch_file, read_small, walk


def tree(base: int) -> dict[str, object]:
    """Many small tensors, so that the pickle is long."""
    return {f"layer.{index}.weight": floats([base + index, 0.5]) for index in range(300)}


def values(root: object) -> dict[tuple[object, ...], bytes]:
    found: dict[tuple[object, ...], bytes] = {}
    walk(root, lambda path, ref: found.update({path: read_small(ref)}))
    return found


def test_the_second_file_is_read_from_its_own_bytes(tmp_path: Path) -> None:
    siblings = Siblings()
    for index, name in enumerate(["a.pt", "a_much_longer_name_of_a_file.pt", "b.pt"]):
        save(tmp_path / name, tree(1000 * index))
        found = siblings.root_of(tmp_path / name)
        assert found == open_torch_file(tmp_path / name).root
        assert len(values(found)) == 300


def test_every_rank_has_its_own_pieces(tmp_path: Path) -> None:
    shapes = {f"layer.{index}.weight": (7,) for index in range(300)}
    run = Run(tmp_path, [shapes], dp=3, stage=3)
    for rank, root in enumerate(run.models.values()):
        root["frozen_param_shapes"] = {"f": (5,)}
        root["frozen_param_fragments"] = {"f": floats([10.0 * rank, 10.0 * rank + 1])}
    found = wholes(arrange(read(run.write())))
    assert found["layer.4.weight", "master"].tolist() == [5000.0 + i for i in range(7)]
    assert found["f", "param"].tolist() == [0.0, 1.0, 10.0, 11.0, 20.0]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ReshardError) as caught:
        Siblings().root_of(tmp_path / "none.pt")
    assert str(caught.value).replace(str(tmp_path), "CKPT") == (
        "error[source-unreadable]: `CKPT/none.pt` cannot be read: no such file or directory\n"
        "  = help: check that the file exists, that you may read it, and that its disk has no "
        "errors"
    )
