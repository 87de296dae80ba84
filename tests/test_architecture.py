"""Rules of the code base that a reader relies on, checked by machine."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*ROOT.glob("bootstrap/**/*.py"), *ROOT.glob("generators/**/*.py")])
WITHOUT_TORCH = (
    "bootstrap",
    "bootstrap.recipe",
    "bootstrap.presets",
    "bootstrap.runlog",
    "bootstrap.curves",
    "bootstrap.decompose_plot",
    "bootstrap.choice_map",
    "bootstrap.effect_plot",
    "bootstrap.plot",
    "bootstrap.grid",
    "bootstrap.index",
    "bootstrap.linear_toys_plot",
    "bootstrap.overlay",
    "bootstrap.scatter",
    "bootstrap.presets.figures",
    "bootstrap.page",
    "bootstrap.loop",
    "bootstrap.report",
    "bootstrap.reuse",
    "bootstrap.reuse_plot",
    "bootstrap.summary",
    "bootstrap.sinks",
    "bootstrap.cli",
)
each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def public_functions(path):
    """Functions and methods without a leading underscore, but not those inside functions."""
    scopes = [tree(path)]
    while scopes:
        for node in scopes.pop().body:
            if isinstance(node, ast.ClassDef):
                scopes.append(node)
            elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield node


def annotations(function):
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return {a.arg: a.annotation for a in named if a and a.arg not in ("self", "cls")}


def test_there_are_files_to_check():
    assert {"cli.py", "worlds.py", "denoiser.py"} <= {path.name for path in FILES}


def test_reading_drawing_and_parsing_do_not_import_torch():
    program = (
        "import importlib, sys\n"
        f"for name in {WITHOUT_TORCH!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@each_file
def test_a_module_opens_with_its_promise(path):
    assert ast.get_docstring(tree(path))


@each_file
def test_every_public_function_has_a_docstring(path):
    assert [f.name for f in public_functions(path) if not ast.get_docstring(f)] == []


@each_file
def test_every_public_function_is_annotated(path):
    bare = [
        f"{function.name}: {name}"
        for function in public_functions(path)
        for name, annotation in [*annotations(function).items(), ("return", function.returns)]
        if annotation is None
    ]
    assert bare == []


@each_file
def test_only_the_command_line_prints(path):
    calls = [node.func for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    prints = [f.lineno for f in calls if isinstance(f, ast.Name) and f.id == "print"]
    assert prints == [] or path.name == "cli.py"


@each_file
def test_nothing_asks_whether_the_world_is_ideal(path):
    tests = [ast.unparse(node.test) for node in ast.walk(tree(path)) if isinstance(node, ast.If)]
    assert [text for text in tests if "is_ideal" in text or text == "ideal"] == []


@pytest.mark.parametrize("name", ["train", "pool", "evaluate", "augment", "optimizers", "batch"])
def test_what_trains_does_not_know_the_names_of_worlds(name):
    nodes = list(ast.walk(tree(ROOT / "bootstrap" / f"{name}.py")))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    names |= {node.value for node in nodes if isinstance(node, ast.Constant)}
    assert {word for word in names if str(word).lower() in ("ideal", "is_ideal", "real")} == set()


@each_file
def test_no_pickle_is_read(path):
    names = {node.id for node in ast.walk(tree(path)) if isinstance(node, ast.Name)}
    loads = [
        ast.unparse(node)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert "pickle" not in names
    assert all("weights_only=True" in call for call in loads)


@each_file
def test_the_global_generators_are_never_seeded_or_drawn_from(path):
    text = path.read_text(encoding="utf-8")
    assert "np.random.seed" not in text
    assert "np.random.default_rng()" not in text
    assert text.count("torch.manual_seed(") <= text.count("torch.random.fork_rng(")


@each_file
def test_no_file_keeps_a_reference_to_the_command_line(path):
    imported = [node.module for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)]
    assert "bootstrap.cli" not in imported or path.name == "__main__.py"
