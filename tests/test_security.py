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

#: Of yaml, the one reader that makes nothing but plain values.
SAFE_YAML = {"safe_load", "safe_dump", "YAMLError", "SafeDumper", "SafeLoader", "nodes"}


def find_unsafe(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names if name.name.split(".")[0] in UNSAFE_MODULES)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in UNSAFE_MODULES:
                yield module
            case ast.Call(func=ast.Name(id="eval" | "exec" as name)):
                yield name
            case ast.Attribute(value=ast.Name(id="yaml"), attr=name) if name not in SAFE_YAML:
                yield f"yaml.{name}"
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
    assert list(find_unsafe(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "import dill.source", "yaml.load(x)", "yaml.unsafe_load(x)",
     "eval(x)", "os.system(x)", "subprocess.run(x, shell=True)", "subprocess.run(x, shell=y)",
     "np.load(x, allow_pickle=True)",
     "keras.models.load_model(x, safe_mode=False)"],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(source):
    assert len(list(find_unsafe(source))) == 1
