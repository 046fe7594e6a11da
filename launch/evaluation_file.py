"""What `launch evaluate` measured, as HDF5: one group for each checkpoint, `RUN/step-<n>`. No torch.

    attributes              kind ("losses"; where it is "answers", see `launch answers`); loss, standard_error,
                            num_tokens (objective); domain, split, data (its folder's name), data_identity,
                            own_data (whether it is what the run was trained on), checkpoint, step
    kinds                   kind, loss, standard_error, num_tokens of each kind of token that occurs
    position/{loss, count}  [seq_length], NaN where no token counts
    grid/NAME               the same folded up: `pixel` [rows, columns] (mean over colours), `frame` [frames]
    documents/{row, start, loss_sum, count}    of each document that lies whole in a row; `start`: its first token there
    percentiles             percentile, loss: of the documents' mean losses
    information             of pairs: `launch.information.INFORMATION`; attributes known_mutual_information,
                            trained_on_blanks, worth_words and what it follows from
    improved                row, start, difference, ratio of each, where another checkpoint was named before

A file appears by rename, whole or not at all. Losses are in nats per token.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py

SCHEMA = 1
LOSSES, ANSWERS = "losses", "answers"  # the kinds of groups


Add = Callable[[str, Mapping[str, Any]], None]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Add]:
    """Gives a function that adds a group: its name, and {"attributes": {...}, dataset name: array}.

    Raises `OSError` where the file cannot be written; what was there before then stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w", locking=False) as file:
            file.attrs["schema"] = SCHEMA

            def add(name: str, content: Mapping[str, Any]) -> None:
                group = file.create_group(name)
                group.attrs.update(content["attributes"])
                for dataset, values in content.items():
                    if dataset != "attributes":
                        group[dataset] = values

            yield add
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_evaluations(path: Path, leave_out: str = "") -> dict[str, dict[str, Any]]:
    """What `writing` wrote, group by group; without the datasets whose names begin with `leave_out`, if given.

    Raises `ValueError` that names the file for one that is missing, damaged or of another kind.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs.get("schema") != SCHEMA:
                raise OSError(f"schema = {file.attrs.get('schema')}")
            found = {
                f"{run}/{step}": _content(group, leave_out)
                for run, steps in file.items()
                for step, group in steps.items()
            }
    except (OSError, RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: not readable as evaluations ({error}); wanted what `launch evaluate` wrote, schema {SCHEMA}. "
            "Evaluate again."
        ) from error
    return found


def _content(group: h5py.Group, leave_out: str) -> dict[str, Any]:
    content: dict[str, Any] = {"attributes": dict(group.attrs)}

    def keep(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset) and not (leave_out and name.startswith(leave_out)):
            content[name] = item[()]

    group.visititems(keep)
    return content
