"""What is at a destination, and beside it, that reshard did not write stays as it is."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from folders import attempt, codes, tree
from test_resume import stopped

import reshard
from reshard.store.journal import Record
from reshard.store.lock import Lock
from reshard.store.output import OutputFolder


def refused(source: Path, dst: Path, *, to: str = "universal", force: bool = True) -> str:
    """The message of a conversion that is refused."""
    _, error = attempt(source, dst, to, force=force)
    assert isinstance(error, reshard.ReshardError)
    return str(error).replace(str(dst.parent), "...")


def everything(folder: Path) -> list[tuple[str, bytes | str | None]]:
    """Every entry below a folder; links by where they lead."""
    found: list[tuple[str, bytes | str | None]] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found.append((name, os.readlink(path)))
        else:
            found.append((name, path.read_bytes() if path.is_file() else None))
    return found


@pytest.mark.parametrize("to", ["universal", "deepspeed-universal"])
def test_force_replaces_what_reshard_wrote(tiny: Path, tmp_path: Path, to: str) -> None:
    reshard.convert(tiny, tmp_path / "out", to)
    first = tree(tmp_path / "out")
    reshard.convert(tiny, tmp_path / "out", to, states="weights", force=True)
    assert tree(tmp_path / "out") != first
    reshard.convert(tiny, tmp_path / "out", to, force=True)
    assert tree(tmp_path / "out") == first
    assert os.listdir(tmp_path) == ["out"]


def test_what_is_not_universal_has_a_list_of_its_files(tiny: Path, tmp_path: Path) -> None:
    reshard.convert(tiny, tmp_path / "out", "deepspeed-universal")
    found = tree(tmp_path / "out")
    listed = json.loads(found.pop(".reshard-files.json"))
    assert listed["files"] == sorted(found)
    assert listed["written_by"].startswith("reshard ")


@pytest.mark.parametrize("to", ["universal", "deepspeed-universal"])
@pytest.mark.parametrize("what", ["file", "folder", "link", "deep file"])
def test_force_leaves_what_somebody_else_wrote(
    tiny: Path, tmp_path: Path, to: str, what: str
) -> None:
    dst = tmp_path / "out"
    reshard.convert(tiny, dst, to)
    name = "mine"
    if what == "file":
        (dst / name).write_text("mine", encoding="utf-8")
    elif what == "folder":
        (dst / name).mkdir()
        name = "mine/"
    elif what == "link":  # under a name that is on the list
        name = max(tree(dst), key=lambda item: item.count("/"))
        (tmp_path / "elsewhere").write_bytes((dst / name).read_bytes())
        (dst / name).unlink()
        (dst / name).symlink_to(tmp_path / "elsewhere")
    else:
        folder = next((path for path in dst.rglob("*") if path.is_dir()), dst / "extra")
        name = (folder / "mine").relative_to(dst).as_posix()
        folder.mkdir(exist_ok=True)
        (folder / "mine").write_text("mine", encoding="utf-8")
        name = name if to != "universal" else "extra/"
    before = everything(tmp_path)
    assert refused(tiny, dst) == (
        "error[output-foreign]: .../out contains files that reshard did not write, so `--force` "
        "does not replace it\n"
        f"  = note: it holds `{name}`\n"
        "  = help: move them elsewhere yourself, or choose another destination"
    )
    assert everything(tmp_path) == before


@pytest.mark.parametrize("to", ["universal", "deepspeed-universal", "dcp"])
@pytest.mark.parametrize("how", ["longer", "another byte"])
def test_force_leaves_files_that_somebody_changed(
    tiny: Path, tmp_path: Path, to: str, how: str
) -> None:
    dst = tmp_path / "out"
    reshard.convert(tiny, dst, to)
    lists = {"manifest.json", ".reshard-files.json"}
    names = [name for name in tree(dst) if name not in lists and tree(dst)[name]]
    for name in names:
        whole = (dst / name).read_bytes()
        edited = whole + b"!" if how == "longer" else whole[:-1] + bytes([whole[-1] ^ 1])
        (dst / name).write_bytes(edited)
        before = everything(tmp_path)
        assert refused(tiny, dst) == (
            "error[output-foreign]: .../out contains files that were changed after reshard wrote "
            "them, so `--force` does not replace it\n"
            f"  = note: changed: `{name}`\n"
            "  = help: move them elsewhere yourself, or choose another destination"
        )
        assert everything(tmp_path) == before
        (dst / name).write_bytes(whole)
    (dst / names[0]).unlink()  # moved elsewhere
    reshard.convert(tiny, dst, to, force=True)
    assert names[0] in tree(dst)


def test_force_sees_another_large_file_under_the_name(tiny: Path, tmp_path: Path) -> None:
    """Its length is the same, and its beginning and end."""
    dst = tmp_path / "out"
    with OutputFolder.create(dst) as folder:
        folder.open_file("weights.bin", 5 << 20)
        folder.write("weights.bin", 0, bytes(5 << 20))
        folder.commit(receipt=True)
    with (dst / "weights.bin").open("r+b") as file:
        file.seek(1 << 20)
        file.write(os.urandom(3 << 20))
    assert "changed: `weights.bin`" in refused(tiny, dst)


def test_a_list_of_an_earlier_version_has_names_alone(tiny: Path, tmp_path: Path) -> None:
    dst = tmp_path / "out"
    reshard.convert(tiny, dst, "dcp")
    listed = json.loads((dst / ".reshard-files.json").read_text(encoding="utf-8"))
    del listed["contents"]
    (dst / ".reshard-files.json").write_text(json.dumps(listed), encoding="utf-8")
    (dst / ".metadata").write_bytes(b"")
    reshard.convert(tiny, dst, "dcp", force=True)
    assert (dst / ".metadata").stat().st_size


@pytest.mark.parametrize(
    "contents",
    [3, [], {"a": 1}, {"../mine": [1, "x"]}, {"a": [-1, "x"]}, {"a": [2**70, "x"]}, {"": [1, ""]}],
)
def test_a_list_with_odd_contents(tiny: Path, tmp_path: Path, contents: object) -> None:
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    dst = tmp_path / "out"
    dst.mkdir()
    listed = json.dumps({"files": [], "contents": contents})
    (dst / ".reshard-files.json").write_text(listed, encoding="utf-8")
    reshard.convert(tiny, dst, "universal", force=True)
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "mine"


def test_force_leaves_a_checkpoint_that_a_framework_wrote(
    tiny: Path, tmp_path: Path, fixture_checkpoint: Callable[[str], Path]
) -> None:
    run = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    before = tree(run)
    said = refused(tiny, run)
    assert said.startswith(
        "error[output-foreign]: .../ckpt contains files that reshard did not write"
    )
    assert "\n  = note: nothing in it shows that reshard wrote it\n" in said
    assert tree(run) == before


def test_a_list_that_leads_out_removes_nothing_there(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    (tmp_path / "out").mkdir()
    listed = {"files": ["../mine", "/etc/passwd", str(tmp_path / "mine"), "..", "."]}
    (tmp_path / "out" / ".reshard-files.json").write_text(json.dumps(listed), encoding="utf-8")
    reshard.convert(tiny, tmp_path / "out", "universal", force=True)
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("content", ["[]", "{", '{"files": 3}', "[" * 100_000, "\ufffd"])
def test_a_list_that_is_none_lists_nothing(tiny: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".reshard-files.json").write_text(content, encoding="utf-8")
    assert "`.reshard-files.json`" in refused(tiny, tmp_path / "out")


def test_what_came_meanwhile_is_not_replaced(tiny: Path, tmp_path: Path) -> None:
    def come(_: object) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "mine").write_text("mine", encoding="utf-8")

    with pytest.raises(reshard.ReshardError) as caught:
        reshard.convert(tiny, tmp_path / "out", "universal", on_progress=come)
    assert str(caught.value).replace(str(tmp_path), "...") == (
        "error[output-exists]: .../out exists and is not empty\n"
        "  = note: it contains 1 entries, e.g. `mine`\n"
        "  = note: 240 B of 1.3 kB are written and kept in `.out.reshard-partial`\n"
        "  = help: choose another destination, or replace this one with `--force`\n"
        "  = help: run the same command again to continue from there, or remove that folder"
    )
    assert os.listdir(tmp_path / "out") == ["mine"]
    (tmp_path / "out" / "mine").unlink()
    assert reshard.convert(tiny, tmp_path / "out", "universal").resumed.arrays == 6


@pytest.mark.parametrize("name", ["partial", "old", "gone"])
def test_a_link_beside_the_destination_is_not_followed(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("mine", encoding="utf-8")
    (tmp_path / f".out.reshard-{name}").symlink_to(tmp_path / "mine")
    before = everything(tmp_path)
    assert refused(tiny, tmp_path / "out") == (
        f"error[output-foreign]: .../.out.reshard-{name} is not a folder\n"
        "  = note: reshard keeps a folder under this name, and does not follow links\n"
        "  = help: remove it yourself, or choose another destination"
    )
    assert everything(tmp_path) == before


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_journal_that_is_no_file_is_not_read(tiny: Path, tmp_path: Path, kind: str) -> None:
    stopped(tiny, tmp_path / "out", after=4)
    journal = tmp_path / ".out.reshard-partial" / "journal"
    journal.rename(tmp_path / "mine")
    if kind == "link":
        journal.symlink_to(tmp_path / "mine")
    elif kind == "pipe":
        os.mkfifo(journal)
    else:
        journal.mkdir()
    assert refused(tiny, tmp_path / "out") == (
        "error[output-foreign]: .../.out.reshard-partial/journal is not a file\n"
        "  = note: reshard keeps a file under this name, and does not follow links\n"
        "  = help: remove it yourself, or choose another destination"
    )
    assert (tmp_path / "mine").is_file()


@pytest.mark.parametrize("kind", ["link", "folder", "text"])
def test_what_is_no_lock_is_not_taken_for_one(tiny: Path, tmp_path: Path, kind: str) -> None:
    lock = tmp_path / ".out.reshard-lock"
    if kind == "link":
        (tmp_path / "mine").touch()
        lock.symlink_to(tmp_path / "mine")
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.write_text("mine", encoding="utf-8")
    before = everything(tmp_path)
    assert refused(tiny, tmp_path / "out") == (
        "error[output-foreign]: .../.out.reshard-lock is not a lock of reshard\n"
        "  = note: a lock is an empty file, and no link\n"
        "  = help: remove it yourself, or choose another destination"
    )
    assert everything(tmp_path) == before


@pytest.mark.parametrize("where", ["mine", "data/mine", "data/deep/mine"])
def test_what_somebody_put_among_what_was_left_stays(
    tiny: Path, tmp_path: Path, where: str
) -> None:
    stopped(tiny, tmp_path / "out", after=4)
    mine = tmp_path / ".out.reshard-partial" / where
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine", encoding="utf-8")
    named = where if where.count("/") < 2 else "data/deep/"
    before = everything(tmp_path)
    assert refused(tiny, tmp_path / "out", to="deepspeed-universal") == (
        "error[output-foreign]: .../.out.reshard-partial contains files that reshard did not "
        "write\n"
        f"  = note: `{named}`\n"
        "  = help: move them elsewhere, or choose another destination"
    )
    assert everything(tmp_path) == before


def test_links_among_what_was_left_are_not_written_through(tiny: Path, tmp_path: Path) -> None:
    stopped(tiny, tmp_path / "out", after=4)
    (file,) = (tmp_path / ".out.reshard-partial" / "data").glob("model-*.safetensors")
    mine = tmp_path / "mine"
    mine.write_bytes(file.read_bytes())
    before = mine.read_bytes()
    file.unlink()
    file.symlink_to(mine)
    assert refused(tiny, tmp_path / "out") == (
        "error[output-foreign]: .../.out.reshard-partial contains files that reshard did not "
        "write\n"
        f"  = note: `data/{file.name}`\n"
        "  = help: move them elsewhere, or choose another destination"
    )
    assert mine.read_bytes() == before
    assert file.is_symlink()


def leave_old(source: Path, dst: Path, to: str = "universal") -> None:
    """What a run leaves that is killed between the two renames of a replacement."""
    reshard.convert(source, dst, to, states="weights")
    code = (
        "import os, sys, reshard\n"
        "rename = os.rename\n"
        "def killed(a, b):\n"
        "    rename(a, b)\n"
        "    if str(b).endswith('-old'):\n"
        "        os.kill(os.getpid(), 9)\n"
        "os.rename = killed\n"
        "reshard.convert(*sys.argv[1:], force=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, source, dst, to], check=False)
    assert done.returncode == -9
    assert not dst.exists()


def test_a_replacement_that_was_cut_off_is_ended(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    leave_old(tiny, tmp_path / "out")
    with pytest.raises(reshard.ReshardError) as caught:
        reshard.inspect(tmp_path / "out")
    assert str(caught.value).replace(str(tmp_path), "...") == (
        "error[source-missing]: there is no folder `.../out`\n"
        "  = note: what was there was about to be replaced by a run that was stopped\n"
        "  = help: run its command again: it is put back, and then replaced"
    )
    done = reshard.convert(tiny, tmp_path / "out", "universal", force=True)
    assert done.resumed.arrays == 6
    assert tree(tmp_path / "out") == expected
    assert os.listdir(tmp_path) == ["out"]


def test_the_old_folder_is_put_back_without_force(tiny: Path, tmp_path: Path) -> None:
    leave_old(tiny, tmp_path / "out")
    reshard.convert(tiny, tmp_path / "weights", "universal", states="weights")
    said = refused(tiny, tmp_path / "out", force=False)
    assert said.startswith("error[output-exists]: .../out exists and is not empty\n")
    assert tree(tmp_path / "out") == tree(tmp_path / "weights")


def test_the_old_folder_stays_where_something_else_came(tiny: Path, tmp_path: Path) -> None:
    leave_old(tiny, tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / ".out.reshard-lock").unlink()
    before = everything(tmp_path)
    assert refused(tiny, tmp_path / "out") == (
        "error[output-foreign]: .../.out.reshard-old contains the previous content of .../out\n"
        "  = note: a run was interrupted while it replaced that folder, and another one is there "
        "now\n"
        "  = help: move one of the two elsewhere"
    )
    assert everything(tmp_path) == before


def test_two_runs_on_one_destination(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """The second says so and stops; when the first is killed, it holds nothing back."""
    code = (
        "import sys, time, reshard, reshard.engine.units as units\n"
        "units.MAX_TOGETHER = 1\n"
        "def wait(_):\n"
        "    print('busy', flush=True)\n"
        "    sys.stdin.read()\n"
        "reshard.convert(*sys.argv[1:], 'universal', threads=1, on_progress=wait)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tiny, tmp_path / "out"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"busy\n"
        for _ in range(2):
            assert refused(tiny, tmp_path / "out") == (
                "error[output-busy]: .../out is being written by another run\n"
                "  = help: wait until it has ended, or choose another destination"
            )
        first.kill()
    done = reshard.convert(tiny, tmp_path / "out", "universal")
    assert done.resumed.arrays == 1
    assert tree(tmp_path / "out") == expected
    assert os.listdir(tmp_path) == ["out"]


def test_a_lock_that_was_given_back_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it, who held it may remove it: it locks nobody out."""
    path = tmp_path / "lock"
    path.touch()
    real, taken = fcntl.flock, []

    def removed_first(fd: int, how: int) -> None:
        real(fd, how)
        taken.append(os.fstat(fd).st_ino)
        if len(taken) == 1:
            path.unlink()
            path.with_name("keep").touch()  # so that the inode is not given out again at once

    monkeypatch.setattr(fcntl, "flock", removed_first)
    lock = Lock.take(path, tmp_path / "out")
    assert len(taken) == 2
    assert path.stat().st_ino == taken[1]
    lock.release()
    assert not path.exists()


