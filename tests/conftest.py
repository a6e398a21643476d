"""What every test may use: hypothesis profiles, real checkpoints, golden texts, frameworks."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import interop_table

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
GOLDEN = ROOT / "tests" / "golden"

_QUIET = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)
settings.register_profile("dev", deadline=None, max_examples=50, suppress_health_check=_QUIET)
settings.register_profile(
    "ci", deadline=None, max_examples=100, derandomize=True, suppress_health_check=_QUIET
)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--update-golden`."""
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite the files under tests/golden with what the code says now",
    )
    parser.addoption(
        "--interop-table",
        type=Path,
        help="write what the interop tests show of each framework there, and compare the docs",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let reports say what a test shows of a framework."""
    interop_table.note(item)


_TOLD = pytest.StashKey[dict[str, str]]()


@pytest.fixture(scope="session", autouse=True)
def bytecode(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Processes that tests start find compiled code, where Python may not write it beside ours.

    Compiling all that a command imports takes longer than what most tests do with it.
    """
    if sys.dont_write_bytecode:
        base = tmp_path_factory.getbasetemp()
        shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
        os.environ["PYTHONPYCACHEPREFIX"] = str(shared / "bytecode")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="session")
def tell(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """A function `(what, counts)`: a line of the summary that pytest prints at its end."""
    told = request.config.stash.setdefault(_TOLD, {})
    return told.__setitem__


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand what tests have counted to the process that prints it, where that is another one."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["told"] = session.config.stash.get(_TOLD, {})
    elif path := session.config.getoption("--interop-table"):
        _write_interop_table(session, path)


def _write_interop_table(session: pytest.Session, path: Path) -> None:
    terminal: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    reports = [report for part in terminal.stats.values() for report in part]
    made = interop_table.table(reports)
    update = bool(session.config.getoption("--update-golden"))
    if wrong := interop_table.write(path, made, update=update):
        terminal.write_line(f"\n{made}\n{wrong}", red=True)
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what the tests of another process have counted (pytest-xdist)."""
    told = getattr(node, "workeroutput", {}).get("told", {})
    node.config.stash.setdefault(_TOLD, {}).update(told)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print what tests have counted."""
    told = config.stash.get(_TOLD, {})
    if told:
        terminalreporter.section("counts")
    for what, counts in sorted(told.items()):
        terminalreporter.line(f"{what}: {counts}")


@pytest.fixture(scope="session")
def fixture_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a case of fixtures/ to its folder: `ckpt/`, `truth.safetensors`, ...

    A case that is kept as an archive is unpacked once a session.  The folder is shared: copy it
    before changing anything.
    """
    unpacked: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in unpacked:
            unpacked[name] = _open_case(name, tmp_path_factory)
        return unpacked[name]

    return find


def _open_case(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = FIXTURES / name
    if not (folder / "case.json").is_file():
        pytest.fail(f"there is no case {name!r} in fixtures/")
    archive = folder / "case.tar.xz"
    if not archive.is_file():
        return folder
    copy = tmp_path_factory.mktemp("fixtures") / name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(archive.name))
    with tarfile.open(archive) as packed:
        packed.extractall(copy, filter="data")
    return copy


@pytest.fixture(scope="session")
def interop_python() -> Path:
    """The interpreter that has the real frameworks; fails where there is none."""
    named = os.environ.get("RESHARD_INTEROP_PYTHON")
    if named is None and (venv := os.environ.get("RESHARD_INTEROP_VENV")):
        named = f"{venv}/bin/python"
    if named is None:
        pytest.fail(
            "no interpreter for the interop tests: run `sh tests/run.sh`, or set "
            "RESHARD_INTEROP_PYTHON or RESHARD_INTEROP_VENV"
        )
    if not os.access(named, os.X_OK):
        pytest.fail(f"the interop interpreter {named} cannot be run")
    return Path(named)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """A function `(name, text)` that compares a text with tests/golden/NAME.

    With `--update-golden` it writes the file instead; the difference is then reviewed in git.
    """
    update = bool(request.config.getoption("--update-golden"))

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.is_file():
            pytest.fail(f"tests/golden/{name} does not exist; make it with --update-golden")
        expected = path.read_text(encoding="utf-8")
        assert text == expected, f"differs from tests/golden/{name}; if meant, --update-golden"

    return compare
