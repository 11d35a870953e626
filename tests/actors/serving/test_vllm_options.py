"""Options of `sleep-rl serve` that reach vLLM."""

import pytest


@pytest.mark.stack
def test_options_override_the_defaults_on_cpu(sleep_checkpoint):
    from actors.serving.vllm_options import parse_options

    def arguments(*options):
        return parse_options(sleep_checkpoint(), "127.0.0.1", 8000, "it", options)

    plain = arguments()
    assert (plain.host, plain.served_model_name, plain.allowed_origins, plain.dtype) == (
        "127.0.0.1",
        ["it"],
        [],
        "float32",
    )
    assert (
        plain.enforce_eager
        and plain.max_model_len == 256
        and plain.kv_cache_memory_bytes == 64 << 20
    )
    assert plain.worker_extension_cls == "actors.memory_access.MemoryAccess"
    chosen = arguments(
        "enforce_eager=false",
        "max-model-len=64",
        "served_model_name=other",
        "dtype=bfloat16",
        "api_key=x",
    )
    assert (chosen.enforce_eager, chosen.max_model_len, chosen.served_model_name) == (
        False,
        64,
        ["other"],
    )
    assert (chosen.dtype, chosen.api_key) == ("bfloat16", ["x"])
