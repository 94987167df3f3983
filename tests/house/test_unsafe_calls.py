"""No file of the package or the examples runs what it reads: no unpickling, eval, exec, shell, or full torch.load."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for room in ("lightning_so", "examples") for path in (ROOT / room).rglob("*.py"))
BUILTINS = {"eval", "exec", "compile", "__import__"}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
LOADS = {"load", "loads", "open", "Unpickler"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
#: Of a Trainer, what reads the checkpoint that it is given.
TRAINS = {"fit", "validate", "test", "predict"}
#: A run's own request: its parent wrote it a moment ago, in a folder that the parent made.
ALLOWED = {("lightning_so/callbacks/resume/child.py", "pickle.loads")}


def imported(tree: ast.AST) -> dict[str, str]:
    """What each name of a file stands for: `from os import system as s` gives {"s": "os.system"}."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                (a.asname or a.name.split(".")[0]): (a.name if a.asname else a.name.split(".")[0]) for a in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    """`t.load` after `import torch as t` is "torch.load"; "" for what is not a chain of names."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (start := full_name(node.value, names)):
        return f"{start}.{node.attr}"
    return ""


def is_true(call: ast.Call, keyword: str) -> bool:
    """Whether the call has `keyword=True`, in these words."""
    return any(k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is True for k in call.keywords)


def unsafe(source: str) -> Iterator[str]:
    """The calls of a source that may run what they read."""
    tree = ast.parse(source)
    names = imported(tree)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = full_name(call.func, names)
        root, last = name.split(".")[0], name.split(".")[-1]
        shell = [
            k
            for k in call.keywords
            if k.arg == "shell" and not (isinstance(k.value, ast.Constant) and not k.value.value)
        ]
        if name in BUILTINS | SHELLS or (root in PICKLES and last in LOADS) or shell:
            yield name
        elif name == "torch.load" and not is_true(call, "weights_only"):
            yield name
        elif last in TRAINS and any(k.arg == "ckpt_path" for k in call.keywords) and not is_true(call, "weights_only"):
            yield name
        elif name == "numpy.load" and any(k.arg == "allow_pickle" for k in call.keywords):
            yield name


def test_nothing_that_is_read_is_run():
    found = {(str(p.relative_to(ROOT)), name) for p in FILES for name in unsafe(p.read_text())}
    assert found == ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec(text)",
        "import os; os.system('ls')",
        "from os import system as s; s('ls')",
        "import subprocess; subprocess.run('ls', shell=True)",
        "import subprocess; subprocess.run('ls', shell=flag)",
        "import pickle as p; p.load(file)",
        "import torch; torch.load(path)",
        "import torch; torch.load(path, weights_only=False)",
        "import torch as t; t.load(path, weights_only=flag)",
        "from torch import load; load(path)",
        "trainer.fit(model, ckpt_path=path)",
        "trainer.test(model, ckpt_path=path, weights_only=False)",
        "import numpy as np; np.load(path, allow_pickle=True)",
    ],
)
def test_each_kind_is_found(source):
    assert list(unsafe(source))


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "import torch; torch.compile(f)", "torch.load(p, weights_only=True)", "trainer.fit(model)"],
)
def test_what_only_looks_alike_is_not(source):
    assert not list(unsafe(source))
