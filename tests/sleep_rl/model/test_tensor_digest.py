"""Digests of tensors."""

from __future__ import annotations

import numpy as np
import torch

from sleep_rl.model.tensor_digest import as_tensor, digest


def test_digest_depends_on_dtype_shape_and_bytes():
    """It is the same for tensor and array, and differs for another dtype, shape or byte."""
    t = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    assert digest(t) == digest(t.numpy()) == digest(t.clone()) == digest(t.T.contiguous().T)
    assert digest(t.T) == digest(t.numpy().T) == digest(np.ascontiguousarray(t.numpy().T))
    views = [
        t,
        t.T,
        t.reshape(4, 3),
        t.view(torch.int32),
        t.bfloat16(),
        t + 1e-6,
        t[:2],
        torch.zeros(0),
        torch.tensor(1.0),
    ]
    assert len({digest(v) for v in views}) == len(views)
    assert digest(torch.tensor(1.0)) == digest(np.float32(1.0).reshape(()))


def test_as_tensor_accepts_read_only_arrays():
    array = np.arange(6, dtype=np.float32)
    shared = as_tensor(array)
    array[0] = 7
    assert shared[0] == 7  # no copy where none is needed
    array.setflags(write=False)
    copied = as_tensor(array)
    copied[0] = 8
    assert array[0] == 7
