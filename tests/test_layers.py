"""Imports run downward only, and importing st_hpo costs and needs nothing that it does not use."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from packaging.version import Version

import st_hpo

PACKAGE = Path(st_hpo.__file__).parent
FILES = {
    ".".join(("st_hpo", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
PURE = ["errors", "space", "conversion", "objective", "records", "results", "confirmation", "tables", "files"]
PURE += ["jsonable", "rung_points", "points", "known_points"]
HEAVY = {"torch", "transformers", "sentence_transformers", "datasets", "numpy", "accelerate"}
BACKEND_PACKAGES = {"optuna", "ray", "wandb", "sigopt"}
TRACKER_PACKAGES = {"mlflow", "tensorboard", "tensorboardX", "trackio"}


def imported_by(node: ast.AST, module: str) -> list[str]:
    """The full names that an import statement may bind modules from; empty for any other statement."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        origin = node.module or ""
        if node.level:
            package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            origin = ".".join([*parents, *([origin] if origin else [])])
        return [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    return []


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(module: str, inside_functions: bool, for_types: bool = False) -> set[str]:
    """What a module imports when it is imported itself, or also later, when its functions run."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if is_type_checking(node) and not for_types:
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not inside_functions:
            return
        found.update(imported_by(node, module))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(FILES[module].read_text(encoding="utf-8")))
    return found


def tops(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def within_package(module: str, inside_functions: bool = True) -> set[str]:
    """The modules of st_hpo that a module imports."""
    return {name for name in imports(module, inside_functions) if name in FILES} - {module}


def reachable(module: str) -> set[str]:
    """The module and all modules of st_hpo that importing it loads, the packages around them left aside."""
    seen, waiting = set(), [module]
    while waiting:
        current = waiting.pop()
        if current not in seen and current != "st_hpo":
            seen.add(current)
            waiting += within_package(current, inside_functions=False)
    return seen


def test_the_parser_of_this_file_sees_what_is_there():
    """Otherwise every test below would pass on an empty set."""
    assert {"st_hpo", "st_hpo.backends", "st_hpo.backends.optuna.backend", "st_hpo.trainer"} <= set(FILES)
    assert "optuna" in imports("st_hpo.backends.optuna.backend", inside_functions=True)
    assert "st_hpo.errors" in within_package("st_hpo.space")
    assert "torch" in tops(imports("st_hpo.release", inside_functions=False))


@pytest.mark.parametrize("name", PURE)
def test_the_pure_modules_need_nothing_but_the_standard_library(name):
    loaded = reachable(f"st_hpo.{name}")
    assert not tops(set().union(*(imports(module, inside_functions=False) for module in loaded))) & HEAVY
    needed = tops(set().union(*(imports(module, inside_functions=False, for_types=True) for module in loaded)))
    assert needed <= {*sys.stdlib_module_names, "st_hpo"}


@pytest.mark.parametrize("module", [name for name in FILES if name.startswith("st_hpo.backends.")])
def test_backends_know_no_trainer_and_not_each_other(module):
    package = ".".join(module.split(".")[:3])  # a backend may be a package of several files
    others = {
        name for name in FILES if name.startswith("st_hpo.backends.") and not f"{name}.".startswith(f"{package}.")
    } - {"st_hpo.backends.base", "st_hpo.backends.target"}
    upward = {f"st_hpo.{name}" for name in ("search", "trial", "trainer", "construction", "recipe")} | {"st_hpo"}
    assert not within_package(module) & (upward | others)


def test_only_its_own_backend_imports_a_backends_package_and_only_in_functions():
    for module in FILES:
        found = tops(imports(module, inside_functions=True, for_types=True)) & BACKEND_PACKAGES
        own = module.split(".")[2] if module.startswith(("st_hpo.backends.", "st_hpo.trackers.")) else None
        if module.startswith("st_hpo.report."):
            own = "optuna"  # for its plots and importances, of results of any backend
        # Without a server, SigOpt's spaces are searched by a sampler of Optuna
        assert found <= ({own, "optuna"} if own == "sigopt" else {own}), module
        # What a backend's own `backend` module imports in functions only may import its package at once
        inner = own is not None and module.count(".") == 3 and not module.endswith(".backend")
        at_import = tops(imports(module, inside_functions=False)) & BACKEND_PACKAGES
        assert at_import <= ({own} if inner else set()), module


@pytest.mark.parametrize("inside_functions", [False, True], ids=["at import", "at any time"])
def test_the_modules_depend_on_each_other_in_one_direction(inside_functions):
    graph = {module: within_package(module, inside_functions) for module in FILES}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == set(FILES)
    assert order.index("st_hpo.errors") < order.index("st_hpo.search") < order.index("st_hpo.trainer")
    assert order.index("st_hpo.results") < order.index("st_hpo")


def test_nothing_inside_imports_from_the_package_itself():
    """``from st_hpo import X`` inside of st_hpo would make every module depend on all others."""
    for module in FILES:
        if module != "st_hpo":
            assert "st_hpo" not in imports(module, inside_functions=True), module


@cache
def imported_in_a_fresh_process() -> dict[str, Any]:
    """What importing st_hpo loads beyond sentence-transformers and datasets."""
    program = """
import json, sys
import sentence_transformers, datasets
before = set(sys.modules)
import st_hpo
print(json.dumps({"before": sorted(before), "added": sorted(set(sys.modules) - before)}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_st_hpo_loads_no_other_package():
    added = tops(set(imported_in_a_fresh_process()["added"]))
    assert "st_hpo" in added
    assert added - set(sys.stdlib_module_names) <= {"st_hpo", "tqdm"}


@pytest.mark.parametrize("package", [*sorted(BACKEND_PACKAGES), *sorted(TRACKER_PACKAGES), "plotly", "matplotlib"])
def test_importing_st_hpo_loads_no_backend_and_no_plots(package):
    added = imported_in_a_fresh_process()["added"]
    assert not [name for name in added if name == package or name.startswith(f"{package}.")]


def test_importing_st_hpo_and_sentence_transformers_together_loads_no_backend():
    """transformers imports optuna, ray and wandb itself where it needs them, inside functions."""
    modules = imported_in_a_fresh_process()
    assert not tops({*modules["before"], *modules["added"]}) & BACKEND_PACKAGES


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()
    text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[tool.setuptools.package-data]")[1].split("\n[")[0]
    assert 'st_hpo = ["py.typed"]' in section


# -- names and docstrings

MODULES = [importlib.import_module(name) for name in FILES]


def written_docstring(item: Any) -> str | None:
    """The docstring that was written for it, not an inherited one nor the signature that dataclass writes."""
    doc = vars(item).get("__doc__") if isinstance(item, type) else item.__doc__
    return None if isinstance(item, type) and doc and doc.startswith(f"{item.__name__}(") else doc


@pytest.mark.parametrize("name", [name for name in st_hpo.__all__ if name != "__version__"])
def test_every_public_name_exists_and_has_a_docstring_of_its_own(name):
    assert written_docstring(getattr(st_hpo, name))


def test_the_version_is_one_that_pip_understands():
    assert str(Version(st_hpo.__version__)) == st_hpo.__version__


def test_the_public_names_are_sorted_and_given_once():
    assert st_hpo.__all__ == sorted(st_hpo.__all__) and len(set(st_hpo.__all__)) == len(st_hpo.__all__)


def test_every_error_can_be_imported_from_the_top():
    from st_hpo import errors

    classes = {name for name, item in vars(errors).items() if isinstance(item, type) and issubclass(item, Exception)}
    assert classes and classes <= set(st_hpo.__all__)
    assert all(issubclass(getattr(st_hpo, name), st_hpo.HPOError) for name in classes)


def public_members(module: Any) -> list[tuple[str, Any]]:
    """The module's own public functions and classes, and the public methods and properties of these classes."""
    found = []
    for name, item in vars(module).items():
        own = getattr(item, "__module__", None) == module.__name__
        if name.startswith("_") or not own or not (inspect.isfunction(item) or inspect.isclass(item)):
            continue
        found.append((name, item))
        if inspect.isclass(item):
            for key, member in vars(item).items():
                member = getattr(member, "__func__", member)
                is_lambda = getattr(member, "__name__", None) == "<lambda>"  # the default of a dataclass's field
                if not key.startswith("_") and not is_lambda and isinstance(member, FunctionType | property):
                    found.append((f"{name}.{key}", member))
    return found


def overrides(module: Any, name: str) -> bool:
    """Whether a method of this name is that of a base class from another package, whose words hold here as well."""
    kind, _, method = name.partition(".")
    bases = getattr(module, kind).__mro__[1:] if method else ()
    return any(method in vars(base) and not base.__module__.startswith("st_hpo") for base in bases)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_class_function_and_method_has_a_docstring(module):
    if module.__name__ != "st_hpo._version":
        assert module.__doc__
    assert not [
        name for name, item in public_members(module) if not written_docstring(item) and not overrides(module, name)
    ]


def test_the_docstring_check_sees_the_public_members():
    names = [name for name, _ in public_members(importlib.import_module("st_hpo.results"))]
    assert {"SearchResult", "SearchResult.to_json", "SearchResult.load", "SearchResult.best_trials"} <= set(names)


def test_every_module_is_seen():
    found = {info.name for info in pkgutil.walk_packages(st_hpo.__path__, "st_hpo.")} | {"st_hpo"}
    assert found == set(FILES)
