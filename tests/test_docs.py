"""The documentation is true: what it shows is what the tool says, and every error has its page.

`pytest tests/test_docs.py --update-golden` writes the output that the tool has now into the pages.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reshard.cli import main
from reshard.errors import Exit
from steady import steady

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(DOCS.glob("*.md")),
    *sorted(DOCS.glob("formats/*.md")),
]
CODES = sorted(path.stem for path in DOCS.glob("errors/*.md") if path.stem != "README")

_CONSOLE = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.M | re.S)
_PYCON = re.compile(r"(?<=^```pycon\n).*?(?=^```$)", re.M | re.S)
_FILE = re.compile(r"^```(?:ucl|json) file=(\S+)\n(.*?)^```$", re.M | re.S)
_LINK = re.compile(r"\[[^\]]*\]\(([^)#:]+)(?:#[^)]*)?\)")

Say = Callable[[str], str]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Say:
    """A function that runs one command line of the docs, in a folder like the checkout."""
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    (tmp_path / "build" / "quickstart").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    codes = [0]

    def run(line: str) -> str:
        if line == "echo $?":
            return f"{codes[-1]}\n"
        redirected, _, file = line.partition(" > ")
        words = shlex.split(redirected)
        assert words[0] == "reshard", line
        capfd.readouterr()
        with contextlib.ExitStack() as stack:
            if not file:
                stack.enter_context(contextlib.redirect_stderr(sys.stdout))  # in the true order
            codes.append(main(words[1:]))
        assert codes[-1] != Exit.BUG, line
        out, err = map(steady, capfd.readouterr())
        if file:
            Path(file).write_text(out, encoding="utf-8")
            out = ""
        return out + err

    return run


def _pages_with(pattern: re.Pattern[str]) -> list[Path]:
    return [path for path in PAGES if path.exists() and pattern.search(path.read_text("utf-8"))]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", _pages_with(_CONSOLE), ids=_name)
def test_a_console_shows_what_the_tool_says(
    page: Path, say: Say, request: pytest.FixtureRequest
) -> None:
    text = page.read_text(encoding="utf-8")
    for name, content in _FILE.findall(text):
        Path(name).write_text(content, encoding="utf-8")

    def replay(found: re.Match[str]) -> str:
        commands = [line[2:] for line in found[0].split("\n") if line.startswith("$ ")]
        if commands[0] == "sh docs/quickstart.sh":
            return _quickstart(say)
        if not all(command.startswith(("reshard ", "echo $?")) for command in commands):
            return found[0]
        return "\n".join(f"$ {command}\n{say(command)}" for command in commands)

    shown = _CONSOLE.sub(replay, text)
    if request.config.getoption("--update-golden"):
        page.write_text(shown, encoding="utf-8")
    else:
        assert shown == text


def _quickstart(say: Say) -> str:
    """What `docs/quickstart.sh` prints once its environment is there."""
    script = (DOCS / "quickstart.sh").read_text(encoding="utf-8")
    variables = dict(re.findall(r"^(\w+)=([^\s$]+)(?:\s+#.*)?$", script, re.M))
    out = ["$ sh docs/quickstart.sh"]
    for line in re.findall(r"^run (.*)$", script, re.M):
        words = shlex.split(re.sub(r"\$(\w+)", lambda name: variables[name[1]], line))
        command = shlex.join(["reshard", *words])
        out += [f"$ {command}", say(command)]
    return "\n".join(out)


@pytest.mark.parametrize("page", _pages_with(_PYCON), ids=_name)
def test_a_python_session_is_what_python_says(page: Path, say: Say) -> None:
    text = page.read_text(encoding="utf-8")
    session = "\n".join(found[0] for found in _PYCON.finditer(text))
    example = doctest.DocTestParser().get_doctest(session, {}, page.name, str(page), 0)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    runner.run(example, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


@pytest.mark.parametrize("page", [*PAGES, *DOCS.glob("errors/*.md")], ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    if page.exists():
        text = page.read_text(encoding="utf-8")
        dead = [link for link in _LINK.findall(text) if not (page.parent / link).exists()]
        assert dead == []


def test_the_readme_has_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^ +sh (\S+)$|^\$ sh (\S+)$", text, re.M)
    assert set(re.findall(r"\bsh ([\w/]+\.sh)", text)) == {"docs/quickstart.sh", "tests/run.sh"}


def test_the_page_of_the_command_line_has_every_command(say: Say) -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\$ reshard (.*) --help$", text, re.M)
    commands = re.findall(r"^  (\w+)  ", say("reshard --help").partition("Commands:")[2], re.M)
    parts = re.findall(r"^  (\w+)  ", say("reshard layout --help").partition("Commands:")[2], re.M)
    single = [name for name in commands if name != "layout"]
    assert sorted(shown) == sorted([*single, *(f"layout {name}" for name in parts)])


def test_the_exit_codes_are_those_of_the_code() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\d+) \|", text.partition("## Exit codes")[2], re.M)
    assert [int(code) for code in listed] == [int(code) for code in Exit]


def test_every_error_has_a_page_and_every_page_an_error() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    raised = {code for text in sources for code in _codes(ast.parse(text))}
    assert raised - set(CODES) == set(), "codes without a page"
    unused = {code for code in CODES if not any(f'"{code}"' in text for text in sources)}
    assert unused == set(), "pages without a code"


@pytest.mark.parametrize("code", CODES)
def test_an_error_page_has_its_sections(code: str) -> None:
    page = (DOCS / "errors" / f"{code}.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#{1,2} .*$", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S), re.M)
    assert headings == [f"# {code}", "## What", "## Why", "## Example", "## Fix"]
    assert f"[{code}]: " in page.partition("## Example")[2].partition("## Fix")[0]


def test_the_index_of_errors(request: pytest.FixtureRequest) -> None:
    rows = []
    for code in CODES:
        page = (DOCS / "errors" / f"{code}.md").read_text(encoding="utf-8")
        what = page.partition("## What")[2].partition("## Why")[0].strip().partition("\n\n")[0]
        sentence = re.split(r"(?<=[.])\s", " ".join(what.split()))[0]
        rows.append(f"| [{code}]({code}.md) | {sentence} |")
    path = DOCS / "errors" / "README.md"
    head = path.read_text(encoding="utf-8").partition("| code |")[0]
    text = "\n".join([f"{head}| code | what |", "|---|---|", *rows]) + "\n"
    if request.config.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8")
    else:
        assert path.read_text(encoding="utf-8") == text


def _codes(tree: ast.AST) -> set[str]:
    """The codes of the diagnostics that a module makes with a literal code."""
    makers = {
        "Diagnostic",
        "source_error",
        "layout_error",
        "target_error",
        "output_error",
        "warning",
    }
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        first = node.args[0]
        is_code = isinstance(first, ast.Constant) and isinstance(first.value, str)
        if is_code and (name in makers or (name == "add" and len(node.args) >= 3)):
            found.add(first.value)
    return found
