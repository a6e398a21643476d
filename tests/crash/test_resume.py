"""The same command again goes on from what an earlier run has written, and from nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from folders import tree

import reshard
from reshard.engine.progress import Progress
from reshard.store.journal import Making, read_journal

Stop = Callable[[Progress], None]


def stop_after(count: int) -> Stop:
    """An interrupt after so many pieces of work."""
    left = [count]

    def stop(_: Progress) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    return stop


def stopped(source: Path, dst: Path, to: str = "universal", *, after: int = 3) -> str:
    """Convert, and be interrupted; what is told."""
    with pytest.raises(KeyboardInterrupt) as caught:
        reshard.convert(source, dst, to, threads=1, on_progress=stop_after(after))
    return str(caught.value)


def test_it_goes_on_and_ends_with_the_same_bytes(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    told = stopped(tiny, tmp_path / "out", after=4)
    assert told == (
        "interrupted; 160 B of 1.3 kB are written and kept in `.out.reshard-partial`\n"
        "run the same command again to continue from there, or remove that folder"
    )
    assert os.listdir(tmp_path) == [".out.reshard-partial"]
    seen: list[Progress] = []
    done = reshard.convert(tiny, tmp_path / "out", "universal", on_progress=seen.append)
    assert (done.resumed.arrays, done.resumed.nbytes) == (4, 160)
    assert done.to_text().split("\n")[2] == "  reused from an interrupted run: 4 arrays, 160 B"
    assert done.to_json()["resumed"] == {"arrays": 4, "nbytes": 160}
    assert done.report.warnings == ()
    assert [item.nbytes_done for item in seen] == [200, 240]
    assert tree(tmp_path / "out") == expected
    assert os.listdir(tmp_path) == ["out"]


def test_it_can_be_stopped_again_and_again(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    for _ in range(5):
        stopped(tiny, tmp_path / "out", after=1)
    done = reshard.convert(tiny, tmp_path / "out", "universal")
    assert done.resumed.arrays == 5
    assert tree(tmp_path / "out") == expected


def test_large_arrays_are_gone_on_from(
    tmp_path: Path, fixture_checkpoint: Callable[[str], Path]
) -> None:
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    for to in ("universal", "deepspeed:zero=1,dp=3"):
        reshard.convert(source, tmp_path / "whole", to)
        with pytest.raises(KeyboardInterrupt):
            reshard.convert(source, tmp_path / "out", to, threads=2, on_progress=stop_after(40))
        done = reshard.convert(source, tmp_path / "out", to)
        assert done.resumed.arrays >= 20
        assert tree(tmp_path / "out") == tree(tmp_path / "whole")
        reshard.convert(source, tmp_path / "whole", to, force=True)
        for name in ("whole", "out"):
            (tmp_path / name).rename(tmp_path / f"{name}-{to.partition(':')[0]}")


@pytest.mark.parametrize("byte_offset", [0, 100])
def test_what_is_not_as_it_was_noted_is_written_again(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path, byte_offset: int
) -> None:
    stopped(tiny, tmp_path / "out", after=4)
    data = tmp_path / ".out.reshard-partial" / "data"
    (name,) = (path for path in data.glob("model-*.safetensors"))
    content = bytearray(name.read_bytes())
    content[len(content) - 1 - byte_offset] ^= 1
    name.write_bytes(content)
    done = reshard.convert(tiny, tmp_path / "out", "universal")
    assert done.resumed.arrays == 3
    assert tree(tmp_path / "out") == expected


def test_everything_but_arrays_is_written_again(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    stopped(tiny, tmp_path / "out", after=4)
    data = tmp_path / ".out.reshard-partial" / "data"
    for path in data.iterdir():
        content = bytearray(path.read_bytes())
        content[0] ^= 255
        path.write_bytes(content)
    done = reshard.convert(tiny, tmp_path / "out", "universal")
    assert done.resumed.arrays == 4
    assert tree(tmp_path / "out") == expected


def test_a_file_that_is_missing_short_or_has_another_name_is_made_again(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    for harm in ("missing", "short", "second name"):
        dst = tmp_path / harm.replace(" ", "-")
        stopped(tiny, dst, after=4)
        data = tmp_path / f".{dst.name}.reshard-partial" / "data"
        (file,) = data.glob("model-*.safetensors")
        if harm == "missing":
            file.unlink()
        elif harm == "short":
            os.truncate(file, 10)
        else:
            os.link(file, tmp_path / "mine")
            mine = (tmp_path / "mine").read_bytes()
        done = reshard.convert(tiny, dst, "universal")
        assert done.resumed.arrays == 1, harm
        assert tree(dst) == expected
    assert (tmp_path / "mine").read_bytes() == mine


def test_a_torn_last_line_is_what_a_kill_leaves(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    stopped(tiny, tmp_path / "out", after=4)
    journal = tmp_path / ".out.reshard-partial" / "journal"
    os.truncate(journal, journal.stat().st_size - 5)
    done = reshard.convert(tiny, tmp_path / "out", "universal")
    assert done.resumed.arrays == 3
    assert done.report.warnings == ()
    assert tree(tmp_path / "out") == expected


def anew(done: reshard.Converted) -> str:
    """The note that everything was written anew, once it is sure that it was."""
    assert (done.resumed.arrays, done.resumed.nbytes) == (0, 0)
    (note,) = done.report.warnings
    return note.render()


HEAD = "note[started-anew]: the partial output of an earlier run was not reused\n  = note: "


def test_a_damaged_journal_is_not_used(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    stopped(tiny, tmp_path / "out", after=4)
    journal = tmp_path / ".out.reshard-partial" / "journal"
    lines = journal.read_bytes().split(b"\n")
    lines[2] = lines[2][:-3]
    journal.write_bytes(b"\n".join(lines))
    done = reshard.convert(tiny, tmp_path / "out", "universal")
    assert anew(done) == HEAD + "line 3 of its journal is damaged"
    assert tree(tmp_path / "out") == expected


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"{}", b"\n", b"00000000 {}\nx\n"])
def test_a_journal_that_is_none_is_not_used(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path, content: bytes
) -> None:
    stopped(tiny, tmp_path / "out", after=4)
    (tmp_path / ".out.reshard-partial" / "journal").write_bytes(content)
    done = reshard.convert(tiny, tmp_path / "out", "universal")
    assert anew(done).startswith(HEAD)
    assert tree(tmp_path / "out") == expected
    assert os.listdir(tmp_path) == ["out"]


def test_a_journal_of_another_target_is_not_used(tiny: Path, tmp_path: Path) -> None:
    stopped(tiny, tmp_path / "out", after=4)
    done = reshard.convert(tiny, tmp_path / "out", "deepspeed-universal")
    assert done.report.warnings[-1].render() == HEAD + "it was written for `universal`"
    assert os.listdir(tmp_path) == ["out"]


def test_a_journal_of_other_states_is_not_used(tiny: Path, tmp_path: Path) -> None:
    stopped(tiny, tmp_path / "out", after=4)
    done = reshard.convert(tiny, tmp_path / "out", "universal", states="weights")
    assert anew(done) == HEAD + "the source or the options of the conversion have changed"
    assert reshard.verify(tmp_path / "out").ok


def test_a_journal_of_another_version_is_not_used(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("reshard.storage.program.program", lambda: "reshard 0.0.9")
        stopped(tiny, tmp_path / "out", after=4)
    done = reshard.convert(tiny, tmp_path / "out", "universal")
    assert anew(done).startswith(HEAD + "it was written by reshard 0.0.9, and this is reshard ")
    assert tree(tmp_path / "out") == expected


@pytest.mark.parametrize("harm", ["time", "content"])
def test_another_source_is_not_gone_on_from(
    tiny: Path, tmp_path: Path, harm: str, copied: Path
) -> None:
    stopped(copied, tmp_path / "out", after=4)
    (file,) = copied.glob("model-*.safetensors")
    found = file.stat()
    if harm == "content":  # with the same size and time
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    else:
        os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    done = reshard.convert(copied, tmp_path / "out", "universal")
    assert anew(done) == HEAD + "the source or the options of the conversion have changed"
    assert reshard.verify(copied, tmp_path / "out").ok


def test_what_a_damaged_source_gave_is_written_again(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path, copied: Path
) -> None:
    (file,) = copied.glob("model-*.safetensors")
    found, good = file.stat(), file.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")

    def put(content: bytes) -> None:
        """As `rsync -a` does: size and time of writing stay."""
        (tmp_path / "new").write_bytes(content)
        os.utime(tmp_path / "new", ns=(found.st_atime_ns, found.st_mtime_ns))
        (tmp_path / "new").replace(file)

    # Both ends of the file are sound: the damage is in the second tensor.
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("reshard.engine.fingerprint.ENDS_NBYTES", 16)
    try:
        put(good[: header + 44] + bytes(4) + good[header + 48 :])
        stopped(copied, tmp_path / "out", after=4)
        put(good)
        done = reshard.convert(copied, tmp_path / "out", "universal")
    finally:
        monkeypatch.undo()
    assert done.resumed.arrays == 3
    assert done.report.warnings == ()
    assert reshard.verify(copied, tmp_path / "out").ok
    assert data_of(tree(tmp_path / "out")) == data_of(expected)


def test_a_target_of_a_damaged_source_is_not_taken_for_complete(
    tiny: Path, tmp_path: Path, copied: Path
) -> None:
    """The run was stopped when all was in place, and only its journal not removed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reshard.store.output.OutputFolder._clean", lambda _: None)
        reshard.convert(copied, tmp_path / "out", "universal")
    assert reshard.convert(copied, tmp_path / "out", "universal").resumed.arrays == 6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reshard.store.output.OutputFolder._clean", lambda _: None)
        reshard.convert(copied, tmp_path / "out", "universal", force=True)
    (file,) = copied.glob("model-*.safetensors")
    found = file.stat()
    (tmp_path / "new").write_bytes(file.read_bytes())
    os.utime(tmp_path / "new", ns=(found.st_atime_ns, found.st_mtime_ns))
    (tmp_path / "new").replace(file)
    with pytest.raises(reshard.ReshardError, match="output-exists"):
        reshard.convert(copied, tmp_path / "out", "universal")
    assert reshard.convert(copied, tmp_path / "out", "universal", force=True).resumed.arrays == 0
    assert reshard.verify(copied, tmp_path / "out").ok


