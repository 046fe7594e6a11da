"""Reading DeepSpeed's checkpoint files without running what they may hold.

DeepSpeed unpickles with full trust. Here tensors, plain values and three of DeepSpeed's own small
classes, which are allowed by name, come through; anything else, code included, is refused.
"""

import logging
import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from launch.checkpoint_writer import Part, copied, plain
from megatron_ext.quiet import quiet

# DeepSpeed looks for a compiler, a launcher and GPUs when imported, and tells at length. This is the
# first of our modules to import it.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
with quiet():
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

_PLAIN_CLASSES = [LossScaler, ZeroStageEnum, fragment_address]


def load_file(
    path: Path | str, *, map_location: Any = "cpu", mmap: bool = True, also: Sequence[type] = ()
) -> Any:
    """What `torch.save` wrote; tensors stay on the disk until they are used (`mmap`).

    Raises `ValueError` that names the file and the class for anything but tensors, plain values and
    the classes of `also`.
    """
    try:
        with torch.serialization.safe_globals([*_PLAIN_CLASSES, *also]):
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path}: not readable ({str(error).splitlines()[0]}); wanted a file that torch.save wrote, whole. "
            "It is truncated or damaged: take another checkpoint."
        ) from None
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ['\"]?([\w.]+)", str(error))
        reason = f"it holds {named[1]}" if named else "it is no such archive"
        raise ValueError(
            f"{path}: refused to load, {reason}; wanted tensors and plain values only. "
            "A checkpoint that holds other objects could run code: do not trust where it came "
            "from, remove it, and the run continues from the one before."
        ) from None


class SafeCheckpointEngine(TorchCheckpointEngine):
    """Reads DeepSpeed's checkpoint files for it; what it wants written is kept, for who writes it.

    Nothing is raised between DeepSpeed's barriers, where a rank that is missing would leave the others
    waiting: a copy that fails is kept in `problem` (`launch.checkpoint` lets the ranks agree).
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.copies = True
        self.parts: list[Part] = []
        self.problem: Exception | None = None

    def save(self, state_dict: Any, path: str) -> None:
        try:
            state = copied(state_dict) if self.copies else plain(state_dict)
            self.parts.append(Part(Path(path), state))
        except Exception as error:
            self.problem = error

    def taken(self) -> list[Part]:
        """The parts since the last time. Raises what kept one from being copied."""
        parts, problem = self.parts, self.problem
        self.parts, self.problem = [], None
        if problem:
            raise problem
        return parts

    def load(self, path: str, map_location: Any = None) -> Any:
        return load_file(path, map_location=map_location, mmap=False)
