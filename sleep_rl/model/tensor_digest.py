"""Digests of tensors: learner and readers name the bytes they mean by them.

They detect damaged or mixed-up weights at the speed of memory. They do not protect against forgery:
whoever may send weights to a worker may send wrong ones.
"""

from __future__ import annotations

import numpy as np
import torch
import xxhash
from torch import Tensor


def as_tensor(value: Tensor | np.ndarray) -> Tensor:
    """Return a CPU tensor of the same bytes, which shares memory where torch can.

    An array that is read-only (as Ray hands them out) is copied, since torch has no read-only
    tensors.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    return torch.from_numpy(value if value.flags.writeable else value.copy())


def digest(value: Tensor | np.ndarray) -> str:
    """Return 32 hex digits of XXH3 over dtype, shape and raw bytes; equal for a tensor and an array
    of the same content.

    A contiguous CPU tensor or array is read in place.
    """
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        shape = tuple(value.shape)
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    else:
        dtype = value.dtype.name
        shape = value.shape
        raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    state = xxhash.xxh3_128(f"{dtype}{shape}".encode())
    state.update(memoryview(raw))
    return state.hexdigest()
