"""Training of a small base: determinism, loss, and files after failures."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

from sleep_rl.contracts.errors import RunError
from sleep_rl.tasks.small_base import SPECIAL, train_base, weighted_loss, word_tokenizer

WORDS = ["where", "does", "mira", "live", "?", "Q", ":", "A"]
STEPS = 3


def tiny_config() -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=32,
        tie_word_embeddings=True,
    )


def batches(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    ids_BT = torch.randint(len(SPECIAL), len(SPECIAL) + len(WORDS), (2, 5), generator=generator)
    return ids_BT, torch.rand(2, 5, generator=generator)


def train(out: Path, **changes) -> Path:
    how = {
        "config": tiny_config(),
        "batches": batches,
        "steps": STEPS,
        "lr": 1e-2,
        "seed": 0,
    } | changes
    return train_base(out, word_tokenizer(WORDS), **how)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_training_is_deterministic_in_seed(tmp_path):
    first = contents(train(tmp_path / "a"))
    assert contents(train(tmp_path / "b")) == first
    assert (
        contents(train(tmp_path / "c", seed=1))["model.safetensors"] != first["model.safetensors"]
    )


def test_random_state_of_caller_is_unchanged(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tmp_path / "a")
    assert torch.equal(torch.rand(3), expected)


def test_training_lowers_the_loss_and_reports_every_step(tmp_path):
    seen = []
    train(
        tmp_path / "a",
        batches=lambda step: batches(0),
        steps=40,
        progress=lambda *call: seen.append(call),
    )
    assert [call[:2] for call in seen] == [(step, 40) for step in range(1, 41)]
    assert seen[-1][2] < 0.5 * seen[0][2]


def test_checkpoint_and_tokenizer_load_from_the_folder(tmp_path):
    out = train(tmp_path / "deep" / "a")
    assert isinstance(AutoModelForCausalLM.from_pretrained(out).lm_head.weight, torch.Tensor)
    tokenizer = AutoTokenizer.from_pretrained(out)
    text = "Q : where does mira live ? A :"
    assert tokenizer(text).input_ids == [len(SPECIAL) + WORDS.index(word) for word in text.split()]
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (
        tokenizer.decode(tokenizer(f"<bos> {text} <eos>").input_ids, skip_special_tokens=True)
        == text
    )
    assert [tokenizer.convert_tokens_to_ids(word) for word in SPECIAL] == [0, 1, 2, 3]
    assert (
        tokenizer.pad_token,
        tokenizer.bos_token,
        tokenizer.eos_token,
        tokenizer.unk_token,
    ) == SPECIAL
    assert tokenizer("zebra").input_ids == [tokenizer.unk_token_id]


@pytest.mark.parametrize("words", [["a", "a"], ["a b"], [""], ["<pad>"]])
def test_undecodable_vocabulary_is_refused(words):
    with pytest.raises(ValueError, match="distinct words"):
        word_tokenizer(words)


def test_nonfinite_loss_raises_and_leaves_no_folder(tmp_path):
    with pytest.raises(RunError, match=r"loss of base model .* is nan at step 1 of 3"):
        train(tmp_path / "a", batches=lambda step: (batches(step)[0], torch.full((2, 5), math.nan)))
    assert list(tmp_path.iterdir()) == []


def test_interrupted_training_leaves_no_folder(tmp_path):
    def interrupt(step: int, steps: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "a", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_failed_save_leaves_no_folder(tmp_path):
    with pytest.raises(AttributeError):
        train_base(tmp_path / "a", None, tiny_config(), batches, STEPS, 1e-2, 0)
    assert list(tmp_path.iterdir()) == []


def test_first_of_two_concurrent_trainings_stays(tmp_path):
    out = train(tmp_path / "a")
    before = contents(out)
    assert train(out, seed=1) == out
    assert contents(out) == before
    assert list(tmp_path.iterdir()) == [out]


def test_loss_equals_reference():
    ids_BT, weight_BT = batches(7)
    logits_BTV = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
    total = weights = 0.0
    for row in range(2):
        for t in range(1, 5):
            exp = [math.exp(x) for x in logits_BTV[row, t - 1].tolist()]
            total -= weight_BT[row, t].item() * math.log(exp[ids_BT[row, t]] / sum(exp))
            weights += weight_BT[row, t].item()
    assert weighted_loss(logits_BTV, ids_BT, weight_BT).item() == pytest.approx(
        total / weights, rel=1e-5
    )


def test_token_of_weight_zero_has_no_gradient():
    ids_BT, weight_BT = batches(7)
    weight_BT[:, 3] = 0
    logits_BTV = torch.randn(2, 5, 12, requires_grad=True)
    weighted_loss(logits_BTV, ids_BT, weight_BT).backward()
    assert (logits_BTV.grad[:, 2] == 0).all()
    assert (logits_BTV.grad[:, [0, 1, 3]] != 0).any(-1).all()
    assert (logits_BTV.grad[:, 4] == 0).all()  # predicts what comes after the end


def test_padding_token_does_not_matter(tmp_path):
    def padded(filler: int):
        def make(step: int) -> tuple[torch.Tensor, torch.Tensor]:
            ids_BT, weight_BT = batches(step)
            ids_BT[0, 3:] = filler
            weight_BT[0, 3:] = 0
            return ids_BT, weight_BT

        return make

    weights = [
        contents(train(tmp_path / str(f), batches=padded(f)))["model.safetensors"] for f in (0, 9)
    ]
    assert weights[0] == weights[1]
