"""What is nowhere in the application: code that runs what it reads, and shells built from text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CHECKOUT

MODULES = sorted([*(CHECKOUT / "entk_app").rglob("*.py"), CHECKOUT / "app.py"])

#: Modules that run code out of the data that they read.
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

#: What runs a file by its path.
LOADERS = {"SourceFileLoader", "SourcelessFileLoader", "spec_from_file_location", "run_path", "exec_file"}

#: The one module that does, with the file of the user's score: docs/operations.md says so.
RUNS_THE_SCORE = CHECKOUT / "entk_app" / "scores.py"

#: Of yaml, what makes any object that a file asks for. Its SafeLoader, and what is derived from it, makes plain values.
UNSAFE_YAML = {
    "load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all",
    "Loader", "FullLoader", "UnsafeLoader", "CLoader", "CFullLoader", "CUnsafeLoader", "BaseLoader",
}  # fmt: skip


def find_safe_yaml(tree: ast.AST) -> Iterator[ast.AST]:
    """``yaml.load`` where it is given a SafeLoader that the module derives."""
    derived = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and [ast.unparse(base) for base in node.bases] == ["yaml.SafeLoader"]
    }
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="load") as function,
                keywords=[ast.keyword(arg="Loader", value=ast.Name(id=name))],
            ) if name in derived:
                yield function


def find_unsafe(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    safe = set(find_safe_yaml(tree))
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names if name.name.split(".")[0] in UNSAFE_MODULES)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in UNSAFE_MODULES:
                yield module
            case ast.Call(func=ast.Name(id="eval" | "exec" as name)):
                yield name
            case ast.Attribute(value=ast.Name(id="yaml"), attr=name) if name in UNSAFE_YAML and node not in safe:
                yield f"yaml.{name}"
            case ast.alias(name=name) | ast.Attribute(attr=name) if name in LOADERS:
                yield name
            case ast.Attribute(value=ast.Name(id="os"), attr="system" | "popen" as name):
                yield f"os.{name}"
            case ast.keyword(arg="shell", value=value) if not (isinstance(value, ast.Constant) and not value.value):
                yield "shell="
            case ast.keyword(arg="allow_pickle", value=value) if not (
                isinstance(value, ast.Constant) and not value.value
            ):
                yield "allow_pickle="
            case ast.keyword(arg="safe_mode", value=ast.Constant(value=False)):
                yield "safe_mode=False"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_nothing_that_is_read_is_run(path: Path):
    allowed = ["SourceFileLoader"] if path == RUNS_THE_SCORE else []
    assert list(find_unsafe(path.read_text(encoding="utf-8"))) == allowed


@pytest.mark.parametrize(
    "source",
    ["import pickle", "class L(yaml.Loader): pass", "yaml.load(x, Loader=L)", "from pickle import loads",
     "from importlib.machinery import SourceFileLoader", "runpy.run_path(x)",
     "importlib.util.spec_from_file_location(x, y)", "import dill.source",
     "yaml.load(x)", "yaml.unsafe_load(x)", "eval(x)", "os.system(x)",
     "subprocess.run(x, shell=True)", "subprocess.run(x, shell=y)", "np.load(x, allow_pickle=True)",
     "keras.models.load_model(x, safe_mode=False)"],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(source):
    assert len(list(find_unsafe(source))) == 1
