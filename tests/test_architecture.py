"""The house rules that no single module can keep: layers, absent imports, file sizes, no strays."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reshard.formats import make_shipped

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
FRAMEWORKS = ("accelerate", "deepspeed", "megatron", "torch", "transformers")


def _modules_after(code: str, tmp_path: Path, *arguments: str) -> set[str]:
    """Top-level modules that are loaded after a fresh interpreter has run `code`.

    An importable stand-in for every framework lies on its path, so that an import is seen even
    where the framework is not installed and the code would survive its absence.
    """
    for name in FRAMEWORKS:
        (tmp_path / "standins" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "standins" / name / "__init__.py").touch()
    report = tmp_path / "modules.json"
    tail = (
        "\nimport json, pathlib, sys"
        f"\npathlib.Path({str(report)!r}).write_text(json.dumps(sorted(sys.modules)))"
    )
    path = os.pathsep.join(
        [str(tmp_path / "standins"), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, "-c", code + tail, *arguments],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return {name.partition(".")[0] for name in json.loads(report.read_text(encoding="utf-8"))}


RUN_COMMAND = """
import sys
from reshard.cli import main
try:
    code = main()
except SystemExit as end:
    code = end.code
assert not code, f"exit code {code}"
"""


def test_the_check_sees_an_import(tmp_path: Path) -> None:
    swallowed = "try:\n    import torch.cuda\nexcept ImportError:\n    pass"
    assert "torch" in _modules_after(swallowed, tmp_path)


@pytest.mark.parametrize(
    "module", ["reshard", "reshard.api", "reshard.cli", "reshard.formats", "reshard.plan"]
)
def test_importing_loads_no_framework(module: str, tmp_path: Path) -> None:
    assert _modules_after(f"import {module}", tmp_path).isdisjoint(FRAMEWORKS)


def test_the_command_line_starts_without_what_only_moves_bytes(tmp_path: Path) -> None:
    loaded = _modules_after(RUN_COMMAND, tmp_path, "--help")
    assert loaded.isdisjoint({*FRAMEWORKS, "lark", "ml_dtypes", "numpy", "safetensors", "xxhash"})


@pytest.mark.parametrize("command", ["inspect", "plan", "convert"])
def test_working_loads_no_framework_and_no_parser(
    command: str, fixture_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = str(fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt")
    arguments = {
        "inspect": ["inspect", source],
        "plan": ["plan", source, "--to", "deepspeed:zero=2,dp=2"],
        "convert": ["convert", source, str(tmp_path / "out"), "--to", "universal"],
    }[command]
    assert _modules_after(RUN_COMMAND, tmp_path, *arguments).isdisjoint({*FRAMEWORKS, "lark"})


def test_imports_go_downward() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as run; run()",
            "--no-logo",
            "--no-cache",
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_layer_is_named_in_the_contract() -> None:
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = {path.parent.name for path in (ROOT / "src" / "reshard").glob("*/__init__.py")}
    unnamed = {name for name in packages if f'reshard.{name}"' not in contract}
    assert unnamed == set()


def test_no_format_knows_another() -> None:
    """All may stand on the walk of descriptions, which knows none of them."""
    formats = ROOT / "src" / "reshard" / "formats"
    names = {path.parent.name for path in formats.glob("*/__init__.py")}
    found = [
        f"{path.relative_to(ROOT)} imports {other}"
        for name in names
        for path in (formats / name).rglob("*.py")
        for other in re.findall(r"reshard\.formats\.(\w+)", path.read_text(encoding="utf-8"))
        if other in names - {name, "described"}
    ]
    assert found == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_source_file_holds_one_concept(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


def test_nothing_names_a_path_of_somebodys_machine() -> None:
    homes = "|".join(("work", "root", "home", "Users"))
    pattern = re.compile(rf"(?<![\w.~/-])/({homes})/")
    texts = [path for path in _shipped_files() if b"\0" not in path.read_bytes()[:8192]]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def _shipped_files() -> list[Path]:
    """The files of the project, without what tools leave beside them."""
    folders = ("src", "grammar", "tests", "fixtures", "docs", "benchmarks", ".ci")
    inside = [path for name in folders for path in (ROOT / name).rglob("*")]
    return [
        path
        for path in sorted([*ROOT.glob("*.*"), ROOT / "LICENSE", *inside])
        if path.is_file()
        and "__pycache__" not in path.parts
        and path.suffix != ".xz"
        and path.name != ".git"  # a file in a further work tree
    ]


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by name, and one that only the interop run collects is found late."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("module", ["shipped_trees", "shipped_index"])
def test_what_is_known_of_the_shipped_texts_is_current(module: str) -> None:
    """Where this fails, `python -m reshard.formats.make_shipped` writes them again."""
    text = make_shipped.trees_text() if module == "shipped_trees" else make_shipped.index_text()
    assert text == (ROOT / "src" / "reshard" / "language" / f"{module}.py").read_text(
        encoding="utf-8"
    )
