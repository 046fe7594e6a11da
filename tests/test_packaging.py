"""Our generic names (`launch`, `slurm`, ...) reach our files from anywhere, or fail loudly."""

import os
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMMANDS = {
    "scaling-data-prep": "data_prep",
    "scaling-launch": "launch",
    "scaling-slurm": "slurm",
    "scaling-analysis": "analysis",
}


def script(name: str) -> Path:
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.skip(f"{name} is not installed: run the tests with `make test`")
    return path


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_commands_are_those_of_the_project():
    assert PROJECT["project"]["scripts"] == {
        name: f"{package}.__main__:main" for name, package in COMMANDS.items()
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_runs_from_another_folder(name, tmp_path):
    done = run([str(script(name)), "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


@pytest.mark.parametrize("package", COMMANDS.values())
def test_from_another_folder_it_is_our_file(package, tmp_path):
    script("scaling-launch")
    done = run([sys.executable, "-c", f"import {package}; print({package}.__file__)"], tmp_path)
    assert Path(done.stdout.strip()).resolve() == ROOT / package / "__init__.py"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_foreign_package_of_the_name_is_never_half_used(name, tmp_path):
    """The index has a `slurm` and a `launch` of others: ours answers, or nobody does."""
    foreign = tmp_path / COMMANDS[name] / "__init__.py"
    foreign.parent.mkdir()
    foreign.touch()
    done = run([str(script(name)), "--help"], tmp_path, PYTHONPATH=str(tmp_path))
    loud = f"No module named '{COMMANDS[name]}." in done.stderr and done.returncode != 0
    assert loud or done.stdout.startswith("usage: "), done


def test_everything_in_the_packages_is_installed():
    """A package or a data file that pyproject.toml forgets works here and nowhere else."""
    setuptools = PROJECT["tool"]["setuptools"]
    listed = set(setuptools["packages"])
    for top in COMMANDS.values():
        for path in (ROOT / top).rglob("*"):
            if path.is_dir() or "__pycache__" in path.parts or path.name.startswith("."):
                continue
            package = ".".join(path.parent.relative_to(ROOT).parts)
            if path.suffix == ".py":
                assert package in listed, f"{path} is in no package of pyproject.toml"
            else:
                patterns = setuptools["package-data"].get(top, [])
                name = path.relative_to(ROOT / top).as_posix()
                assert any(fnmatch(name, pattern) for pattern in patterns), path


def test_requirements_are_exact_and_used():
    """Every line is NAME==VERSION, and that is what is installed."""
    from importlib.metadata import version

    lines = (ROOT / "requirements.txt").read_text().splitlines()
    for line in filter(None, (line.split("#")[0].strip() for line in lines)):
        name, exact, wanted = line.partition("==")
        assert exact, line
        assert version(name).split("+")[0] == wanted
