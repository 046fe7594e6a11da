"""Room on the disk, asked for before it is needed. No torch.

HDF5 does not survive a write that fails: what it still holds in memory ends the process when it is closed.
"""

import errno
import os
from pathlib import Path

STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
ROOM = 1 << 20  # bytes, more than is written to a run's file between two looks


def refuse_full(path: Path) -> None:
    """Raise `OSError` (ENOSPC), which names `path`, where its file system has no room for more."""
    there = os.statvfs(path.parent)
    if there.f_bavail * there.f_frsize < ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
