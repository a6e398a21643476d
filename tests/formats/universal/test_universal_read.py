"""Folders that are no sound universal checkpoints are refused, with the reason."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from universal_source import arrange, convert, tp_catalog

from reshard.errors import Exit, ReshardError
from reshard.formats.universal.detect import detect
from reshard.formats.universal.manifest import own_digest, with_digest
from reshard.formats.universal.read import read
from reshard.formats.universal.read_manifest import is_inside
from reshard.store.digest import digest_bytes

ZEROS = "xxh3-128:" + "0" * 32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound checkpoint."""
    root = tmp_path_factory.mktemp("universal")
    convert(arrange(tp_catalog(root / "src")), root / "out")
    return root / "out"


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil, called `ckpt` from here."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "ckpt")
    return Path("ckpt")


def write_manifest(folder: Path, text: str) -> None:
    """A manifest with the right digest of itself."""
    data = text.encode("ascii")
    (folder / "manifest.json").write_bytes(with_digest(data, own_digest(data)))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as a program would that knows the format."""
    value = json.loads((folder / "manifest.json").read_bytes())
    change(value)
    write_manifest(folder, json.dumps(value))


def refused(folder: Path, **settings: Any) -> str:
    """The message with which a folder is refused."""
    with pytest.raises(ReshardError) as caught:
        read(folder, **settings)
    assert caught.value.exit_code == Exit.SOURCE
    return str(caught.value)


def bad(headline: str) -> str:
    """The whole message of a fault in the manifest."""
    return f"error[bad-manifest]: {headline}\n  = note: read from ckpt/manifest.json"


AGAIN = "  = help: copy the checkpoint again, or convert its source again"


def test_it_is_recognized(folder: Path, tmp_path: Path) -> None:
    assert detect(folder)
    assert not detect(tmp_path)
    assert not detect(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text('{"format": "another"}')
    assert not detect(tmp_path)


def test_an_edited_manifest_that_is_sound_is_read(folder: Path) -> None:
    edit(folder, lambda m: m["training"].update(iteration=8))
    assert read(folder).training.iteration == 8


def test_a_folder_without_its_manifest_is_incomplete(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    assert detect(folder)
    assert refused(folder) == (
        "error[incomplete-universal]: ckpt has no `manifest.json`, "
        "so it is not a complete universal checkpoint\n"
        "  = note: the manifest is written last, when everything else is there\n"
        "  = help: copy the folder again, or convert its source again"
    )


def test_a_newer_version_is_not_guessed_at(folder: Path) -> None:
    edit(folder, lambda m: m.update(version=2, written_by="reshard 3.0", new_key=1))
    assert refused(folder) == (
        "error[newer-universal]: ckpt has format version 2, and versions up to 1 are known\n"
        "  = note: written by reshard 3.0\n"
        "  = help: read it with a newer reshard"
    )


def test_a_manifest_that_does_not_agree_with_its_digest_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    data = path.read_bytes()
    stated = json.loads(data)["digest"]
    changed = data.replace(b'"iteration": 7', b'"iteration": 8')
    path.write_bytes(changed)
    assert refused(folder) == (
        "error[changed-file]: `manifest.json` is not as it was written\n"
        f"  = note: it states {stated} of itself, its bytes have {own_digest(changed)}\n" + AGAIN
    )


def test_a_file_that_is_missing_is_named(folder: Path) -> None:
    (folder / "exp_avg-00001-of-00001.safetensors").unlink()
    assert refused(folder) == (
        "error[missing-file]: 1 of 14 files that the manifest lists are not there\n"
        "  = note: in ckpt: `exp_avg-00001-of-00001.safetensors`\n" + AGAIN
    )


def test_many_missing_files_are_counted(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    shutil.rmtree(folder / "extra")
    assert refused(folder) == (
        "error[missing-file]: 8 of 14 files that the manifest lists are not there\n"
        "  = note: in ckpt: `exp_avg-00001-of-00001.safetensors`, "
        "`exp_avg_sq-00001-of-00001.safetensors`, `extra/framework.json`, "
        "`extra/tensors-00001-of-00001.safetensors`, `extra/tensors.safetensors.index.json`, "
        "and 3 more\n" + AGAIN
    )


def test_a_file_that_was_cut_short_is_named(folder: Path) -> None:
    path = folder / "master-00001-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert refused(folder) == (
        "error[changed-file]: `master-00001-of-00001.safetensors` has 703 bytes, "
        "the manifest says 704\n  = note: in ckpt\n" + AGAIN
    )


def test_a_changed_layout_is_refused(folder: Path) -> None:
    path = folder / "layout.ucl"
    before = path.read_bytes()
    after = before.replace(b"gpt", b"GPT")
    path.write_bytes(after)
    assert refused(folder) == (
        "error[changed-file]: `layout.ucl` is not as it was written\n"
        "  = note: in ckpt\n"
        f"  = note: its digest is {digest_bytes(after)}, "
        f"the manifest says {digest_bytes(before)}\n"
        "  = help: to read through a layout of your own, keep this file and use `--layout`\n"
        + AGAIN
    )


def test_a_header_that_says_otherwise_is_refused(folder: Path) -> None:
    path = folder / "model-00001-of-00001.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"shape":[12,4]', b'"shape":[4,12]'))
    assert refused(folder) == (
        "error[changed-file]: `model-00001-of-00001.safetensors` does not hold what the manifest "
        "says\n"
        "  = note: in ckpt\n"
        "  = note: `a.weight` is BF16 [4, 12] at byte 384 in the file, "
        "BF16 [12, 4] at byte 384 in the manifest\n" + AGAIN
    )


def test_tensors_that_only_one_of_header_and_manifest_lists_are_named(folder: Path) -> None:
    edit(folder, lambda m: m["tensors"].update(other=m["tensors"].pop("norm.mask")))
    assert refused(folder) == (
        "error[changed-file]: `model-00001-of-00001.safetensors` does not hold what the manifest "
        "says\n"
        "  = note: in ckpt\n"
        "  = note: `norm.mask` is U8 [3] at byte 576 in the file, not listed in the manifest\n"
        "  = note: `other` is not listed in the file, U8 [3] at byte 576 in the manifest\n" + AGAIN
    )


def test_a_broken_safetensors_file_is_refused(folder: Path) -> None:
    path = folder / "step-00001-of-00001.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert refused(folder).startswith("error[bad-safetensors]: ckpt/step-00001-of-00001")


def test_another_step_than_its_own_is_refused(folder: Path) -> None:
    assert read(folder, step="7").training.iteration == 7
    assert refused(folder, step="9") == (
        "error[unknown-step]: ckpt has no step `9`\n"
        "  = note: a universal checkpoint holds one step; this one is 7\n"
        "  = help: leave `--step` out"
    )


def first(manifest: dict[str, Any]) -> Any:
    """The entry of one tensor."""
    return manifest["tensors"]["a.weight"]["param"]


FAULTS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (
        lambda m: m.pop("frozen"),
        "`frozen` is missing in `manifest.json`",
    ),
    (
        lambda m: m.update(comment="hello"),
        "`comment` in `manifest.json` is no key of format version 1",
    ),
    (
        lambda m: m.update(version="1"),
        "`version` in `manifest.json` is not a format version",
    ),
    (
        lambda m: m.update(format="other"),
        "`manifest.json` is not the manifest of a universal checkpoint",
    ),
    (
        lambda m: m.update(digest="md5:00"),
        '`digest` in `manifest.json` is "md5:00", not `xxh3-128:` and 32 hex digits',
    ),
    (
        lambda m: m.update(layout=7),
        "`layout` in `manifest.json` is 7, not a string",
    ),
    (
        lambda m: m.update(aliases=["a"]),
        '`aliases` in `manifest.json` is ["a"], not an object',
    ),
    (
        lambda m: m.update(buffers=["a", None]),
        "`buffers[1]` in `manifest.json` is null, not a string",
    ),
    (
        lambda m: m.update(config="x" * 90),
        '`config` in `manifest.json` is "' + "x" * 56 + "..., not an object or null",
    ),
    (
        lambda m: m.update(sizes={"h": True}),
        "`sizes.h` in `manifest.json` is true, not a whole number",
    ),
    (
        lambda m: m["training"].update(iteration=-1),
        "`training.iteration` in `manifest.json` is -1, not a whole number",
    ),
    (
        lambda m: m["training"].update(param_groups=[3]),
        "`training.param_groups[0]` in `manifest.json` is 3, not an object",
    ),
    (
        lambda m: first(m).update(dtype="F33"),
        '`tensors.a.weight.param.dtype` in `manifest.json` is "F33", not an element type',
    ),
    (
        lambda m: first(m).update(shape=[12, -4]),
        "`tensors.a.weight.param.shape[1]` in `manifest.json` is -4, not a whole number",
    ),
    (
        lambda m: first(m).update(shape=[12, 5]),
        "`tensors.a.weight.param.byte_range` in `manifest.json` is [384, 480], "
        "not a range of the 120 bytes of BF16 [12, 5]",
    ),
    (
        lambda m: first(m).update(axes=["rows"]),
        '`tensors.a.weight.param.axes` in `manifest.json` is ["rows"], '
        "not one string for each of 2 dimensions",
    ),
    (
        lambda m: first(m).update(byte_range=[483, 579]),
        None,
    ),
    (
        lambda m: first(m).update(byte_range=[484, 580]),
        "`tensors.a.weight.param.byte_range` in `manifest.json` is [484, 580], not inside of "
        "model-00001-of-00001.safetensors, whose tensors are bytes 384 to 579",
    ),
    (
        lambda m: first(m).update(byte_range=[0, 96]),
        "`tensors.a.weight.param.byte_range` in `manifest.json` is [0, 96], not inside of "
        "model-00001-of-00001.safetensors, whose tensors are bytes 384 to 579",
    ),
    (
        lambda m: first(m).update(file="../secret"),
        '`tensors.a.weight.param.file` in `manifest.json` is "../secret", '
        "not a tensor file that `files` lists",
    ),
    (
        lambda m: first(m).update(file="layout.ucl"),
        '`tensors.a.weight.param.file` in `manifest.json` is "layout.ucl", '
        "not a tensor file that `files` lists",
    ),
    (
        lambda m: m["files"].update({"../../etc/passwd": {"nbytes": 1, "digest": ZEROS}}),
        "`files` in `manifest.json` has the path '../../etc/passwd', which it may not",
    ),
    (
        lambda m: m["files"].pop("layout.ucl"),
        "`files` in `manifest.json` does not list `layout.ucl`",
    ),
    (
        lambda m: m["files"]["layout.ucl"].update(nbytes=2**40),
        "`files.layout.ucl` in `manifest.json` is no small file of text",
    ),
    (
        lambda m: m["files"]["layout.ucl"].update(nbytes=207.0),
        "`files.layout.ucl.nbytes` in `manifest.json` is 207.0, not a whole number",
    ),
    (
        lambda m: m.update(provenance={}),
        "`provenance` in `manifest.json` is {}, not a list",
    ),
]


@pytest.mark.parametrize(("change", "headline"), FAULTS)
def test_a_manifest_that_says_what_it_may_not_is_refused(
    change: Callable[[dict[str, Any]], object], headline: str | None, folder: Path
) -> None:
    edit(folder, change)
    if headline is None:  # sound by itself, but the file says otherwise
        assert refused(folder).startswith("error[changed-file]: `model-00001-of-00001.safetensors`")
    else:
        assert refused(folder) == bad(headline)


def test_a_file_of_two_states_is_refused(folder: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["tensors"]["norm.mask"]["buffer"] = manifest["tensors"]["norm.mask"]["param"]

    edit(folder, change)
    assert "in a file of its own: model-00001-of-00001.safetensors has `param`" in refused(folder)


def test_all_faults_are_told_at_once(folder: Path) -> None:
    edit(folder, lambda m: m.update(layout=7, frozen=[8]))
    assert refused(folder) == (
        bad("`layout` in `manifest.json` is 7, not a string")
        + "\n\n"
        + bad("`frozen[0]` in `manifest.json` is 8, not a string")
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ('{"a": 1, "a": 2}', "the key 'a' appears twice in one object"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": 1e999}', "1e999 is too large a number"),
        ("[" * 100_000, "too many levels"),
    ],
)
def test_what_is_no_json_is_refused(text: str, why: str, folder: Path) -> None:
    (folder / "manifest.json").write_text(text)
    assert refused(folder) == f"error[bad-manifest]: `manifest.json` is not JSON: {why}"


def test_json_beside_the_manifest_is_held_to_the_same(folder: Path) -> None:
    def replace(data: bytes) -> None:
        (folder / "extra" / "framework.json").write_bytes(data)
        entry = {"nbytes": len(data), "digest": digest_bytes(data)}
        edit(folder, lambda m: m["files"].update({"extra/framework.json": entry}))

    replace(b"[1]")
    assert refused(folder) == (
        "error[bad-manifest]: `extra/framework.json` is not an object\n  = note: in ckpt"
    )
    replace(b"{,}")
    assert refused(folder).startswith("error[bad-manifest]: `extra/framework.json` is not JSON: ")


def test_a_layout_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "layout.ucl").write_bytes(b"\xff")
    entry = {"nbytes": 1, "digest": digest_bytes(b"\xff")}
    edit(folder, lambda m: m["files"].update({"layout.ucl": entry}))
    assert refused(folder) == (
        "error[bad-manifest]: `layout.ucl` is not UTF-8 text: invalid start byte\n  = note: in ckpt"
    )


OUTSIDE = ("", "/a", "a//b", "./a", "a/..", "../a", "a/", "a\\b", "a\nb", "a\0b", "x" * 251)


@pytest.mark.parametrize("path", [*OUTSIDE, "manifest.json"])
def test_paths_that_may_leave_the_folder_are_refused(path: str) -> None:
    assert not is_inside(path)


@given(st.text(max_size=40))
def test_a_path_inside_stays_inside(path: str) -> None:
    if is_inside(path):
        assert (Path("/x") / path).resolve().is_relative_to("/x")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.data())
def test_no_value_anywhere_makes_it_fail_in_another_way(made: Path, data: st.DataObject) -> None:
    value = json.loads((made / "manifest.json").read_bytes())
    node: Any = value
    while True:
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = data.draw(JSON)
    folder = made.parent / "spoiled"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made, folder)
    write_manifest(folder, json.dumps(value))
    with contextlib.suppress(ReshardError):
        read(folder)
