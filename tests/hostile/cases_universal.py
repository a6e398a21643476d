"""Universal checkpoints whose manifests, layouts, and files lie."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cases_pickle import model, write
from corpus import Corpus

from reshard import convert
from reshard.formats.universal.manifest import own_digest

CORPUS = Corpus("universal")
Change = Callable[[dict[str, Any]], None]


def sound(folder: Path) -> Path:
    """A universal checkpoint of one tensor."""
    made = folder / "made"
    write(made, model())
    convert(made / "src", folder / "src", "universal")
    for path in sorted(made.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    made.rmdir()
    return folder / "src"


def put(root: Path, manifest: object) -> None:
    """Write a manifest that states its own digest."""
    raw = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    if isinstance(manifest, dict) and isinstance(manifest.get("digest"), str):
        raw = raw.replace(manifest["digest"].encode(), own_digest(raw).encode())
    (root / "manifest.json").write_bytes(raw)


def changed(case: str, change: Change, *words: str) -> None:
    """One case: a manifest that is changed, and signed again."""

    def build(folder: Path) -> None:
        root = sound(folder)
        manifest = json.loads((root / "manifest.json").read_bytes())
        change(manifest)
        put(root, manifest)

    CORPUS.add(case, build, *words)


def raw(case: str, data: bytes) -> None:
    """One case: a manifest of these bytes."""
    CORPUS.add(case, lambda folder: put(sound(folder), data))


def tensor(**lies: object) -> Change:
    """Other facts of the one tensor."""
    return lambda manifest: manifest["tensors"]["w"]["param"].update(lies)


def top(**lies: object) -> Change:
    """Other values at the top."""
    return lambda manifest: manifest.update(lies)


def layout_file(**lies: object) -> Change:
    """Other facts of `layout.ucl`."""
    return lambda manifest: manifest["files"]["layout.ucl"].update(lies)


def file_named(name: str) -> Change:
    """The tensor file is called otherwise."""

    def change(manifest: dict[str, Any]) -> None:
        known = manifest["tensors"]["w"]["param"]["file"]
        manifest["files"][name] = manifest["files"].pop(known)
        manifest["tensors"]["w"]["param"]["file"] = name

    return change


changed("sound", lambda manifest: None)

# ---- JSON ----------------------------------------------------------------------------------------

raw("empty", b"")
raw("not_a_number", b'{"format": "reshard universal checkpoint", "version": NaN}')
raw("key_twice", b'{"version": 1, "version": 2}')
raw("nested_too_deep", b'{"a":' * 100_000)
raw("brackets", b"[" + b"[]," * 5_000_000 + b"[]]")
raw("number_of_many_digits", b'{"version": ' + b"9" * 100_000 + b"}")
raw("no_text", b"\xff\xfe\x00")
raw("a_list", b"[]")
changed("newer", top(version=2))
changed("newer_by_far", top(version=10**30))
changed("version_of_truth", top(version=True))
changed("version_zero", top(version=0))
changed("digest_is_a_number", top(digest=1))
changed("further_key", top(further=1))
changed("key_missing", lambda manifest: manifest.pop("files"))

# ---- files and tensors ---------------------------------------------------------------------------

changed("file_leads_out", file_named("../outside.safetensors"))
changed("file_is_absolute", file_named("/etc/passwd"))
changed("file_with_a_null_byte", file_named("model\0.safetensors"))
changed("file_with_escape_sequences", file_named("\x1b[2J.safetensors"))
changed("file_name_is_long", file_named("ü" * 200))
changed("file_is_the_manifest", file_named("manifest.json"))
changed("file_is_the_folder", file_named("."))
changed("file_with_a_backslash", file_named("..\\outside.safetensors"))
changed("file_missing", file_named("model-2.safetensors"))
changed("tensor_of_no_file", tensor(file="nowhere.safetensors"))
changed("tensor_in_the_layout", tensor(file="layout.ucl"))
changed("shape_negative", tensor(shape=[-4]))
changed("shape_of_2_to_the_63", tensor(shape=[1 << 63]))
changed("shape_overflows", tensor(shape=[1 << 62, 1 << 62], axes=["a", "b"]))
changed("shape_of_truth", tensor(shape=[True], axes=["a"]))
changed("dtype_unknown", tensor(dtype="F7"))
changed("dtype_is_a_list", tensor(dtype=[]))
changed("range_past_the_end", tensor(byte_range=[1 << 40, (1 << 40) + 16]))
changed("range_in_the_header", tensor(byte_range=[0, 16]))
changed("range_negative", tensor(byte_range=[-16, 0]))
changed("range_of_2_to_the_63", tensor(byte_range=[1 << 63, (1 << 63) + 16]))
changed("range_too_short", tensor(byte_range=[0, 1]))
changed("axes_too_many", tensor(axes=["a"] * 1000))
changed("digest_of_another_tensor", tensor(digest="xxh3-128:" + "0" * 32), "verify", "src")
changed("digest_of_another_algorithm", tensor(digest="md5:" + "0" * 32))
changed("file_size_of_2_to_the_63", layout_file(nbytes=1 << 63))
changed("file_size_lies", layout_file(nbytes=1))
changed("file_digest_lies", layout_file(digest="xxh3-128:" + "0" * 32))


def second_tensor(manifest: dict[str, Any]) -> None:
    """Another tensor at the same bytes."""
    manifest["tensors"]["x"] = manifest["tensors"]["w"]


changed("tensors_overlap", second_tensor)
changed("tensor_with_escape_sequences", lambda m: m["tensors"].update({"\x1b[2J\n": {"param": 1}}))
changed("state_leads_out", lambda m: m["tensors"].update(w={"../x": m["tensors"]["w"]["param"]}))
changed("aliases_in_a_circle", top(aliases={"w": "v", "v": "w"}))
changed("alias_of_nothing", top(aliases={"v": "nothing"}))
changed("sizes_beyond_64_bits", top(sizes={"layer": 1 << 70}))
changed("iteration_negative", lambda manifest: manifest["training"].update(iteration=-1))
changed("layout_of_another_name", top(layout="nothing"))
changed("provenance_nested", top(provenance=[{"a": [[[[[[]]]]]]}]))
changed("config_of_lists", top(config={"hidden_size": [1], "vocab_size": {"a": -1}}))

# ---- what lies there -----------------------------------------------------------------------------


def placed(case: str, change: Callable[[Path], None], *words: str) -> None:
    """One case: a sound folder in which something is done."""
    CORPUS.add(case, lambda folder: change(sound(folder)), *words)


def other(path: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Something else in place of a file."""

    def change(root: Path) -> None:
        (root / path).unlink()
        make(root / path)

    return change