def test_a_lock_whose_file_was_removed_locks_nobody_out(tiny: Path, tmp_path: Path) -> None:
    with OutputFolder.create(tmp_path / "out") as folder:
        _, error = attempt(tiny, tmp_path / "out", "universal")
        assert codes(error) == ["output-busy"]
        folder.abort()
        assert attempt(tiny, tmp_path / "out", "universal")[1] is None
    assert os.listdir(tmp_path) == ["out"]


def test_nothing_is_gone_on_from_where_nothing_says_what_is_made(tmp_path: Path) -> None:
    """Whoever writes without a plan starts anew, after a kill as after an interrupt."""
    killed = OutputFolder.create(tmp_path / "out")
    killed.open_file("a", 3)
    killed.note([Record(0, "digest")], 3)
    killed._finish()
    assert (tmp_path / ".out.reshard-partial" / "data" / "a").exists()

    def interrupted() -> None:
        with OutputFolder.create(tmp_path / "out") as folder:
            folder.open_file("b", 3)
            folder.note([Record(0, "digest")], 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted()
    assert str(caught.value) == ""
    assert os.listdir(tmp_path) == []
    with OutputFolder.create(tmp_path / "out") as folder:
        folder.open_file("a", 3)
        folder.write("a", 0, b"abc")
        folder.commit()
    assert tree(tmp_path / "out") == {"a": b"abc"}
    assert os.listdir(tmp_path) == ["out"]
