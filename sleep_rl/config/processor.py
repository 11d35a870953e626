"""The data type that a processor computes fast in."""

from __future__ import annotations

from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Flags of processors (x86 and ARM) that multiply bfloat16 matrices. Without one of them bfloat16
is several times slower than float32.
"""


def fast_dtype(gpus: float) -> str:
    """Return model.dtype for `auto`: bfloat16 on GPUs and processors that have it, else float32."""
    if gpus:
        return "bfloat16"
    try:
        lines = CPU_INFO.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # not Linux
        return "float32"
    flags = {
        flag
        for line in lines
        if line.lower().startswith(("flags", "features"))
        for flag in line.partition(":")[2].split()
    }
    return "bfloat16" if flags & BFLOAT16_FLAGS else "float32"
