"""The files of a checkpoint: copied in memory while training waits, written beside it.

DeepSpeed hands over what each file is to hold (`SafeCheckpointEngine`). A copy in the host's memory takes
a fraction of the time that a disk takes, and nothing changes it; a thread then writes it while the next
steps are computed. PyTorch, the disk and the hash all work without Python's lock.
"""

import errno
import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from launch.checkpoint_files import FileRecord

# Each file is hashed; the archive's own checksum would be computed on top of that.
torch.serialization.set_crc32_options(False)


CACHED = 2**28  # bytes of a file that wait for the disk at a time


@dataclass(frozen=True)
class Part:
    """One file that is to be written."""

    path: Path
    state: Any


def copied(value: Any) -> Any:
    """`plain`, with every tensor copied to the host's memory; tensors that share memory share it again."""
    known: dict[int, torch.UntypedStorage] = {}

    def copy(each: Any) -> Any:
        return _copied_tensor(each.detach(), known) if isinstance(each, torch.Tensor) else each

    return plain(value, copy)


def plain(value: Any, leaf: Callable[[Any], Any] = lambda each: each) -> Any:
    """`value` in new containers, `leaf` of what they hold, and the values of enumerations: Python before 3.11.4 pickles
    their members as a call, which no safe reader makes."""
    if type(value) in (dict, OrderedDict):
        return type(value)((key, plain(each, leaf)) for key, each in value.items())
    if type(value) in (list, tuple):
        return type(value)(plain(each, leaf) for each in value)
    return value.value if isinstance(value, Enum) else leaf(value)


def _copied_tensor(tensor: torch.Tensor, known: dict[int, torch.UntypedStorage]) -> torch.Tensor:
    storage = tensor.untyped_storage()
    place = storage.data_ptr()
    if place not in known:
        known[place] = storage.clone() if tensor.device.type == "cpu" else storage.cpu()
    empty = torch.empty(0, dtype=tensor.dtype)
    return empty.set_(known[place], tensor.storage_offset(), tensor.shape, tensor.stride())


def write_file(part: Part) -> FileRecord:
    """Write one file and push it to the disk. Raises `OSError` that names it and says why."""
    try:
        with open(part.path, "wb") as file:  # torch's own writer does not say what went wrong
            hashed = _Hashed(file)
            with hashed:
                torch.save(part.state, hashed)  # type: ignore[arg-type]  # it only writes
            os.fsync(file.fileno())
        return FileRecord(bytes=hashed.bytes, sha256=hashed.digest.hexdigest())
    except (OSError, RuntimeError) as error:
        # Its archive, closed half-written, complains last; what went wrong first is the context.
        first: BaseException | None = error
        while first is not None and not isinstance(first, OSError):
            first = first.__context__
        number = first.errno if first and first.errno else errno.EIO
        reason = os.strerror(number) if first else str(error).splitlines()[0]
        raise OSError(number, reason, str(part.path)) from error


class _Hashed:
    """A file to write to, which hashes each piece while another thread writes it.

    What is written is pushed out and let go of now and then: as much again in the page cache would crowd
    out what training needs.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._pool = ThreadPoolExecutor(1)
        self._cached = 0
        self.digest, self.bytes = hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        writing = self._pool.submit(self._write, data)
        try:
            self.digest.update(data)
        finally:
            writing.result()  # `data` is ours until this call returns
        self.bytes += len(data)
        return len(data)

    def _write(self, data: Any) -> None:
        self._file.write(data)
        self._cached += len(data)
        if self._cached >= CACHED:
            self._file.flush()
            os.fdatasync(self._file.fileno())
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self._cached = 0

    def flush(self) -> None:
        self._file.flush()

    def __enter__(self) -> "_Hashed":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


class Writing:
    """Files that a thread is writing."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.seconds = 0.0
        self._parts, self._wanted = list(parts), {part.path for part in parts}
        self._records: dict[Path, FileRecord] = {}
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="checkpoint")
        self._thread.start()

    @property
    def under_way(self) -> bool:
        return self._thread.is_alive()

    def wait(self) -> None:
        self._thread.join()

    def result(self) -> dict[Path, FileRecord]:
        """What was written, once it is. Raises what kept a file from it, mostly `OSError`."""
        self.wait()
        if self._problem:
            raise self._problem
        assert self._records.keys() == self._wanted
        return self._records

    def _write(self) -> None:
        began = time.monotonic()
        try:
            while self._parts:  # each copy is given back once it is written
                part = self._parts.pop(0)
                self._records[part.path] = write_file(part)
                del part
        except BaseException as error:  # whatever it is: a thread that just ends would say nothing
            self._problem = error
            self._parts.clear()
        self.seconds = time.monotonic() - began
