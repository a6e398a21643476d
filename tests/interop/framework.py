"""What the interop tests say to a real framework, and what it answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import pytest

HERE = Path(__file__).resolve().parent
MAKE_CASE = HERE.parents[1] / "fixtures" / "make" / "make_case.py"


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a real run found after it loaded a folder.

    Args:  equal: states bit-equal to the case's truth.  different: keys of those that are not, or
                  that only one side has.
           losses: of the next three steps.  expected_losses: those of the original run.
           param_groups: learning rate and weight decay in force.
    """

    equal: int
    different: tuple[str, ...]
    losses: tuple[float, ...]
    expected_losses: tuple[float, ...]
    global_steps: int
    client_state: tuple[str, ...]
    param_groups: tuple[dict[str, float], ...]

    @property
    def first_loss_difference(self) -> float:
        """How far the first loss is from the one that the original run had.

        It depends on the restored weights alone; later ones also on the order of sums over ranks.
        """
        return abs(self.losses[0] - self.expected_losses[0])


class Resume(Protocol):
    """See the fixture `resume`."""

    def __call__(
        self,
        case_dir: Path,
        folder: Path,
        *,
        universal: bool = False,
        dp: int | None = None,
        zero: int | None = None,
    ) -> Resumed: ...


def run_framework(command: list[str], tmp_path: Path, release: str = "") -> None:
    """Run a command of the real framework; fail with the end of what it printed if it fails.

    A script is run beside frameworks that are imported already; `-m` starts an interpreter.

    Args:  release: a list of `tests/interop/beside`, whose packages come before the others.
    """
    if command[1].endswith(".py"):
        first = [str(beside(Path(command[0]), release))] if release else []
        code, printed = _server(command[0]).run(first, command[1:], tmp_path)
    else:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=_environment(command[0]),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        code, printed = done.returncode, done.stdout
    if code != 0:
        pytest.fail(f"{' '.join(command)} failed:\n{printed[-4000:]}")


def beside(python: Path, release: str) -> Path:
    """The folder where `tests/run.sh` keeps the packages of a list."""
    folder = python.parent.parent / "beside" / release
    if not folder.is_dir():
        pytest.fail(f"{folder} does not exist: run `sh tests/run.sh interop`")
    return folder


@cache
def _environment(python: str) -> dict[str, str]:
    # The variable that makes the tests find an uninstalled reshard must not reach the framework.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # DeepSpeed looks for its build tool among the commands, not in its own environment.
    environment["PATH"] = f"{Path(python).parent}{os.pathsep}{environment['PATH']}"
    # What frameworks leave in the folders for temporary files and for caches goes with the session.
    scratch = _scratch()
    for name in ("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR"):
        environment[name] = str(scratch / name)
        (scratch / name).mkdir()
    # A copy: a lock that a killed run leaves there would make every later one wait.
    compiled = Path(python).parent.parent / "torch_extensions"
    environment["TORCH_EXTENSIONS_DIR"] = str(scratch / "extensions")
    if compiled.is_dir():
        shutil.copytree(compiled, scratch / "extensions")
    return environment


@cache
def _scratch() -> Path:
    """A folder of this session; its name is short, as sockets lie in it."""
    return Path(tempfile.mkdtemp(prefix="reshard-"))


def shared_memory() -> set[Path]:
    """The files of this user in /dev/shm."""
    user, found = os.getuid(), set()
    for path in Path("/dev/shm").glob("*"):
        with suppress(FileNotFoundError):
            if path.stat().st_uid == user:
                found.add(path)
    return found


def close_frameworks(before: set[Path]) -> list[str]:
    """End the interpreters, remove what they wrote outside of `tmp_path`.

    Returns:  what was left in /dev/shm since `before` and is open in no process; it is removed too.
    """
    for server in _servers:
        server.close()
    shutil.rmtree(_scratch())
    deadline = time.monotonic() + 5  # another run may be about to remove its own
    while (left := shared_memory() - before - _open_files()) and time.monotonic() < deadline:
        time.sleep(0.2)
    for path in left:
        path.unlink(missing_ok=True)
    return sorted(map(str, left))


def _open_files() -> set[Path]:
    """What processes have open or mapped in /dev/shm."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for line in (process / "maps").read_text().splitlines():
                if "/dev/shm/" in line:
                    found.add(Path(line[line.index("/dev/shm/") :].removesuffix(" (deleted)")))
        with suppress(OSError):
            for link in (process / "fd").iterdir():
                with suppress(OSError):
                    found.add(link.readlink())
    return found


class _Server:
    """An interpreter that has imported the frameworks, and forks for each script."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, str(HERE / "server.py")],
            env=_environment(python),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, first: list[str], command: list[str], tmp_path: Path) -> tuple[int, str]:
        """The exit code of a script, and what it printed."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        log = tmp_path / "framework.log"
        process.stdin.write(json.dumps([str(tmp_path), str(log), first, *command]) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, "the frameworks could not be imported"
        return int(answer), log.read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        """End the interpreter."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


_servers: list[_Server] = []


@cache
def _server(python: str) -> _Server:
    server = _Server(python)
    _servers.append(server)
    return server
