"""What no module of ours does: read code out of files, or hand a text to a shell.

The rules look at the syntax tree, so that a comment that names a danger is none, and one in disguise is found.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGES = ("flows", "tasks", "lungml")
# Each reads code along with data.
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput",
    "subprocess.getstatusoutput", "asyncio.create_subprocess_shell", "pd.read_pickle", "pandas.read_pickle",
    "pty.spawn", "torch.hub.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "mlflow.pytorch.load_model",
    "mlflow.pyfunc.load_model", "mlflow.sklearn.load_model", "torch.package.PackageImporter", "runpy.run_path",
}  # fmt: skip
# A safe value that the call must be given as it stands there.
REQUIRED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
STARTS_PROGRAMS = {f"subprocess.{name}" for name in ("run", "Popen", "call", "check_call", "check_output")} | {
    "psutil.Popen",
    "asyncio.create_subprocess_exec",
}


def dangers(source: str) -> list[str]:
    """What a module does of all that: line and name."""
    tree = ast.parse(source)
    names = dict(_aliases(tree))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: imports {name}" for name in modules if name.split(".")[0] in UNSAFE_MODULES]
        if isinstance(node, ast.Name | ast.Attribute) and _called(node, names) in UNSAFE_CALLS - {"compile"}:
            found.append(f"{node.lineno}: {_called(node, names)}")  # also where it is only handed on
        if not isinstance(node, ast.Call):
            continue
        called, given = _called(node.func, names), {keyword.arg: keyword.value for keyword in node.keywords}
        if called == "compile":
            found.append(f"{node.lineno}: compile")
        if called in REQUIRED:
            name, value = REQUIRED[called]
            there = given.get(name)
            if not isinstance(there, ast.Constant) or there.value is not value:
                found.append(f"{node.lineno}: {called} without {name}={value}")
        shell = given.get("shell")
        if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
            found.append(f"{node.lineno}: shell=")
        if called in STARTS_PROGRAMS and not (node.args and _is_list(node.args[0], tree)):
            found.append(f"{node.lineno}: {called} of something that is no list")
    return sorted(set(found))


def _aliases(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What a name stands for, where an import or an assignment gave it: load -> torch.load."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.asname, alias.name) for alias in node.names if alias.asname)


def _called(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted name of what is called, as far as one can tell."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([names.get(node.id, node.id), *reversed(parts)]).removeprefix("builtins.")


def _is_list(node: ast.expr, tree: ast.AST) -> bool:
    """Whether a command is a list of words: written as one, or a name that only ever stands for one."""
    if isinstance(node, ast.List):
        return True
    if not isinstance(node, ast.Name):
        return False
    stands_for = [
        assigned.value
        for assigned in ast.walk(tree)
        if isinstance(assigned, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == node.id for target in assigned.targets)
    ]
    return bool(stands_for) and all(isinstance(value, ast.List) for value in stands_for)


SOURCES = sorted(path for package in PACKAGES for path in (PROJECT / package).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_no_module_of_ours_is_dangerous(path: Path) -> None:
    assert dangers(path.read_text(encoding="utf-8")) == []


def test_all_sources_are_looked_at() -> None:
    assert {path.relative_to(PROJECT).parts[0] for path in SOURCES} == set(PACKAGES)
    assert len(SOURCES) > 100


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import cloudpickle as safe",
        "from pickle import loads",
        "from joblib import load",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=flag)",
        "from torch import load\nload(path)",
        "from torch import load as read\nread(path)",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy\nnumpy.load(path)",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import pandas as pd\npd.read_pickle(path)",
        "eval(text)",
        "exec(text)",
        "import builtins\nbuiltins.eval(text)",
        "run = eval",
        "compile(text, 'name', 'exec')",
        "import os\nos.system(text)",
        "from os import system\nsystem(text)",
        "import os\nos.popen(text)",
        "import subprocess\nsubprocess.run(command, shell=True)",
        "import subprocess\nsubprocess.run(['a'], shell=flag)",
        "start(['a'], shell=True)",
        "import subprocess\nsubprocess.run(f'git {name}')",
        "import subprocess\nsubprocess.run('git ' + name)",
        "import subprocess\nsubprocess.Popen(' '.join(words))",
        "import subprocess\nsubprocess.run(text.split())",
        "import subprocess\ncommand = 'git status'\nsubprocess.run(command)",
        "from subprocess import Popen\nPopen('a')",
        "from subprocess import Popen as start\nstart('a')",
        "import subprocess\nsubprocess.getoutput('a')",
        "import mlflow\nmlflow.pyfunc.load_model(uri)",
    ],
)
def test_a_danger_is_found(source: str) -> None:
    assert dangers(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "import re\nre.compile('a')",
        "import torch\ntorch.compile(model)",
        "import torch\ntorch.load(path, weights_only=True, map_location='cpu')",
        "import numpy as np\nwith np.load(path, allow_pickle=False) as held: pass",
        "import subprocess\nsubprocess.run(['git', name], shell=False)",
        "import subprocess\ncommand = ['git', name]\nsubprocess.run(command)",
        "'pickle.loads(x); os.system(y)'  # eval(z)",
        "from ast import literal_eval\nliteral_eval(text)",
    ],
)
def test_what_is_safe_is_let_pass(source: str) -> None:
    assert dangers(source) == []


SERVERS = (["prefect", "server", "start"], ["mlflow", "ui"], ["mlflow", "server"], ["mlflow", "models", "serve"])
EVERY_ADDRESS = ("0.0.0.0", "[::]")


def servers_without_host(source: str) -> list[str]:
    """Commands written as lists that start a server and leave the address to it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.List | ast.Tuple | ast.Call):
            items = node.args if isinstance(node, ast.Call) else node.elts
            words = [item.value if isinstance(item, ast.Constant) else None for item in items]
            starts = any(words[i : i + len(s)] == s for s in SERVERS for i in range(len(words)))
            if starts and "--host" not in words:
                found.append(f"{node.lineno}: {' '.join(str(word) for word in words)}")
    return found


def test_a_server_that_chooses_its_own_address_is_found() -> None:
    assert servers_without_host("start(['prefect', 'server', 'start', '--port', port])")
    assert servers_without_host("start('MLflow UI', 'mlflow', 'ui', '--port', port)")
    assert servers_without_host("command = ['mlflow', 'models', 'serve', '-m', uri]")
    assert servers_without_host("start(['mlflow', 'ui', '--host', host, '--port', port])") == []
    assert servers_without_host("['prefect', 'worker', 'start']") == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_no_server_of_ours_listens_to_the_whole_network(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert servers_without_host(source) == []
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    assert [text for text in texts if isinstance(text, str) and any(address in text for address in EVERY_ADDRESS)] == []


def test_services_listen_on_loopback_unless_told_otherwise() -> None:
    import inspect

    from flows.up import up

    assert inspect.signature(up).parameters["host"].default == "127.0.0.1"


def test_the_page_on_serving_gives_no_other_address() -> None:
    page = (PROJECT / "docs" / "serving.md").read_text(encoding="utf-8")
    commands = [line for line in page.splitlines() if line.startswith(("mlflow ", "prefect "))]
    assert commands
    assert [line for line in commands if "--host" in line or " -h " in line] == []
    assert "loopback" in page
