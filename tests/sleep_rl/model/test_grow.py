"""Growth preserves the function, and gradients of copied units differ."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from sleep_rl.cli.main import main
from sleep_rl.contracts.errors import InputError
from sleep_rl.model import checkpoints
from sleep_rl.model.grow import grow, sources
from tests.fakes.models import make_base

IDS = torch.randint(2, 250, (2, 24), generator=torch.Generator().manual_seed(5))
SIZES = {
    "layers": {"layers": 3},
    "width": {"width": 2},
    "intermediate": {"intermediate": 150},
    "all": {"layers": 1, "width": 3, "intermediate": 160},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_grown_model_computes_same_function(family, tied, size, tmp_path):
    small_path = make_base(family, str(tmp_path / "small"), tie_word_embeddings=tied)
    small = AutoModelForCausalLM.from_pretrained(small_path).eval()
    # norms of an untrained model are all ones: a mistake in them would not show
    with torch.no_grad():
        for weight in small.parameters():
            if weight.dim() == 1:
                weight.add_(torch.linspace(-0.3, 0.4, len(weight)))
    small.save_pretrained(small_path)
    out = grow(small_path, str(tmp_path / "large"), **SIZES[size])
    large = AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        want = small(IDS).logits
        got = large(IDS).logits
    assert torch.allclose(want, got, atol=2e-5), (want - got).abs().max()
    assert large.num_parameters() > small.num_parameters()
    assert large.config.num_hidden_layers == small.config.num_hidden_layers + SIZES[size].get(
        "layers", 0
    )
    assert (
        checkpoints.load_tokenizer(out, large.config.vocab_size).get_vocab()
        == checkpoints.load_tokenizer(small_path, small.config.vocab_size).get_vocab()
    )


def test_gradients_of_copies_differ(tmp_path):
    small = make_base("qwen3", str(tmp_path / "small"))
    large = AutoModelForCausalLM.from_pretrained(
        grow(small, str(tmp_path / "large"), width=2, layers=1)
    )
    large(IDS, labels=IDS).loss.backward()
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"):
        weight = large.model.layers[0].get_submodule(part).weight
        first, second = weight.grad.chunk(2, dim=1)
        # same input ...
        assert not torch.equal(*weight.chunk(2, dim=1)) and torch.allclose(first, second, atol=1e-5)
        if part != "mlp.up_proj":
            # ... read by different readers
            assert not torch.allclose(*weight.grad.chunk(2, dim=0), rtol=1e-3)
    assert large.model.layers[-1].mlp.down_proj.weight.grad.abs().max() > 0


def test_layer_sources():
    assert sources(2, 0) == [0, 1]
    assert sources(2, 1) == [0, 1, 1]
    assert sources(3, 3) == [0, 0, 1, 1, 2, 2]
    assert sources(4, 2) == [0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize(
    "arguments, wrong",
    [
        ([], "at least one of them larger, got 0, 1, 128"),
        (["--layers", "-1"], "got -1, 1, 128"),
        (["--intermediate", "10"], "--intermediate >= 128"),
        (["--width", "x"], "Invalid value for '--width': 'x' is not a valid integer"),
    ],
)
def test_invalid_sizes_give_one_line_errors(arguments, wrong, tmp_path, capsys):
    small = make_base("qwen3", str(tmp_path / "small"))
    capsys.readouterr()
    assert main(["grow", small, str(tmp_path / "large"), *arguments]) == 2
    error = capsys.readouterr().err
    assert wrong in error and error.count("\n") == 1 and not (tmp_path / "large").exists()


def test_existing_target_and_memory_are_refused(tmp_path, sleep_checkpoint):
    small = make_base("qwen3", str(tmp_path / "small"))
    with pytest.raises(InputError, match="exists"):
        grow(small, small, width=2)
    with pytest.raises(InputError, match="without memory levels"):
        grow(sleep_checkpoint(), str(tmp_path / "large"), width=2)
