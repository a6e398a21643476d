"""No byte of a universal checkpoint changes unnoticed."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from universal_source import arrange, convert, tp_catalog, tree

from reshard.errors import ReshardError
from reshard.formats.universal.manifest import FileEntry
from reshard.formats.universal.read import read
from reshard.formats.universal.read_manifest import read_manifest
from reshard.formats.universal.verify import check_bytes, digests, verify_files
from reshard.store.digest import digest_bytes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound checkpoint."""
    root = tmp_path_factory.mktemp("universal")
    convert(arrange(tp_catalog(root / "src")), root / "out")
    return root / "out"


def test_a_sound_checkpoint_verifies(made: Path) -> None:
    seen: list[int] = []
    assert check_bytes(read(made), seen.append).faults == ()
    total = sum(len(data) for name, data in tree(made).items() if name != "manifest.json")
    assert sum(seen) == total


def test_the_digests_cover_every_byte(made: Path) -> None:
    manifest = read_manifest(made)
    ranges: dict[str, list[tuple[int, int]]] = {}
    for item in digests(manifest):
        ranges.setdefault(item.file, []).append((item.byte_offset, item.byte_offset + item.nbytes))
    assert ranges.keys() | {"manifest.json"} == tree(made).keys()
    sizes = {item.path: item.nbytes for item in manifest.files}
    for path, found in ranges.items():
        assert found[0][0] == 0
        assert found[-1][1] == sizes[path]
        assert all(stop == start for (_, stop), (start, _) in pairwise(found))


def test_any_flipped_byte_is_found(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ckpt"
    shutil.copytree(made, folder)
    for name, data in tree(folder).items():
        path = folder / name
        for at in range(0, len(data), max(1, len(data) // 12)):
            flipped = bytearray(data)
            flipped[at] ^= 1
            path.write_bytes(flipped)
            try:
                assert verify_files(folder) != (), f"byte {at} of {name}"
            except ReshardError:
                assert name == "manifest.json"
        path.write_bytes(data)
    assert verify_files(folder) == ()


def test_what_differs_is_named(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("ckpt")
    shutil.copytree(made, folder)
    path = folder / "exp_avg-00001-of-00001.safetensors"
    data = bytearray(path.read_bytes())
    before = bytes(data[320:512])
    data[400] ^= 1
    path.write_bytes(data)
    (folder / "step.safetensors.index.json").unlink()
    problems = verify_files(folder)
    assert [item.render() for item in problems] == [
        "error[missing-file]: 1 of 14 files that the manifest lists are not there\n"
        "  = note: in ckpt: `step.safetensors.index.json`\n"
        "  = help: copy the checkpoint again, or convert its source again",
        "error[digest-mismatch]: `a.weight` (exp_avg) is not what was written\n"
        "  = note: bytes 320 to 512 of ckpt/exp_avg-00001-of-00001.safetensors\n"
        f"  = note: their digest is {digest_bytes(bytes(data[320:512]))}, "
        f"the manifest says {digest_bytes(before)}\n"
        "  = help: copy the checkpoint again, or convert its source again",
    ]


def test_a_header_has_a_digest_of_its_own(made: Path) -> None:
    entries = {item.path: item for item in read_manifest(made).files}
    data = (made / "model-00001-of-00001.safetensors").read_bytes()
    assert entries["model-00001-of-00001.safetensors"] == FileEntry(
        "model-00001-of-00001.safetensors", len(data), digest_bytes(data[:384]), 384
    )
