"""Digests of tensors, with which learner and rollout workers identify weights.

They detect damaged or mixed-up weights at memory bandwidth. They are not cryptographic: they do not
protect against a sender of forged weights.
"""

from __future__ import annotations

import numpy as np
import torch
import xxhash
from torch import Tensor


def as_tensor(value: Tensor | np.ndarray) -> Tensor:
    """Return a CPU tensor with the same bytes, which shares memory with `value` if possible.

    A read-only array (such as Ray's) is copied, since torch has no read-only tensors.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    return torch.from_numpy(value if value.flags.writeable else value.copy())


def digest(value: Tensor | np.ndarray) -> str:
    """Return 32 hex digits of XXH3 over dtype, shape and raw bytes.

    It is the same for a tensor and an array of the same content. A contiguous CPU tensor or array
    is read in place.
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