def data_of(files: dict[str, bytes]) -> dict[str, bytes]:
    """All but the manifest, which says where the source was."""
    return {name: content for name, content in files.items() if name != "manifest.json"}


def test_a_source_that_was_away_is_gone_on_from(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path, copied: Path
) -> None:
    stopped(copied, tmp_path / "out", after=4)
    away = tmp_path / "away"
    copied.rename(away)
    with pytest.raises(reshard.ReshardError, match="source-missing"):
        reshard.convert(copied, tmp_path / "out", "universal")
    away.rename(copied)
    done = reshard.convert(copied, tmp_path / "out", "universal")
    assert done.resumed.arrays == 4
    files = tree(tmp_path / "out")
    assert {k: v for k, v in files.items() if k != "manifest.json"} == {
        k: v for k, v in expected.items() if k != "manifest.json"
    }


def test_what_was_left_is_no_checkpoint(tiny: Path, tmp_path: Path) -> None:
    stopped(tiny, tmp_path / "out", after=4)
    left = tmp_path / ".out.reshard-partial"
    for path in (left, left / "data", tmp_path / "alias"):
        if path.name == "alias":
            path.symlink_to(left)
        with pytest.raises(reshard.ReshardError) as caught:
            reshard.inspect(path)
        assert str(caught.value) == (
            f"error[unfinished-output]: `{path}` is the output of an unfinished conversion\n"
            "  = help: run its command again to go on from there, or remove the folder"
        )


def test_a_journal_says_what_was_done(tiny: Path, tmp_path: Path) -> None:
    stopped(tiny, tmp_path / "out", after=2)
    notes = read_journal(tmp_path / ".out.reshard-partial" / "journal")
    assert notes.making is not None
    assert (notes.making.target, sorted(notes.records)) == ("universal", [0, 1])
    assert (notes.committed, notes.fault) == (None, "")
    other = replace(notes.making, files={})
    assert notes.making.difference(notes.making) == ""
    assert isinstance(other, Making)
    assert notes.making.difference(other) != ""
