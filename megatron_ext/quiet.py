"""Import megatron-core without its warnings of the CUDA-only packages that are absent."""

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
