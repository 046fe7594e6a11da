"""Use megatron-core and DeepSpeed without their warnings of CUDA-only packages that are absent, and
without what they print: stdout is for results."""

import contextlib
import io
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
