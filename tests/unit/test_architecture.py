"""What holds the house together: who imports whom, what --help may load, and that everything is documented."""

import ast
import importlib
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import click
import pytest

from pipeline.cli.main import prep
from pipeline.workflow.config import list_section_fields
from pipeline.workflow.graph import PIPELINE, PUBLISHED_OUTPUTS, STAGES
from pipeline.workflow.stage import Store, resolve_function

ROOT = Path(__file__).parents[2]
HEAVY = {
    "torch",
    "transformers",
    "sentence_transformers",
    "polars",
    "pandas",
    "pyarrow",
    "numpy",
    "faiss",
    "pydantic",
    "rich",
}


def list_imported_modules(path: Path) -> set[str]:
    """The modules that a module imports anywhere in it, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def test_stages_never_import_the_pipeline() -> None:
    modules = list((ROOT / "stages").rglob("*.py"))
    assert len(modules) > 10
    assert [p for p in modules if "pipeline" in {name.split(".")[0] for name in list_imported_modules(p)}] == []


ALLOWED_PACKAGES = {
    "cli": {"cli", "executors", "report", "workflow"},
    "executors": {"executors"},
    "report": {"report", "workflow"},
    "workflow": {"workflow"},
}
"""Folder of pipeline/ -> those of its folders that it may import."""


def test_the_folders_of_the_pipeline_import_one_another_one_way() -> None:
    assert ALLOWED_PACKAGES.keys() == {path.parent.name for path in ROOT.glob("pipeline/*/__init__.py")}
    for package, allowed in ALLOWED_PACKAGES.items():
        for path in (ROOT / "pipeline" / package).rglob("*.py"):
            imported = [name.split(".") for name in list_imported_modules(path) if name.startswith("pipeline")]
            assert {parts[1] for parts in imported} <= allowed, path


def test_init_files_are_empty() -> None:
    assert [
        p for p in [*ROOT.glob("pipeline/**/__init__.py"), *ROOT.glob("stages/**/__init__.py")] if p.read_text()
    ] == []


def test_files_that_are_no_code_are_in_the_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folders = [(ROOT / package.replace(".", "/"), globs) for package, globs in declared.items()]
    packaged = {path for folder, globs in folders for glob in globs for path in folder.glob(glob)}
    others = {path for top in ("pipeline", "stages") for path in (ROOT / top).rglob("*") if path.is_file()}
    assert packaged
    assert {path for path in others if path.suffix not in (".py", ".pyc")} == packaged


@pytest.mark.parametrize("arguments", [["--help"], ["init", "--help"]], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom pipeline.cli.main import prep\n"
        "try: prep.main(sys.argv[1:], standalone_mode=False)\nexcept SystemExit: pass\n"
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    help_text, loaded = done.stdout.rsplit("LOADED", 1)
    assert "Usage:" in help_text
    assert set(loaded.split()) & HEAVY == set()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_stage_keeps_the_contract(stage) -> None:  # type: ignore[no-untyped-def]
    module = stage.load_module()
    assert isinstance(module.VERSION, int)
    assert callable(module.run)
    for name, field in module.Params.model_fields.items():
        assert field.description and len(field.description) > 10, f"{stage.name}.{name} has no help"


def test_stages_import_nothing_heavy_before_they_run() -> None:
    script = "import sys, importlib\n" + "\n".join(f"importlib.import_module({s.module!r})" for s in STAGES)
    script += "\nprint(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) & {"torch", "transformers", "sentence_transformers", "faiss", "sklearn", "pandas"} == set()


def test_the_graph_is_consistent() -> None:
    outputs: set[str] = set()
    for stage in STAGES:
        inputs = [*stage.inputs, *stage.optional_inputs]
        assert set(inputs) <= outputs, f"{stage.name} reads what no stage before it writes"
        assert set(stage.published_inputs.values()) <= outputs
        names = [Path(path).stem for path in inputs] + [*stage.published_inputs]
        names += [name for name, _, _ in stage.model_inputs]
        assert len(names) == len(set(names)), f"{stage.name} is given two inputs under one name"
        outputs |= {f"{stage.name}/{output}" for output in stage.outputs}
    assert set(PUBLISHED_OUTPUTS) <= outputs
    assert [stage.name for stage in STAGES if stage not in PIPELINE] == ["gate"]


def test_a_store_is_read_after_it_is_written() -> None:
    written: set[Store] = set()
    for stage in STAGES:
        written |= set(stage.writes)
        assert set(stage.reads) <= written, stage.name
    assert written == set(Store)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_modules_and_files_of_the_graph_exist(stage) -> None:  # type: ignore[no-untyped-def]
    for reference in (stage.key_extras, stage.server_key_extras, stage.is_valid):
        assert reference is None or callable(resolve_function(reference))
    params = stage.load_module().Params()
    assert set(stage.select_inputs(params)) >= set(stage.inputs)
    for _, source, field in stage.model_inputs:
        assert field in next(one for one in STAGES if one.name == source).load_module().Params.model_fields


def test_a_key_that_several_stages_read_means_the_same() -> None:
    fields = list_section_fields()
    for stage in STAGES:
        params = stage.load_module().Params
        for name, section in params.field_sections(stage.section).items():
            field, shown = params.model_fields[name], fields[section][name]
            assert (field.default, field.description, str(field.metadata)) == (
                shown.default,
                shown.description,
                str(shown.metadata),
            ), (stage.name, name)
            # only the encoder computes in float16
            assert field.annotation == shown.annotation or name == "dtype", (stage.name, name)


@pytest.mark.parametrize("name", prep.commands)
def test_every_command_is_documented(name: str) -> None:
    command = prep.commands[name]
    assert command.help
    assert "Example" in command.help
    assert f"prep {name}" in command.help
    assert f"prep {name}" in (ROOT / "README.md").read_text()
    context = click.Context(command, info_name=name)
    for param in command.get_params(context):
        if isinstance(param, click.Option):
            assert param.help, f"{name} --{param.name} has no help"


def test_every_module_has_a_docstring() -> None:
    for folder in ("pipeline", "stages"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "__init__.py":
                assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
                importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


def list_modules() -> dict[str, ast.Module]:
    """Every module of the two packages by its dotted name."""
    paths = [path for folder in ("pipeline", "stages") for path in (ROOT / folder).rglob("*.py")]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
        for path in paths
        if path.name != "__init__.py"
    }


def read_imports(modules: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports: at the top, in functions, and for types alone."""
    found: dict[str, set[str]] = {name: set() for name in modules}
    for name, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                wanted = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
                found[name] |= {one for one in wanted if one in modules}
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name in modules}
    return found


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    """The nodes of a cycle, in order; empty if there is none."""
    finished: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in finished:
            return []
        for target in sorted(edges[node]):
            if cycle := visit(target, [*path, node]):
                return cycle
        finished.add(node)
        return []

    return next((cycle for node in sorted(edges) if (cycle := visit(node, []))), [])


def test_a_cycle_is_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c"]
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert find_cycle(read_imports(list_modules())) == []


def test_no_packages_import_each_other_in_a_circle() -> None:
    packages: dict[str, set[str]] = {}
    for name, imports in read_imports(list_modules()).items():
        package = name.rsplit(".", 1)[0]
        packages.setdefault(package, set()).update(one.rsplit(".", 1)[0] for one in imports)
    assert find_cycle({name: targets - {name} for name, targets in packages.items()}) == []


def test_a_folder_has_one_subject() -> None:
    counts = Counter(name.rsplit(".", 1)[0] for name in list_modules())
    assert {folder: n for folder, n in counts.items() if n > 16} == {}


def test_a_top_level_name_has_one_meaning() -> None:
    places: dict[str, list[str]] = {}
    for module, tree in list_modules().items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                places.setdefault(node.name, []).append(module)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        places.setdefault(target.id, []).append(module)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                places.setdefault(node.target.id, []).append(module)
    hooks = {"Params", "VERSION", "run", "key_extras", "is_valid", "skipped_inputs"}  # what every step's module has
    assert {name: modules for name, modules in places.items() if len(modules) > 1 and name not in hooks} == {}
