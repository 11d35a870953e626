"""benchmarks/trained_questions.py: a night's own questions, asked again."""

from dataclasses import replace

import pytest
import torch

from benchmarks import trained_questions
from sleep_rl.night.sequences import Origin, TeacherSequence

WORDS = {20: "who?", 21: " Ada", 22: " Mira", 2: "<end>"}
QUESTION = TeacherSequence(Origin.DOCUMENT, (1, 9), (1,), (20, 21, 2), 1)


def test_questions_of_the_usual_form_about_documents_are_asked():
    others = [replace(QUESTION, bare_T=(3,)), replace(QUESTION, origin=Origin.DELETED)]
    three = [replace(QUESTION, sequence_T=(20, n, 2)) for n in (21, 22, 23)]
    found = trained_questions.asked([*others, *three], 9)
    assert sorted(s.sequence_T[1] for s in found) == [21, 22, 23]
    assert trained_questions.asked(three, 2) == trained_questions.asked(three, 2)
    assert len(trained_questions.asked(three, 2)) == 2


class Words:
    """A tokenizer of a few words."""

    all_special_tokens = ("<end>",)

    def decode(self, ids):
        return "".join(WORDS[token] for token in ids)

    def batch_decode(self, rows, skip_special_tokens):
        assert skip_special_tokens
        return [self.decode(t for t in row.tolist() if t != 2) for row in rows]

    def pad(self, batch, padding_side, return_tensors):
        assert (padding_side, return_tensors) == ("left", "pt")
        longest = max(map(len, batch["input_ids"]))
        ids = [[2] * (longest - len(row)) + row for row in batch["input_ids"]]
        return {"input_ids": torch.tensor(ids)}


class Echo:
    """A model that answers with the last token of its prompt."""

    def generate(self, input_ids, max_new_tokens, do_sample):
        assert max_new_tokens == trained_questions.MOST_TOKENS and not do_sample
        return torch.cat([input_ids, input_ids[:, -1:], torch.full((len(input_ids), 1), 2)], 1)


def test_answers_are_what_follows_the_prompts(monkeypatch):
    monkeypatch.setattr(trained_questions, "BATCH", 2)
    prompts = [(20, 21), (20, 20, 22), (22,)]
    assert trained_questions.answers(Echo(), Words(), prompts) == [" Ada", " Mira", " Mira"]


@pytest.mark.parametrize("text, right", [(" Ada", 1), ("It is Ada.", 1), (" Mira", 0)])
def test_answers_count_by_who_gave_them(text, right):
    sequences = [QUESTION, replace(QUESTION, given=True), QUESTION]
    counts = trained_questions.recalled(sequences, [text, " Ada", text], Words())
    assert counts == {"given": (1, 1), "the teacher's own": (2 * right, 2)}
