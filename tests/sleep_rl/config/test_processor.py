"""The data type of model.dtype auto."""

import pytest

from sleep_rl.config import loader, processor
from sleep_rl.config.processor import fast_dtype
from tests.fakes.configs import TOY


@pytest.mark.parametrize(
    "info, dtype",
    [
        ("model name : X\nflags : fpu avx2 avx512_bf16\n", "bfloat16"),
        ("flags\t\t: fpu avx2 avx512f\n", "float32"),
        ("Features : fp asimd bf16\n", "bfloat16"),
        ("model name : avx512_bf16\n", "float32"),
        (None, "float32"),
    ],
)
def test_dtype_of_a_processor(info, dtype, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    if info:
        file.write_text(info)
    monkeypatch.setattr(processor, "CPU_INFO", file)
    assert fast_dtype(0) == dtype
    assert fast_dtype(1) == "bfloat16"
    config = loader.load(str(TOY), ["model.dtype=auto"])
    assert config.model.dtype == dtype and loader.dump(config)["model"]["dtype"] == dtype
