"""The code and the resolved configurations of what is queued, kept in the study's folder.

    results/STUDY/code/KEY/         our packages as they were, KEY being a digest of them; the same code once
    results/STUDY/jobs/KEY/runs.json    the configuration of each run of a submission, strategy included

So editing the checkout or the study file changes nothing that is queued, requeued or restarted. What
is installed beside us (torch and the rest) is not copied.
"""

import hashlib
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from launch.config import RunConfig

PACKAGES = ("data_prep", "megatron_ext", "launch", "slurm", "analysis")
ROOT = Path(__file__).parents[1]
CODE, COMMIT_FILE, RUNS_FILE = "code", "COMMIT", "runs.json"


def freeze_code(study_folder: Path, root: Path = ROOT) -> Path:
    """The folder of a copy of the code that runs now. What was copied before is not copied again."""
    files = {
        path.relative_to(root): path.read_bytes()
        for package in PACKAGES
        for path in sorted((root / package).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name} {len(content)}\n".encode() + content)
    folder = study_folder / CODE / digest.hexdigest()[:12]
    if not folder.exists():
        _write(files, folder, root)
    return folder


def _write(files: dict[Path, bytes], folder: Path, root: Path) -> None:
    """It appears whole, by rename; two that do so at once make the same."""
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(3)}")
    try:
        for name, content in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
        (temporary / COMMIT_FILE).write_text(_commit(root))
        os.rename(temporary, folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not folder.exists():
            raise


def _commit(root: Path) -> str:
    """The commit of the code, "+changes" if it was edited; empty outside a repository."""
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+changes"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def freeze_runs(submission_folder: Path, runs: Sequence[RunConfig]) -> None:
    """Keep the runs as they are to be trained; what the study leaves open stays open."""
    content = {run.run_id: run.model_dump(mode="json", exclude_unset=True) for run in runs}
    (submission_folder / RUNS_FILE).write_text(json.dumps(content))


def frozen_runs(submission_folder: Path, run_ids: Sequence[str]) -> tuple[RunConfig, ...]:
    """The kept runs of these ids, in their order. Raises `ValueError` that names the file."""
    path = submission_folder / RUNS_FILE
    try:
        content = json.loads(path.read_text())
        return tuple(
            RunConfig.model_validate_json(json.dumps(content[run_id])) for run_id in run_ids
        )
    except (OSError, ValidationError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: does not hold run {', '.join(run_ids[:1])} ({type(error).__name__}: {error}); wanted "
            "what `slurm submit` wrote there. Submit the study again."
        ) from None
