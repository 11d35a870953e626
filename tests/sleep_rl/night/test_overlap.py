"""No evaluation question is trained on: in any task's texts, or in what the teacher writes."""

import json

import pytest

from sleep_rl.night.overlap import EvaluationQuestions
from sleep_rl.night.sequences import NightData, Origin, TeacherSequence
from sleep_rl.tasks.arc.task import Arc
from sleep_rl.tasks.classify.task import Classify
from sleep_rl.tasks.documents.task import Documents
from sleep_rl.tasks.squad.task import Squad
from sleep_rl.tasks.world.task import World
from sleep_rl.text.codec import PromptCodec
from sleep_rl.writing.questions import normalised
from tests.fakes.crew import CONFIG, live_life
from tests.fakes.reader import Purchases
from tests.fakes.tokenizers import chat_tokenizer


def world(folder):
    return World(0, days=2, people_per_day=2, known_people=4)


def squad(folder):
    rows = [
        {
            "title": f"Place {n}",
            "context": f"Place {n} lies in Land {n}.",
            "questions": [{"question": f"Where lies Place {n}?", "answer": f"Land {n}"}],
        }
        for n in range(4)
    ]
    (folder / "passages.json").write_text(json.dumps(rows))
    return Squad(str(folder / "passages.json"), days=2, passages_per_day=1)


def classify(folder):
    def pairs(start, stop):
        return [[f"do {label} {n}", label] for n in range(start, stop) for label in "abcd"]

    content = {"oos_train": [["who won", "oos"]], "oos_test": [["who won", "oos"]]}
    content |= {"train": pairs(0, 5), "val": pairs(5, 6), "test": pairs(6, 8)}
    (folder / "data.json").write_text(json.dumps(content))
    return Classify(str(folder / "data.json"), days=2, classes_per_day=1)


def arc(folder):
    pairs = [{"input": [[n, 1]], "output": [[1, n]]} for n in (2, 3, 4)]
    puzzles = {"p": {"train": pairs, "test": [{"input": [[5]]}]}}
    (folder / "challenges.json").write_text(json.dumps(puzzles))
    (folder / "solutions.json").write_text(json.dumps({"p": [[[5]]]}))
    return Arc(str(folder), puzzles_per_day=1)


def documents(folder):
    (folder / "a.md").write_text("Ada runs the mill since 1907.")
    row = {"question": "Who runs the mill?", "answer": "Ada"}
    (folder / "questions.jsonl").write_text(json.dumps(row))
    return Documents(str(folder))


@pytest.mark.parametrize("make", [world, squad, classify, arc, documents], ids=lambda f: f.__name__)
def test_no_task_trains_on_its_evaluation_questions(make, tmp_path):
    """Also as the whole text of a prompt and its answer. Joint training does: it is the bound."""
    task = make(tmp_path)
    questions = [*task.known(), *(q for day in task.days() for q in day.questions)]
    asked = {normalised(q.prompt) for q in questions}
    answered = {normalised(f"{q.prompt} {q.answer}") for q in questions}
    texts = [text for day in task.days() for text in task.sft_texts(day)]
    prompts = {normalised(t.prompt) for t in texts}
    whole = {normalised(f"{t.prompt} {t.completion}") for t in texts}
    assert questions and texts
    assert not asked & prompts and not answered & whole
    if make not in (arc, classify):  # whose joint training has the days' own examples
        assert asked <= {normalised(t.prompt) for t in task.joint_texts()}


TASK = Purchases()
CODEC = PromptCodec(TASK, chat_tokenizer(), "chat")


def sequence(question, form=CODEC.form, origin=Origin.DOCUMENT):
    x_T = form.question(question)
    return TeacherSequence(origin, (1,), (1,), x_T + form.answer("A kite.") + (form.end,), len(x_T))


def test_in_natural_language_the_teachers_copies_of_them_are_dropped():
    asked = TASK.days()[0].questions[0].prompt
    kept = [sequence("What did Alice Thorne sell?"), sequence(f"{asked} And why")]
    plain = TeacherSequence(Origin.UNCONDITIONAL, (1,), (1,), CODEC.ids("What did he buy?"))
    copies = [
        sequence(asked),
        sequence(f"  {asked.upper().replace('?', ' ??')}"),
        sequence(asked, CODEC.other),  # in raw text
        sequence(TASK.days()[1].questions[-1].prompt),  # one that was never told
        sequence(TASK.known()[0].prompt, origin=Origin.UNCONDITIONAL),
    ]
    new = [copies[0], kept[0], copies[1], copies[2], kept[1], copies[3]]
    data = NightData(new, [plain, copies[4]], [sequence(asked)], [])
    questions = EvaluationQuestions(TASK, CODEC)
    assert questions.without(data) == (NightData(kept, [plain], [], []), 3)
    assert questions.without(NightData(kept, [plain], [], [])) == (
        NightData(kept, [plain], [], []),
        0,
    )


def test_a_question_may_end_like_the_marker():
    class Short(Purchases):
        def known(self):
            [sky] = super().known()
            return (type(sky)("k", "What is the answer?", "42"),)

    codec = PromptCodec(Short(), chat_tokenizer(), "raw")
    found = EvaluationQuestions(Short(), codec)
    data = NightData([sequence("What is the answer?", codec.form)], [], [], [])
    assert found.without(data) == (NightData([], [], [], []), 1)
    other = NightData([sequence("What is the?", codec.form)], [], [], [])
    assert found.without(other) == (other, 0)


def test_in_a_fixed_form_they_are_counted_and_stay(tmp_path):
    """The Crew writes the day's own question, and rehearses those of the days before."""
    _, records = live_life(CONFIG, tmp_path)
    counts = {(r["night"], r["sender"]): r["overlap"] for r in records if r["kind"] == "written"}
    # the day's own question (also where a level sends, for reading), and those before it, rehearsed
    assert counts == {(1, 0): 1} | {(n, sender): n for n in (2, 3, 4) for sender in (0, 1)}
