"""benchmarks/answer_styles.py: which questions are asked, and values against a plain model."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.answer_styles import HEADER, STYLES, answered_by_a_piece, compare, measure
from sleep_rl.config.loader import load
from sleep_rl.contracts.records import Document, Question
from sleep_rl.tasks.registry import make_task
from sleep_rl.text.answer_style import load_style
from sleep_rl.text.loading import load_codec
from tests.fakes.models import make_base


def test_questions_that_one_piece_answers():
    documents = [Document("a", "Mara Quill has a dog."), Document("b", "mara quill sings. 37 do.")]
    questions = [
        Question("1", "Who sings?", "Mara Quill", kind="verbatim"),
        Question("2", "How many sing?", "37", kind="paraphrased"),
        Question("3", "Whose dog sings?", "37", kind="two-hop"),
        Question("4", "Who paints?", "Mara Quill", kind="never-told"),
        Question("5", "Who swims?", "Ruth Abel", kind="verbatim"),
    ]
    assert answered_by_a_piece(questions, documents) == [
        (questions[0], documents[0]),
        (questions[1], documents[1]),
    ]


@pytest.mark.stack
def test_measurements_are_those_of_a_plain_model(tmp_path):
    from actors.engine import Engine

    base = str(tmp_path / "tiny")
    make_base("llama", base, max_position_embeddings=4096)
    config = load(
        "configs/documents.yaml",
        [
            "task.documents.path=benchmarks/development/day1",
            f"model.base={base}",
            "model.format=raw",
            "model.dtype=float32",
            "model.memory_layers=1",
            "rollouts.engine.max_model_len=4096",
            "rollouts.engine.kv_cache_memory_bytes=33554432",
        ],
    )
    task = make_task(config)
    codec = load_codec(task, base, config)
    day = task.days()[0]
    pairs = answered_by_a_piece(day.questions, day.documents)
    engine = Engine(base, dtype="float32", options=config.rollout_engine, seed=0, memory=False)
    style = load_style("short")
    measured = measure(engine, codec, pairs[:3], style)
    engine.close()
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    nll = []
    for question, document in pairs[:3]:
        prompt_T = codec.context(document, style) + codec.question(question)
        gold_T = codec.form.answer(question.answer)
        with torch.no_grad():
            logp = model(torch.tensor([prompt_T + gold_T])).logits[0].log_softmax(-1)
        places = range(len(prompt_T) - 1, len(prompt_T) + len(gold_T) - 1)
        nll.append(-sum(logp[t, token].item() for t, token in zip(places, gold_T, strict=True)))
    assert measured.nll == pytest.approx(sum(nll) / 3, rel=1e-3)
    assert 0 < measured.tokens <= 32 and 0 <= measured.recall <= 1
    rows = compare(config, base, STYLES)
    assert rows[0] == HEADER and [row[0] for row in rows[1:]] == list(STYLES)
