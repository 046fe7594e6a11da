"""Who may write to a dataset's folder: locks of the operating system (flock), which end with their process."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

# What flock says on a file system that knows no locks, or whose lock service does not answer.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def lock(out: Path, name: str, shared: bool, wait: bool = False) -> Iterator[None]:
    """Hold a lock file of the folder; ValueError at once if another process holds it, unless told to wait.

    The kernel lets go of it when the process dies, however it dies.
    """
    folder = out / ".build"
    folder.mkdir(exist_ok=True)
    handle = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        _flock(handle, mode if wait else mode | fcntl.LOCK_NB, out)
        yield
    finally:
        os.close(handle)


def _flock(handle: int, mode: int, out: Path) -> None:
    try:
        fcntl.flock(handle, mode)
    except BlockingIOError:
        raise ValueError(
            f"{out}: another build is writing here; wanted the folder to ourselves. "
            f"Wait for it to end, then run this command again."
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise ValueError(
            f"{out}: its file system has no locks (flock: {error.strerror}); wanted one that keeps two builds apart. "
            f"Give an --out on another disk and copy the finished folder here, or have this one mounted with flock "
            f"(Lustre: -o flock; NFS: with its lock service)."
        ) from None


@contextmanager
def lock_division(out: Path, label: str, parts: int) -> Iterator[None]:
    """Hold the folder for the build called `label` in so many parts; ValueError while parts of another build, or of
    another division of this one, are being made."""
    mine = f"parts-of-{parts}-{label}"
    with ExitStack() as held:
        with lock(out, "division", shared=False, wait=True):
            for path in sorted((out / ".build").glob("parts-of-*.lock")):
                if path.stem != mine:
                    with lock(out, path.stem, shared=False):
                        pass
            held.enter_context(lock(out, mine, shared=True))
        yield