def framework(text: bytes) -> Callable[[Path], None]:
    """Another `extra/framework.json`, whose digest the manifest states."""

    def change(root: Path) -> None:
        from reshard.store.digest import digest_bytes

        (root / "extra" / "framework.json").write_bytes(text)
        manifest = json.loads((root / "manifest.json").read_bytes())
        entry = manifest["files"]["extra/framework.json"]
        entry.update(nbytes=len(text), digest=digest_bytes(text))
        put(root, manifest)

    return change


def layout(text: bytes) -> Callable[[Path], None]:
    """Another `layout.ucl`, whose digest the manifest states."""

    def change(root: Path) -> None:
        from reshard.store.digest import digest_bytes

        (root / "layout.ucl").write_bytes(text)
        manifest = json.loads((root / "manifest.json").read_bytes())
        manifest["files"]["layout.ucl"].update(nbytes=len(text), digest=digest_bytes(text))
        put(root, manifest)

    return change


def link(target: str) -> Callable[[Path], None]:
    """A link."""
    return lambda path: path.symlink_to(target)


def whole_folder(root: Path) -> None:
    """`extra` is a link to a folder outside."""
    (root / "extra").rename(root.parent / "outside")
    (root / "extra").symlink_to("../outside")


TENSORS = "model-00001-of-00001.safetensors"


def written_again(root: Path) -> None:
    """Another program wrote the manifest again, and the digest of before stands in it."""
    manifest = json.loads((root / "manifest.json").read_bytes())
    (root / "manifest.json").write_text(json.dumps(manifest))


placed("manifest_written_again", written_again)
placed("manifest_is_a_pipe", other("manifest.json", os.mkfifo))
placed("manifest_is_a_folder", other("manifest.json", Path.mkdir))
placed("manifest_is_a_device", other("manifest.json", link("/dev/zero")))
placed("manifest_is_a_circle", other("manifest.json", link("manifest.json")))
placed("layout_is_a_pipe", other("layout.ucl", os.mkfifo))
placed("layout_links_out", other("layout.ucl", link("/etc/hostname")))
placed("tensors_link_out", other(TENSORS, link("/etc/hostname")))
placed("tensors_are_a_device", other(TENSORS, link("/dev/zero")))
placed("extra_links_out", whole_folder)
placed("verified_tensors_link_out", other(TENSORS, link("/etc/hostname")), "verify", "src")
placed("framework_nested", framework(b'{"a":' + b"[" * 900 + b"]" * 900 + b"}"))
placed("framework_is_a_list", framework(b"[]"))
placed("framework_of_bad_objects", framework(b'{"client_state": {"x": {"$tuple": 7}}}'))
placed("framework_of_bad_bytes", framework(b'{"client_state": {"x": {"$bytes": "!"}}}'))
placed(
    "framework_is_written",
    framework(b'{"name": "deepspeed", "client_state": {"x": {"$tuple": 7}}}'),
    *("convert", "src", "dst", "--to", "deepspeed-universal"),
)
placed("layout_is_no_text", layout(b"\xff\xfe"))
placed("layout_is_no_layout", layout(b"touch canary"))
placed("layout_is_a_bomb", layout(b'layout l { "' + b"**a" * 100 + b'" = [...] }'))
