"""The package keeps to docs/architecture.md: which way imports point, what is public, what importing costs."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_failures"
NAME = PACKAGE.name
HEAVY = (
    *("open_clip", "wandb", "matplotlib", "timm", "diffusers", "pytorch_lightning", "tensorboard", "numba"),
    *("jinja2", "vl_convert"),
)
MAX_ROOT_ENTRIES = 30
MAX_ORDER_LINES = 15

# Attributes of other packages that are private and have no public equivalent; each has a test that notices a change.
FOREIGN_INTERNALS = {
    "cli/heartbeat.py": {"_current_frames"},  # documented, whatever its name says
    "doctor/data.py": {"_accelerator_connector"},
    "stats/kernels/__init__.py": {"_cache"},
    "steering/loader_patch.py": {"_iterator"},
    "trainer/index_recorder.py": {"_combined_loader", "_iterator", "_num_yielded", "_sampler_iter"},
    "writers/projector.py": {"_projector_config"},
}


def module_name(path: Path) -> str:
    """Dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
FOLDERS = [path.parent for path in FILES.values() if path.name == "__init__.py" and path.parent != PACKAGE]


def imports(source: str) -> Iterator[str]:
    """Modules of the package that a source imports, for type hints too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == NAME:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in FILES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == NAME)


def order_of_rooms() -> dict[str, int]:
    """Room -> line of the list in docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    listing = re.search(r"## Import order.*?```\n(.*?)```", text, re.DOTALL).group(1)
    assert len(listing.splitlines()) <= MAX_ORDER_LINES
    return {name.strip(): row for row, line in enumerate(listing.splitlines()) for name in line.split(",")}


def order_of_files(docstring: str) -> list[str]:
    """The files of a folder as its ``__init__`` lists them."""
    listing = docstring.split("only from those above it::", 1)
    return re.findall(r"^ {4}(\w+) ", listing[1], re.MULTILINE) if len(listing) == 2 else []


def against_rooms(module: str, source: str, order: dict[str, int]) -> list[str]:
    """Imports of another room that does not stand above that of the module."""
    own = module.split(".")[1]
    rooms = {name.split(".")[1] for name in imports(source) if "." in name}
    return sorted(room for room in rooms if room != own and order[room] >= order[own])


def against_files(folder: str, child: str, source: str, order: list[str]) -> list[str]:
    """Imports of another file or folder beside this one that does not stand above it."""
    names = {name[len(folder) + 1 :].split(".")[0] for name in imports(source) if name.startswith(folder + ".")}
    return sorted(name for name in names if name != child and order.index(name) >= order.index(child))


# -- which way imports point -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [name for name in FILES if name != NAME])
def test_imports__of_rooms_point_up(module):
    assert against_rooms(module, FILES[module].read_text(), order_of_rooms()) == []


def test_imports__every_room_is_listed_and_nothing_else():
    assert set(order_of_rooms()) == {name.split(".")[1] for name in FILES if name != NAME}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(PACKAGE)))
def test_imports__of_files_in_a_room_point_up(folder):
    order = order_of_files(ast.get_docstring(ast.parse((folder / "__init__.py").read_text()), clean=False))
    children = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert sorted(order) == sorted(children - {"__init__"})
    for child in order:
        for path in [folder / f"{child}.py", *(folder / child).rglob("*.py")]:
            if path.is_file():
                assert against_files(module_name(folder / "__init__.py"), child, path.read_text(), order) == [], path


def test_imports__these_tests_can_fail():
    source = f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from {NAME}.cli import main\n"
    assert against_rooms(f"{NAME}.errors", source, order_of_rooms()) == ["cli"]
    beside = f"from {NAME}.trees.fit import FailureTree"
    assert against_files(f"{NAME}.trees", "growing", beside, ["growing", "fit"]) == ["fit"]
    assert order_of_files("Files, each importing only from those above it::\n\n    growing  Grows.\n") == ["growing"]


# -- what is private -------------------------------------------------------------------------------------------------


def reached_into(source: str) -> set[str]:
    """Private attributes read off something else than an object of a class that this source defines."""
    tree = ast.parse(source)
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_self(node.value)}
    own |= {node.target.id for node in ast.walk(tree) if isinstance(node, ast.AnnAssign) and _is_name(node.target)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    own |= {"_replace", "_fields", "_asdict"}  # public API of named tuples
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and re.match(r"_[^_]", node.attr)
        and not _is_self(node.value)
        and node.attr not in own
    }


def _is_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Name)


def _is_self(node: ast.expr) -> bool:
    is_super = isinstance(node, ast.Call) and _is_name(node.func) and node.func.id == "super"
    return is_super or (_is_name(node) and node.id in ("self", "cls"))


@pytest.mark.parametrize("module", FILES)
def test_private_attributes__stay_private(module):
    path = FILES[module]
    allowed = FOREIGN_INTERNALS.get(path.relative_to(PACKAGE).as_posix(), set())
    assert reached_into(path.read_text()) == allowed


def test_private_attributes__this_test_can_fail():
    assert reached_into("def f(callback: Any) -> None:\n    callback._steering.reset()") == {"_steering"}
    assert reached_into("class A:\n    def f(self, other):\n        self._x = other._x") == set()


# -- what is public --------------------------------------------------------------------------------------------------


def test_root__holds_rooms_only():
    entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MAX_ROOT_ENTRIES, sorted(path.name for path in entries)
    assert {path.name for path in entries if path.suffix == ".py"} <= {
        *("__init__.py", "callback.py", "errors.py", "pytorch_lightning.py"),
    }


