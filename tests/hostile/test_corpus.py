"""Every bad input of the corpus: nothing runs, nothing is written outside, each has its message."""

from __future__ import annotations

import os
import re
from pathlib import Path

import cases_formats
import cases_language
import cases_legacy
import cases_pickle
import cases_safetensors
import cases_universal
import cases_zip
import pytest
from corpus import CANARY, BadInput
from expected_messages import Expected
from limited import MEMORY_NBYTES, run_limited

GROUPS = (
    cases_pickle.CORPUS,
    cases_zip.CORPUS,
    cases_legacy.CORPUS,
    cases_safetensors.CORPUS,
    cases_universal.CORPUS,
    cases_language.CORPUS,
    cases_formats.CORPUS,
)
CASES = [case for corpus in GROUPS for case in corpus.cases]


def _inventory(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent) / name
            stat = path.lstat()
            found[str(path.relative_to(folder))] = (stat.st_mode, stat.st_size, stat.st_mtime_ns)
    return found


@pytest.mark.parametrize("case", CASES, ids=[f"{case.group}-{case.name}" for case in CASES])
def test_bad_input(case: BadInput, tmp_path: Path, expected: Expected, warm: Path) -> None:
    assert warm.is_dir()
    folder = tmp_path / "in"
    logs = tmp_path / "logs"
    folder.mkdir()
    logs.mkdir()
    case.build(folder)
    before = _inventory(tmp_path)

    outcome = run_limited(case.words, folder, logs)

    said = (outcome.out + outcome.err).replace(str(folder), "HERE")
    said = re.sub(r"[0-9.]+ kB in [0-9]+ files", "SIZE", said)
    said = re.sub(r"(?<=xxh3-128:)(?!0{32})[0-9a-f]{32}", "DIGEST", said)
    said = re.sub(r"\n  in [0-9.]+ s, .*", "", said)
    after = _inventory(tmp_path)
    written = {name for name, facts in after.items() if before.get(name) != facts}
    outside = {
        name
        for name in written
        if not name.startswith("in/dst/") and name not in ("in", "in/dst", "logs/out", "logs/err")
    }
    assert not (folder / CANARY).exists()
    assert not outside - {"logs"}
    assert before.keys() <= after.keys()
    assert outcome.code >= 0, "it took too long"
    assert outcome.code not in (1, 99), said
    assert outcome.code == 0 or "in/dst" in before or not (folder / "dst").exists()
    assert outcome.peak_nbytes < MEMORY_NBYTES
    assert all(char.isprintable() or char == "\n" for char in said)
    command = " ".join(case.words)
    expected.check(
        case.group, case.name, f"$ reshard {command}\nexit {outcome.code}\n{said}".strip()
    )


@pytest.mark.parametrize("group", [corpus.group for corpus in GROUPS])
def test_table_names_the_cases(group: str, expected: Expected) -> None:
    names = [case.name for case in CASES if case.group == group]
    assert sorted(expected.names(group)) == sorted(names)
