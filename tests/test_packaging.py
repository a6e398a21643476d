"""The wheel is whole: it carries the grammar, the layouts, the error pages, and the type marker."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _run(command: list[str], cwd: Path) -> str:
    # No PYTHONPATH: the installed copy must be found, not the checkout.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built the way that a release is: from the sdist, not from the checkout."""
    out = tmp_path_factory.mktemp("dist")
    _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)], out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that has the wheel.

    The dependencies are those of the running environment, so that nothing is fetched.
    """
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    _run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], home)
    site = Path(
        _run(
            [str(python), "-c", "import sysconfig as s; print(s.get_path('purelib'))"], home
        ).strip()
    )
    # A path line does not read the .pth files in that folder: an editable reshard stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return python


def test_the_wheel_has_every_file_that_is_not_python(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = ROOT / "src" / "reshard"
    wanted = {"reshard/py.typed", "reshard/_grammar/ucl.lark"}
    wanted |= {f"reshard/{p.relative_to(package).as_posix()}" for p in package.rglob("*.ucl")}
    wanted |= {f"reshard/_errors/{path.name}" for path in ROOT.glob("docs/errors/*.md")}
    wanted |= {f"reshard/{path.relative_to(package).as_posix()}" for path in package.rglob("*.py")}
    assert names >= wanted
    outside = {name for name in names if not name.startswith(("reshard/", "reshard-"))}
    assert outside == set()


def test_the_installed_copy_is_the_one_that_runs(installed: Path) -> None:
    code = "import reshard; print(reshard.__file__)"
    found = Path(_run([str(installed), "-c", code], installed.parent).strip())
    assert found.is_relative_to(installed.parent.parent)


def test_the_installed_copy_parses_a_layout(installed: Path) -> None:
    layout = installed.parent / "small.ucl"
    layout.write_text('layout small {\n    mesh tp\n    "**" = [rows over tp, ...]\n}\n', "utf-8")
    _run([str(installed.with_name("reshard")), "layout", "check", str(layout)], installed.parent)


def test_the_installed_command_line_answers(installed: Path) -> None:
    command = str(installed.with_name("reshard"))
    assert "convert" in _run([command, "--help"], installed.parent)
    assert "0.1.0" in _run([command, "--version"], installed.parent)


def test_the_installed_copy_explains_every_error(installed: Path) -> None:
    code = (
        "import importlib.resources as r;"
        "print(*(p.name[:-3] for p in (r.files('reshard') / '_errors').iterdir()))"
    )
    codes = _run([str(installed), "-c", code], installed.parent).split()
    assert set(codes) == {path.stem for path in ROOT.glob("docs/errors/*.md")}
    code = min(set(codes) - {"README"})
    page = _run([str(installed.with_name("reshard")), "explain", code], installed.parent)
    assert "Fix" in page
