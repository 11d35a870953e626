"""The semantic rewards with tiny models: an encoder, and a language model as the judge."""

from __future__ import annotations

import pytest
import torch
import transformers

from sleep_rl.contracts.errors import Failure, InputError
from sleep_rl.contracts.records import Pair
from sleep_rl.contracts.roles import Reward
from sleep_rl.model import checkpoints
from tests.fakes.models import ENGINE, make_tokenizer

TEXTS = [
    "the cat sleeps",
    "the cat sleeps here",
    "42",
    "ünïcode ✓",
    "a much longer text about something else",
]


def ids(text: str) -> tuple[int, ...]:
    return tuple(make_tokenizer()(text)["input_ids"])


def pair(student: str, teacher: str) -> Pair:
    return Pair((*ids(student), 1), (*ids(teacher), 1))  # with eos, as samples have it


EMPTY = Pair((1,), ids("x"))
FOREIGN = Pair((5,), (299,))


@pytest.fixture(scope="module")
def encoder_checkpoint(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = str(tmp_path_factory.mktemp("encoder") / "bert")
    model = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=300,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    )
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@torch.no_grad()
def slow_cosine(model, student: str, teacher: str) -> float:
    """Return the cosine of mean hidden states, one text at a time without padding."""
    means = [
        model(torch.tensor([ids(text)])).last_hidden_state[0].double().mean(0)
        for text in (student, teacher)
    ]
    return float(means[0] @ means[1] / means[0].norm() / means[1].norm())


@pytest.mark.parametrize("kind", ["bert", "base", "sleep"])
def test_encoder_equals_one_text_at_a_time(
    kind, encoder_checkpoint, base_checkpoint, sleep_checkpoint
):
    """For an encoder, a decoder and a sleep checkpoint: padding changes nothing, and both values
    occur.
    """
    from actors.semantic_reward import EncoderReward

    path = {"bert": encoder_checkpoint, "base": base_checkpoint(), "sleep": sleep_checkpoint()}[
        kind
    ]
    model = (
        checkpoints.load(path).model
        if kind == "sleep"
        else transformers.AutoModel.from_pretrained(path)
    )
    pairs = [(a, b) for a in TEXTS for b in TEXTS]
    cosines = [slow_cosine(model.eval(), a, b) for a, b in pairs]
    threshold = sorted(cosines)[len(cosines) // 2] - 1e-5
    reward = EncoderReward(path, base_checkpoint(), threshold)
    assert isinstance(reward, Reward)
    values = reward.score([pair(a, b) for a, b in pairs])
    assert values == [float(c >= threshold) for c in cosines]
    assert 0 < sum(values) < len(values)
    reward.close()


def test_encoder_rewards_equal_texts_with_1(encoder_checkpoint, base_checkpoint):
    from actors.semantic_reward import EncoderReward

    reward = EncoderReward(encoder_checkpoint, base_checkpoint(), 1 - 1e-9)
    assert reward.score([pair(t, t) for t in TEXTS]) == [1.0] * len(TEXTS)
    assert reward.score([pair(TEXTS[0], TEXTS[2])]) == [0.0] and reward.score([]) == []


def test_encoder_failures_do_not_affect_other_pairs(encoder_checkpoint, base_checkpoint, tmp_path):
    from actors.semantic_reward import EncoderReward

    reward = EncoderReward(encoder_checkpoint, base_checkpoint(), 0.99)
    good = pair(TEXTS[0], TEXTS[0])
    values = reward.score([good, EMPTY, FOREIGN, pair("x" * 65, "y"), good])
    assert values[0] == values[4] == 1.0
    assert [isinstance(v, Failure) for v in values] == [False, True, True, True, False]
    reasons = [v.reason for v in values[1:4]]
    assert "no text" in reasons[0] and "ids outside" in reasons[1] and "does not fit" in reasons[2]
    model = transformers.BertModel.from_pretrained(encoder_checkpoint)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[ids("Z")[0]] = float("nan")
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    reward = EncoderReward(str(tmp_path), base_checkpoint(), 0.99)
    values = reward.score([good, pair("Z", TEXTS[0]), good])
    assert values[0] == values[2] == 1.0 and "not finite" in values[1].reason


TEMPLATE = "{student} or {teacher}:"


@pytest.mark.stack
def test_judge_equals_transformers(sleep_checkpoint):
    """The reward compares next-token log-probabilities; invalid pairs are failures.

    The judge is a sleep checkpoint: another architecture would cost vLLM's inspection process (10
    to 60 s).
    """
    from actors.semantic_reward import JudgeReward

    path = sleep_checkpoint("qwen2")
    model = checkpoints.load(path)
    tokenizer = make_tokenizer()
    words = [
        [tokenizer.convert_tokens_to_ids(w) for w in pair]
        for pair in (("yes", "Ġyes"), ("no", "Ġno"))
    ]
    pairs = [(a, b) for a in TEXTS for b in TEXTS]
    with torch.no_grad():
        logits = [
            model(torch.tensor([ids(TEMPLATE.format(student=a, teacher=b))])).logits[0, -1]
            for a, b in pairs
        ]
    margins = [(v[words[0]].logsumexp(0) - v[words[1]].logsumexp(0)).item() for v in logits]
    # both values occur, none by a small margin
    assert min(map(abs, margins)) > 1e-4 and min(margins) < 0 < max(margins)
    reward = JudgeReward(path, path, TEMPLATE, dtype="float32", engine=ENGINE)
    try:
        assert isinstance(reward, Reward)
        assert reward.score([pair(a, b) for a, b in pairs]) == [float(m > 0) for m in margins]
        good = pair(*pairs[0])
        values = reward.score(
            [good, EMPTY, FOREIGN, pair("x" * 130, "y"), good, pair("{student}", "}{")]
        )
        assert values[0] == values[4] == float(margins[0] > 0) and values[5] in (0.0, 1.0)
        assert [isinstance(v, Failure) for v in values] == [False, True, True, True, False, False]
        assert "max_model_len" in values[3].reason and reward.score([EMPTY])[0] == values[1]
        assert reward.score([]) == []
    finally:
        reward.close()


def test_invalid_models_and_templates_are_one_line(base_checkpoint, encoder_checkpoint, tmp_path):
    from actors.semantic_reward import EncoderReward, JudgeReward

    base = base_checkpoint()
    missing = str(tmp_path / "missing")
    wordless = str(tmp_path / "wordless")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=_words("a", "b"), unk_token="<unk>"
    ).save_pretrained(wordless)
    options = {"dtype": "float32", "engine": ENGINE}
    for build in (
        lambda: EncoderReward(missing, base, 0.9),
        lambda: EncoderReward(encoder_checkpoint, missing, 0.9),
        lambda: JudgeReward(missing, base, TEMPLATE, **options),
        lambda: JudgeReward(base, missing, TEMPLATE, **options),
        lambda: JudgeReward(wordless, base, TEMPLATE, **options),
        lambda: JudgeReward(base, base, "{student} alone", **options),
        lambda: JudgeReward(base, base, "{student} {teacher} {other}", **options),
        lambda: JudgeReward(base, base, "{student} {teacher} {", **options),
    ):
        with pytest.raises(InputError) as error:
            build()
        assert "\n" not in str(error.value) and str(error.value).startswith("reward")


def _words(*words: str):
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["<unk>", *words])}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend
