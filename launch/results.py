"""`metrics.h5`: what a run measured. Written while it trains, read by everything that comes after.

One file per run folder:

    /train            one row per optimizer step           (columns: TRAIN_COLUMNS)
    /eval             one row per evaluation, split, kind  (columns: EVAL_COLUMNS)
    /eval_position/SPLIT/{step, loss, count}               [evaluations], [evaluations, seq_length] x 2
    attributes        schema, config (JSON), provenance (JSON), finished, every counting convention, SPEED_NAMES

Each checkpoint holds a copy, and a run that resumes begins with that copy: so its file equals an uninterrupted run's,
and a damaged one (a full disk in the middle of a write) is replaced.

A killed writer should leave a readable file (one of about 1,000 SIGKILLs did not). So the file is created under a
temporary name and renamed once it is whole, rows are only ever appended, and every append ends with a flush. No SWMR
and no `libver="latest"`: files left by a killed SWMR writer could not be reopened for writing (measured, 25 of 25).

This is the only module that imports h5py; it needs no torch.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from launch.diagnosis import noise_scale, skipped_places, spike_places
from launch.disk import STORAGE_ERRORS, refuse_full

SCHEMA = 1
METRICS_FILE = "metrics.h5"
RESTORE = "Remove it and run the study again: it comes back from the run's newest checkpoint."
RECENT_ROWS = 32  # steps over which a rate is told: one step alone says little on a shared machine

TRAIN_COLUMNS = np.dtype(
    [
        ("step", "i8"),  # optimizer steps done, this one included: the first row has step 1
        ("tokens", "i8"),  # tokens processed so far: step x batch x seq_length
        ("samples", "i8"),  # rows processed so far
        ("flops", "f8"),  # training FLOPs so far by the papers' convention, 6 N D
        ("flops_exact", "f8"),  # training FLOPs so far, attention and output head counted
        ("loss", "f8"),  # nats per counted token of this step's global batch
        ("learning_rate", "f8"),
        ("grad_norm", "f8"),  # before clipping
        ("seconds", "f8"),  # wall time of this step
    ]
)

EVAL_COLUMNS = np.dtype(
    [
        ("step", "i8"),
        ("tokens", "i8"),
        ("flops", "f8"),
        ("flops_exact", "f8"),
        ("split", "S16"),
        ("kind", "S16"),  # "loss": every token the objective counts; else one kind of token
        ("loss", "f8"),  # nats per token
        ("standard_error", "f8"),  # of that mean, with rows as the independent units
        ("num_tokens", "i8"),
        ("num_rows", "i8"),
    ]
)

NOISE_COLUMNS = np.dtype(
    [
        ("step", "i8"),
        ("batch_small", "f8"),  # rows
        ("batch_big", "f8"),
        ("square_small", "f8"),  # mean squared norm of the gradient of so many rows
        ("square_big", "f8"),
    ]
)
"""What the gradient noise scale comes from (`launch.noise`); not in files of older runs."""

COUNT_NAMES = (
    "params_non_embedding",
    "params_non_embedding_and_head",
    "params_total",
    "flops_6nd",
    "flops_exact",
)
"""Attributes of a finished run, in every counting convention; `flops_*` are of the whole run."""

STEP_SECONDS = ("step_seconds_median", "step_seconds_p95", "step_seconds_p99")
SPEED_NAMES = ("tokens_per_second", "model_flops_per_second", "mfu", *STEP_SECONDS)
"""Attributes of the steps since the last start, over all devices (`launch.speed`); FLOPs are exact; mfu may be NaN."""


class DamagedFile(ValueError):
    """A file that should be a run's measurements and cannot be read as that."""


@dataclass(frozen=True)
class RunResult:
    """Everything one run recorded. `train` and `eval` are numpy record arrays."""

    run_id: str
    path: Path
    config: dict[str, Any]
    provenance: list[dict[str, Any]]  # one entry per start of the run
    finished: bool
    counts: dict[str, float]
    train: np.ndarray
    eval: np.ndarray
    eval_position: dict[str, dict[str, np.ndarray]]
    noise: np.ndarray
    speed: dict[str, float]  # empty in files of older runs

    @property
    def skipped(self) -> np.ndarray:
        """The steps that changed no weight, for their gradient was not finite (`guards.non_finite`)."""
        return self.train["step"][skipped_places(self.train["grad_norm"])]

    @property
    def spikes(self) -> np.ndarray:
        """The steps at which the loss spiked (`spike_places`); what was skipped is none."""
        found = self.train["step"][spike_places(self.train["loss"])]
        return np.setdiff1d(found, self.skipped)

    @property
    def noise_scale(self) -> float:
        """B_noise in rows over the second half of the run; NaN where it is not determined."""
        return noise_scale(self.noise[len(self.noise) // 2 :])

    def eval_rows(self, split: str, kind: str = "loss") -> np.ndarray:
        """The evaluations of one split and kind, in order of training."""
        chosen = (self.eval["split"] == split.encode()) & (self.eval["kind"] == kind.encode())
        return self.eval[chosen]


class ResultWriter:
    """Appends to a run's `metrics.h5`, or begins it; a context manager. `ValueError` names a file that is damaged."""

    def __init__(
        self,
        folder: Path,
        *,
        config: Mapping[str, Any],
        provenance: Mapping[str, Any],
        counts: Mapping[str, float],
        seq_length: int,
    ) -> None:
        self.path = folder / METRICS_FILE
        self._seq_length = seq_length
        self._train_rows: list[tuple[float, ...]] = []
        if not self.path.exists():
            _create(self.path)
        with _naming(self.path):
            self._file = _open(self.path, "r+")
            self._file.attrs["config"] = json.dumps(config)
            starts = [*json.loads(self._file.attrs["provenance"]), dict(provenance)]
            self._file.attrs["provenance"] = json.dumps(starts)
            self._file.attrs["finished"] = False
            self._file.attrs.update({name: float(counts[name]) for name in COUNT_NAMES})
            self._file.flush()

    def __enter__(self) -> "ResultWriter":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            self._file.close()

    def train(self, **row: float) -> None:
        """Buffer one step's row (all of TRAIN_COLUMNS); `flush` writes it."""
        self._train_rows.append(tuple(row[name] for name in TRAIN_COLUMNS.names or ()))

    def eval(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append evaluation rows (all of EVAL_COLUMNS each)."""
        packed = [tuple(row[name] for name in EVAL_COLUMNS.names or ()) for row in rows]
        _append(self._file["eval"], np.array(packed, EVAL_COLUMNS))
        self.flush()

    def eval_position(self, split: str, step: int, loss: np.ndarray, count: np.ndarray) -> None:
        """Append the mean loss [seq_length] by position; NaN where no token was counted."""
        group = self._file.require_group(f"eval_position/{split}")
        width = self._seq_length
        for name, value, shape, dtype in (
            ("step", step, (), "i8"),
            ("loss", loss, (width,), "f4"),
            ("count", count, (width,), "i8"),
        ):
            if name not in group:
                group.create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape))
            _append(group[name], np.asarray(value, dtype)[None])

    def noise(self, **row: float) -> None:
        """Append one row (all of NOISE_COLUMNS)."""
        if "noise" not in self._file:
            self._file.create_dataset("noise", (0,), NOISE_COLUMNS, maxshape=(None,), chunks=(64,))
        values = tuple(row[name] for name in NOISE_COLUMNS.names or ())
        _append(self._file["noise"], np.array([values], NOISE_COLUMNS))

    def column(self, name: str) -> np.ndarray:
        """One of TRAIN_COLUMNS for every step so far [steps], those before a stop or of a trunk included."""
        self.flush()
        return self._file["train"][name]

    def speed(self, **values: float) -> None:
        """Record all of SPEED_NAMES."""
        self._file.attrs.update({name: float(values[name]) for name in SPEED_NAMES})

    def flush(self) -> None:
        """Write the buffered rows and hand them to the operating system, or keep them: `OSError` on a full disk."""
        refuse_full(self.path)
        if self._train_rows:
            _append(self._file["train"], np.array(self._train_rows, TRAIN_COLUMNS))
            self._train_rows.clear()
        self._file.flush()

    def finish(self) -> None:
        """Mark the run as finished: every step done, every final evaluation written."""
        self.flush()
        self._file.attrs["finished"] = True
        self._file.flush()


def read_result(folder: Path) -> RunResult:
    """Read one run folder's `metrics.h5`.

    Raises `ValueError` that names the file for one that is missing, empty, truncated, of another kind or newer.
    """
    path = folder / METRICS_FILE
    with _naming(path), _open(path, "r") as file:
        return RunResult(
            run_id=folder.name,
            path=path,
            config=json.loads(file.attrs["config"]),
            provenance=json.loads(file.attrs["provenance"]),
            finished=_flag(file),
            counts={name: float(file.attrs[name]) for name in COUNT_NAMES},
            train=_read_table(file, "train", TRAIN_COLUMNS),
            eval=_read_table(file, "eval", EVAL_COLUMNS),
            eval_position={
                split: {name: group[name][()] for name in ("step", "loss", "count")}
                for split, group in file.get("eval_position", {}).items()
            },
            noise=_read_table(file, "noise", NOISE_COLUMNS, may_be_missing=True),
            speed={name: float(file.attrs[name]) for name in SPEED_NAMES if name in file.attrs},
        )


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` has finished; False if it has not begun. Raises `ValueError` as `read_result`."""
    return read_progress(folder)[0]


def read_origin(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The configuration and the provenance of a run, without what it measured. Raises `ValueError` as `read_result`."""
    path = folder / METRICS_FILE
    with _naming(path), _open(path, "r") as file:
        return json.loads(file.attrs["config"]), json.loads(file.attrs["provenance"])


def read_progress(folder: Path) -> tuple[bool, np.ndarray]:
    """Whether the run in `folder` has finished, and its newest rows of /train alone: none before it began."""
    path = folder / METRICS_FILE
    if not path.exists():
        return False, np.empty(0)
    with _naming(path), _open(path, "r") as file:
        table = file["train"]
        if table.dtype != TRAIN_COLUMNS:
            raise TypeError(f"/train holds {table.dtype}, wanted {TRAIN_COLUMNS}")
        return "finished" in file.attrs and _flag(file), table[-RECENT_ROWS:]


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside a run file is said with the file's name. HDF5 reports damage by almost any
    exception; a message of ours, which names the file, passes."""
    try:
        yield
    except Exception as error:
        full_or_forbidden = isinstance(error, OSError) and error.errno in STORAGE_ERRORS
        if full_or_forbidden or (isinstance(error, ValueError) and str(path) in str(error)):
            raise
        raise DamagedFile(
            f"{path}: this run file is damaged or incomplete ({error}); wanted a whole "
            f"{METRICS_FILE} of schema {SCHEMA}. {RESTORE}"
        ) from error


def _flag(file: h5py.File) -> bool:
    finished = file.attrs["finished"]
    if not isinstance(finished, bool | np.bool_):
        raise TypeError(f"finished = {finished!r}, wanted true or false")
    return bool(finished)


def _open(path: Path, mode: str) -> h5py.File:
    if not path.exists():
        raise ValueError(
            f"{path}: no such file; wanted the {METRICS_FILE} of a run. Check the results folder, "
            "or start the run first."
        )
    try:
        if path.stat().st_size == 0:
            raise OSError("it is empty")  # h5py would begin a new file in it
        # Locks on shared file systems fail or hang; one writer per run is ensured by run.lock.
        file = h5py.File(path, mode, locking=False)
    except OSError as error:
        raise DamagedFile(
            f"{path}: not readable as HDF5 ({path.stat().st_size} bytes; {error}); wanted the "
            f"{METRICS_FILE} of a run. {RESTORE}"
        ) from error
    schema = file.attrs.get("schema")
    if np.ndim(schema) != 0 or schema != SCHEMA:
        file.close()
        raise ValueError(
            f"{path}: schema = {schema}; wanted {SCHEMA}. The file is of another kind or of "
            "another version of this project: read it with that version."
        )
    return file


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    refuse_full(path)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with h5py.File(temporary, "w", locking=False) as file:
        file.attrs["schema"] = SCHEMA
        file.attrs["provenance"] = "[]"
        for name, columns in (("train", TRAIN_COLUMNS), ("eval", EVAL_COLUMNS)):
            file.create_dataset(name, (0,), columns, maxshape=(None,), chunks=(512,))
    os.replace(temporary, path)


def _append(table: h5py.Dataset, rows: np.ndarray) -> None:
    start = len(table)
    table.resize(start + len(rows), axis=0)
    table[start:] = rows


def _read_table(
    file: h5py.File, name: str, columns: np.dtype, may_be_missing: bool = False
) -> np.ndarray:
    rows = np.empty(0, columns) if may_be_missing and name not in file else file[name][()]
    if rows.dtype != columns:
        raise TypeError(f"/{name} has columns {rows.dtype.names}, wanted {columns.names}")
    return rows
