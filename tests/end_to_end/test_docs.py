"""README and docs: they are complete and current, their links lead somewhere, and their examples run."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pipeline.cli.main import prep
from pipeline.cli.reference import iter_commands, iter_options, write_reference, write_steps
from pipeline.workflow.config import list_section_fields
from tests.conftest import ROOT, SAMPLE, environment, new_project, run_prep

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)(.*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read_examples(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language, those left out that say "not-run:" and why."""
    blocks = FENCE.findall(page.read_text(encoding="utf-8"))
    return [body for name, note, body in blocks if name == language and not note.strip().startswith("not-run:")]


def read_all_pages() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def test_the_readme_can_be_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_table_of_the_steps_is_current() -> None:
    assert write_steps() in (ROOT / "docs" / "design.md").read_text(), "run: python -m pipeline.cli.reference steps"


def test_the_configuration_page_is_current() -> None:
    page = ROOT / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == write_reference(), (
        "run: python -m pipeline.cli.reference > docs/configuration.md"
    )


def test_every_command_option_and_setting_is_in_the_docs() -> None:
    text = read_all_pages()
    for path, command in iter_commands(prep, "prep"):
        assert f"### {path}\n" in text
        for option in iter_options(command, path):
            assert all(f"`{name}`" in text for name in option.opts), (path, option.opts)
    for section, fields in list_section_fields().items():
        assert f"## [{section}]" in text
        assert all(f"| `{name}` |" in text for name in fields)


def test_every_command_has_an_example_that_a_person_can_copy() -> None:
    for path, command in iter_commands(prep, "prep"):
        if not path.startswith("prep bench"):
            assert re.search(rf"^{path}\b", read_all_pages(), re.MULTILINE), path
        assert isinstance(command, click.Command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        path, anchor = target
        if path.startswith("http"):
            continue
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                target
            )


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, small_table: Path, finished: Path) -> Path:
    """What an example finds: faq.csv, a prep.toml that trains the tiny model, and a workspace with a publication."""
    new_project(tmp_path, tiny_model, small_table)
    shutil.copytree(finished, tmp_path / "work", symlinks=True)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shell_examples_run(page: Path, folder: Path) -> None:
    for line in [line for block in read_examples(page, "sh") for line in block.splitlines()]:
        command, _, comment = line.partition(" #")
        wanted = int(found[1]) if (found := re.search(r"exits (\d+)", comment)) else 0
        name, *arguments = shlex.split(command)
        assert name == "prep", f"{page.name}: {line}: say `sh not-run: why` if a block can't run in the tests"
        if arguments[0] == "init":
            arguments += ["--config", "new.toml"]
        done = run_prep(*arguments, cwd=folder)
        assert done.returncode == wanted, (line, done.stderr)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_run(page: Path, folder: Path) -> None:
    for block in read_examples(page, "python"):
        subprocess.run([sys.executable, "-c", block], cwd=folder, env=environment(), check=True, timeout=300)


def test_an_installed_wheel_needs_no_clone(tmp_path: Path) -> None:
    """The wheel's own files in a venv of its own; the libraries that it needs are those of this environment."""
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        ".",
    ]
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "work", "build", "*.egg-info", "tests"))
    subprocess.run(build, cwd=source, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith("prep_reranker-")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=300)
    python = tmp_path / "venv" / "bin" / "python"
    outside = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, timeout=300, cwd=tmp_path, env=outside)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    libraries = Path(click.__file__).parent.parent
    (packages / "libraries.pth").write_text(f"{libraries}\n")
    shutil.copy(SAMPLE / "questions.csv", tmp_path / "faq.csv")
    for arguments in (["init"], ["build-pairs", "faq.csv", "--config", "empty.toml"]):
        (tmp_path / "empty.toml").touch()
        done = subprocess.run(
            [tmp_path / "venv" / "bin" / "prep", *arguments],
            cwd=tmp_path,
            env=outside,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    where = (
        "import pipeline.cli.main, stages.mining.estimator as e; print(pipeline.cli.main.__file__, list(e.__path__)[0])"
    )
    found = subprocess.run([python, "-c", where], cwd=tmp_path, env=outside, capture_output=True, text=True, check=True)
    assert all(str(tmp_path) in path for path in found.stdout.split())
    assert list(packages.glob("stages/mining/estimator/*.json"))
