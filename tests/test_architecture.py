"""The rules of docs/architecture.md, held by reading the source, and proof that each can fail."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "data_prep": set(),
    "megatron_ext": set(),
    "launch": {"data_prep", "megatron_ext"},
    "slurm": {"launch", "data_prep", "megatron_ext"},
    "analysis": {"launch", "data_prep", "megatron_ext"},
}

ONE_DOOR = {
    "deepspeed": ["launch/engine.py", "launch/safe_load.py"],
    "megatron": ["megatron_ext/*.py"],
    "h5py": ["launch/results.py", "launch/evaluation_file.py"],
    "submitit": ["slurm/*.py"],
    "scipy": ["analysis/*.py"],
    "matplotlib": ["analysis/figures.py"],
    "sentencepiece": ["data_prep/tokenizers.py"],
    "PIL": ["data_prep/*.py"],
    "mathematics_dataset": ["data_prep/mathematics_generator.py"],
    "sympy": ["data_prep/mathematics_generator.py"],
    "numba": ["megatron_ext/cpu_attention.py"],
    "av": ["data_prep/videos.py"],
}

# These import without torch: planning, submitting, watching and fitting work on a login node.
TORCH_FREE = [
    "data_prep/*.py",
    "data_prep/domains/*.py",
    "megatron_ext/shape.py",
    "megatron_ext/fixed_size.py",
    "launch/__main__.py",
    "launch/arguments.py",
    "launch/budget.py",
    "launch/checkpoint_files.py",
    "launch/config.py",
    "launch/study.py",
    "launch/ladder.py",
    "launch/schedule.py",
    "launch/refusals.py",
    "launch/results.py",
    "launch/saved.py",
    "launch/strict.py",
    "launch/provenance.py",
    "launch/console.py",
    "launch/datasets.py",
    "launch/diagnosis.py",
    "launch/disk.py",
    "launch/evaluation_file.py",
    "launch/folder.py",
    "launch/plan.py",
    "launch/planner.py",
    "launch/packing.py",
    "launch/activations.py",
    "launch/memory.py",
    "launch/step_time.py",
    "launch/devices.py",
    "launch/speed.py",
    "launch/exits.py",
    "launch/stopping.py",
    "slurm/*.py",
    "analysis/*.py",
]
NEEDS_TORCH = ["data_prep/codebook.py", "data_prep/codebook_training.py"]
TORCH = {"torch", "deepspeed", "megatron"}

MODULE_LINES = 350  # the guide says 300; this is where the test draws the line
FUNCTION_LINES = 60  # the guide says 40
ONE_PAGE = {("launch/train.py", "train"): 110}  # the loop, top to bottom


def test_the_tree_keeps_the_rules():
    assert list(violations(ROOT)) == []


@pytest.mark.parametrize(
    ("path", "source", "rule"),
    [
        ("data_prep/shards.py", "import launch.config\n", "may not import launch"),
        ("megatron_ext/model.py", "from data_prep import domain\n", "may not import data_prep"),
        ("launch/train.py", "def f():\n    from slurm.submit import x\n", "may not import slurm"),
        ("slurm/status.py", "import analysis.fit\n", "may not import analysis"),
        ("analysis/report.py", "from slurm import status\n", "may not import slurm"),
        ("launch/train.py", "import h5py\n", "h5py only in"),
        ("slurm/submit.py", "def f():\n    import scipy.optimize\n", "scipy only in"),
        ("analysis/fit.py", "import torch\n", "without torch"),
        ("slurm/submit.py", "from launch.train import train\n", "without torch"),
        ("launch/utils.py", "", "utils.py"),
        ("launch/train.py", "x = 1\n" * 351, "351 lines"),
        ("launch/train.py", "def f():\n" + "    x = 1\n" * 60, "61 lines"),
        ("slurm/__init__.py", '"""Doc."""\nimport json\n', "only a docstring"),
        ("launch/train.py", "import submodule.torch\nfrom . import x\n", "absolute"),
    ],
)
def test_each_rule_can_fail(tmp_path, path, source, rule):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    train = tmp_path / "launch/train.py"  # one of the sources imports it, so it must be there
    train.parent.mkdir(exist_ok=True)
    if not train.exists():
        train.write_text("import torch\n")
    assert any(rule in line for line in violations(tmp_path))


def torch_free_modules() -> list[str]:
    paths = [path for path in _sources(ROOT) if _torch_free(path)]
    return [".".join(path.with_suffix("").parts) for path in paths if path.name != "__init__.py"]


def test_importing_the_spine_leaves_torch_out():
    """One fresh process imports them all; if torch comes along, it names the module that did it."""
    program = (
        "import importlib, sys\n"
        f"for name in {torch_free_modules()!r}:\n"
        "    importlib.import_module(name)\n"
        "    found = {'torch', 'deepspeed', 'megatron'} & set(sys.modules)\n"
        "    assert not found, f'{name} imports {found}'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["data_prep", "launch", "slurm", "analysis"])
def test_help_answers_without_torch(package):
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['{package}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('{package}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code in (0, None), end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


# --- the rules ---


def violations(root: Path) -> Iterator[str]:
    """Every broken rule of the tree at `root`, one line each."""
    for path in _sources(root):
        text = (root / path).read_text(encoding="utf-8")
        tree = ast.parse(text)
        yield from _size(path, text, tree)
        if path.name == "utils.py":
            yield f"{path}: no utils.py: name the module after what it does"
        if path.name == "__init__.py" and not _only_docstring(tree):
            yield f"{path}: wanted only a docstring"
        for name, at_top in _imports(tree):
            yield from _import(root, path, name, at_top)


def _import(root: Path, path: Path, name: str, at_top: bool) -> Iterator[str]:
    package, top = path.parts[0], name.split(".")[0]
    if name.startswith("."):
        yield f"{path}: imports are absolute, so that a foreign package of the name fails loudly"
    if top in MAY_IMPORT and top != package and top not in MAY_IMPORT[package]:
        yield f"{path}: {package} may not import {top}"
    if top in ONE_DOOR and not _matches(path, ONE_DOOR[top]):
        yield f"{path}: {top} only in {', '.join(ONE_DOOR[top])}"
    if at_top and _torch_free(path):
        ours = Path(*name.split(".")).with_suffix(".py")
        needs_torch = (root / ours).exists() and not _torch_free(ours)
        if top in TORCH or needs_torch:
            yield f"{path}: must import without torch, but imports {name} at its top"


def _size(path: Path, text: str, tree: ast.Module) -> Iterator[str]:
    lines = len(text.splitlines())
    if lines > MODULE_LINES:
        yield f"{path}: {lines} lines; at most {MODULE_LINES}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            limit = ONE_PAGE.get((path.as_posix(), node.name), FUNCTION_LINES)
            if length > limit:
                yield f"{path}: {node.name} has {length} lines; at most {limit}"


def _imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported as soon as this one is) of every import statement."""
    inside = {
        id(child)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in inside
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module, id(node) not in inside
            for alias in node.names:  # `from launch import train` imports a module too
                if not node.level:
                    yield f"{module}.{alias.name}", id(node) not in inside


def _sources(root: Path) -> list[Path]:
    return sorted(
        path.relative_to(root) for name in MAY_IMPORT for path in (root / name).rglob("*.py")
    )


def _only_docstring(tree: ast.Module) -> bool:
    return all(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in tree.body
    )


def _matches(path: Path, patterns: list[str]) -> bool:
    return any(
        fnmatch(path.as_posix(), pattern) and len(path.parts) == pattern.count("/") + 1
        for pattern in patterns
    )


def _torch_free(path: Path) -> bool:
    return _matches(path, TORCH_FREE) and not _matches(path, NEEDS_TORCH)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_the_document_lists_every_module_and_no_other(package):
    text = (ROOT / "docs" / "architecture.md").read_text().split("\n## Folders\n")[1]
    listing = text.split("```")[1]
    part = re.split(r"^(?=\w+/ )", listing, flags=re.M)
    own = next(each for each in part if each.startswith(f"{package}/"))
    listed = re.findall(r"\b(\w+\.py)\b", own)
    there = {path.name for path in (ROOT / package).rglob("*.py")} - {"__init__.py"}
    assert sorted(set(listed)) == sorted(there)
