import ast
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import lungml
from tasks import caching
from tasks.caching import INFERENCE_MODULES, JUDGING_MODULES, TRAINING_MODULES, code_digest, digest, kept


def test_a_digest_is_the_same_in_every_process() -> None:
    # The beginning of sha256('{"a": [1, 2.5], "b": null}'); another one would remake everything that lies on disk.
    assert digest({"b": None, "a": (1, 2.5)}) == "68982516a4a37116914e58df"


@pytest.mark.parametrize("other", [{"a": 1.0}, {"a": True}, {"a": "1"}, {"a": [1]}, {"a": 2}, {"b": 1}, {}, [1], None])
def test_other_content_has_another_digest(other: object) -> None:
    assert digest(other) != digest({"a": 1})


def test_the_order_of_names_does_not_count_and_that_of_items_does() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([1, 2]) != digest([2, 1])


def test_what_json_does_not_know_counts_by_its_text() -> None:
    @dataclass(frozen=True)
    class Setting:
        width: int

    assert digest(Path("a/b")) == digest("a/b")
    assert digest([Setting(1)]) != digest([Setting(2)])


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of lungml's sources that `code_digest` looks at."""
    root = tmp_path / "lungml"
    shutil.copytree(Path(lungml.__file__).parent, root, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(caching.lungml, "__file__", str(root / "__init__.py"))
    code_digest.cache_clear()
    yield root
    code_digest.cache_clear()


def after(modules: tuple[str, ...]) -> str:
    """The digest that a new process would find."""
    code_digest.cache_clear()
    return code_digest(modules)


@pytest.mark.parametrize("name", ["fit.py", "models/unet.py", "recipes/segmentation.py", "models/new.py"])
def test_changed_code_has_another_digest(sources: Path, name: str) -> None:
    before = code_digest(TRAINING_MODULES)
    assert after(TRAINING_MODULES) == before
    with (sources / name).open("a") as handle:
        handle.write("# a change\n")
    assert after(TRAINING_MODULES) != before


def test_code_that_is_not_named_does_not_count(sources: Path) -> None:
    before = code_digest(INFERENCE_MODULES)
    with (sources / "phantom.py").open("a") as handle:
        handle.write("# a change\n")
    (sources / "models" / "notes.txt").write_text("no code")
    assert after(INFERENCE_MODULES) == before


@pytest.mark.parametrize("modules", [TRAINING_MODULES, INFERENCE_MODULES])
def test_every_named_module_is_there(modules: tuple[str, ...]) -> None:
    root = Path(lungml.__file__).parent
    assert [name for name in modules if not (root / name).exists()] == []


def test_finished_work_is_a_completed_state_named_cached() -> None:
    state = kept(Path("a"))
    assert (state.name, state.is_completed(), state.is_failed()) == ("Cached", True, False)
    assert state.result() == Path("a")


# What does not decide a result, though a module that does imports it: errors, files, types and names only.
HARMLESS = {
    "checkpoint.py", "devices.py", "errors.py", "evidence.py", "files.py", "groups.py", "luna.py", "scorecard.py",
}  # fmt: skip


def imported(root: Path, start: str) -> set[str]:
    """The modules of lungml that one imports, directly or through others, but not through harmless ones."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in seen or name in HARMLESS:
            continue
        seen.add(name)
        for node in ast.walk(ast.parse((root / name).read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("lungml"):
                continue
            module = (node.module or "").split(".")[1:]
            for parts in [module, *([*module, alias.name] for alias in node.names)]:
                if parts:
                    path = Path(*parts)
                    waiting += [str(f) for f in (path.with_suffix(".py"), path / "__init__.py") if (root / f).exists()]
    return seen


@pytest.mark.parametrize(
    ("start", "modules"),
    [
        ("findings.py", INFERENCE_MODULES),
        ("answers.py", INFERENCE_MODULES),
        ("annotated.py", (*INFERENCE_MODULES, *JUDGING_MODULES)),
        ("candidate_recall.py", TRAINING_MODULES),
        ("fit.py", TRAINING_MODULES),
    ],
)
def test_whatever_decides_a_result_is_in_its_key(start: str, modules: tuple[str, ...]) -> None:
    root = Path(lungml.__file__).parent
    missing = {name for name in imported(root, start) if name not in modules and name.split("/")[0] not in modules}
    assert missing == set()