@pytest.mark.parametrize("module", FILES)
def test_faces__are_the_only_modules_with_public_names(module):
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    is_face = FILES[module].name == "__init__.py" or module.count(".") == 1
    assert is_face or not hasattr(loaded, "__all__")
    for public in getattr(loaded, "__all__", []):
        assert getattr(loaded, public).__doc__, public


# -- tests -----------------------------------------------------------------------------------------------------------

FEW_STATEMENTS = 12
"""Modules with fewer statements in their functions are tested where they are used."""

TESTED_ELSEWHERE = {
    "doctor/reference_images.py": "doctor/test_caption_checks.py",
    "interventions/filtered.py": "end_to_end/test_added.py",  # needs the pool and the model of a training
    "interventions/head_measures.py": "interventions/test_retrain_head.py",
    "interventions/synthesis/generate.py": "interventions/test_synthetic.py",
    "methods/sparse.py": "end_to_end/test_sparse.py",
    "stats/kernels/elastic_net.py": "sparse/test_solver.py",
    "stats/kernels/gain.py": "trees/test_information_gain.py",
    "stats/kernels/smo.py": "directions/test_svm.py",  # equals scikit-learn's support vector machine
    "stats/kernels/top_gains.py": "trees/test_information_gain.py",
    "stats/kernels/tree.py": "trees/test_growing.py",  # equals scikit-learn's decision tree
    "interventions/refit.py": "interventions/test_retrain_head.py",
    "steering/feature_access.py": "end_to_end/test_sparse.py",
    "steering/last_layer.py": "interventions/test_retrain_head.py",
    "steering/sample_features.py": "end_to_end/test_sparse.py",
    "steering/training_judge.py": "end_to_end/test_added.py",  # these two need a Trainer in the middle of a fit
    "steering/training_view.py": "end_to_end/test_interventions.py",
    "trainer/grading_notes.py": "end_to_end/test_trust_grading.py",  # notes on real validations
    "trainer/epoch_end.py": "end_to_end/test_callback_edges.py",
    "trainer/reference_embeddings.py": "end_to_end/test_trust_reading.py",
    "writers/class_table.py": "writers/test_generic.py",
    "trainer/held_out_parts.py": "end_to_end/test_interventions.py",  # of a validation with interventions
}
"""Modules without a test file of their own, and the file that tests them."""


def statements(source: str) -> int:
    """Number of statements in the functions of a source, without docstrings and the bodies of protocols."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return sum(not _is_constant(node) for function in functions for node in function.body)


def _is_constant(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def test_tests__mirror_the_modules():
    modules = {path.relative_to(PACKAGE) for path in FILES.values() if path.name != "__init__.py"}
    modules = {path for path in modules if statements((PACKAGE / path).read_text()) >= FEW_STATEMENTS}
    lacking = {path for path in modules if not (ROOT / "tests" / path.with_name(f"test_{path.name}")).is_file()}
    assert {path.as_posix() for path in lacking} <= set(TESTED_ELSEWHERE)
    assert all((ROOT / "tests" / path).is_file() for path in TESTED_ELSEWHERE.values())


def test_statements__of_functions_count():
    assert (
        statements(
            '"""Text."""\nA = 1\nclass B:\n    def f(self):\n        """Text."""\n        x = 1\n        return x\n'
        )
        == 2
    )
    assert statements('class P(Protocol):\n    def f(self) -> int:\n        """Text."""\n        ...\n') == 0


# -- what importing costs --------------------------------------------------------------------------------------------


STATEMENTS = (
    "from lightning_failures import FailureModes; import lightning_failures.cli.lightning_commands",
    "from lightning_failures.generators.digits import DigitsGenerator; DigitsGenerator()",
    "import timm.version",
)


@pytest.fixture(scope="module")
def loaded() -> list[set[str]]:
    """Return the top-level modules that are loaded after each statement, beyond those that Lightning itself loads."""
    code = f"""
import sys, json
import lightning.pytorch
before = set(sys.modules)
for statement in {STATEMENTS}:
    exec(statement)
    print(json.dumps(sorted({{name.split(".")[0] for name in set(sys.modules) - before}})))
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return [set(json.loads(line)) for line in run.stdout.splitlines()[-len(STATEMENTS) :]]


@pytest.mark.slow
def test_import__loads_nothing_heavy(loaded):
    assert not loaded[0] & set(HEAVY)


@pytest.mark.slow
def test_import__generator_of_digits_loads_no_diffusers(loaded):
    assert not loaded[1] & {"diffusers", "open_clip"}


@pytest.mark.slow
def test_import__this_test_can_fail(loaded):
    assert "timm" in loaded[2] & set(HEAVY)


# -- asserts ---------------------------------------------------------------------------------------------------------


def asserted_logic(source: str) -> list[str]:
    """Return the asserts that do more than tell a type checker what is known; ``python -O`` leaves them out."""
    kept = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            test = node.test
            is_there = isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.IsNot)
            is_kind = isinstance(test, ast.Call) and isinstance(test.func, ast.Name)
            calls = [one for one in ast.walk(test) if isinstance(one, ast.Call | ast.NamedExpr)]
            if not (is_there and not calls) and not (is_kind and len(calls) == 1 and test.func.id in TYPE_GUARDS):
                kept.append(ast.unparse(node))
    return kept


TYPE_GUARDS = {"isinstance", "gives_texts", "gives_maps", "takes_embeddings"}


@pytest.mark.parametrize("module", FILES)
def test_asserts__only_narrow_types(module):
    assert asserted_logic(FILES[module].read_text()) == []


def test_asserts__this_test_can_fail():
    assert asserted_logic("assert stack.pop() is not None") == ["assert stack.pop() is not None"]
    assert asserted_logic("assert len(rows) == 3") == ["assert len(rows) == 3"]
    assert asserted_logic("assert x is not None\nassert isinstance(x, int)") == []
