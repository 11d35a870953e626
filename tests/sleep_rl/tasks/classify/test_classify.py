"""Task classify: datasets, days, texts, the small base and errors."""

import json
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sleep_rl.contracts.errors import InputError
from sleep_rl.tasks.classify.base_model import BaseText, Recipe, train_tokenizer
from sleep_rl.tasks.classify.task import Classify

REAL = Path(__file__).parents[5] / "shared" / "data" / "clinc150" / "data_full.json"
LABELS = ["book_flight", "tire_pressure", "w2", "credit_limit", "play_music", "meal_suggestion"]
THINGS = ["anna", "boston", "17", "café", "jazz", "plums", "rome", "sunday", "tea", "zürich"]
TINY = Recipe(steps=3, vocabulary=300, hidden=64, layers=1, pages=2, bare=4)


def pairs(start: int, stop: int) -> list[list[str]]:
    """Return examples of the classes in turn, so that LABELS is the order of first appearance."""
    return [
        [f"please do {label[:6]} number {i} for {THINGS[i % 10]}", label]
        for i in range(start, stop)
        for label in LABELS
    ]


def content() -> dict:
    oos = [["who won the game", "oos"]]
    return {
        "oos_train": oos,
        "train": pairs(0, 10),
        "val": pairs(10, 12),
        "oos_test": oos,
        "test": pairs(12, 16),
    }


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("clinc") / "data.json", json.dumps(content()))


@pytest.fixture(scope="module")
def task(path) -> Classify:
    return Classify(path, days=2, classes_per_day=2, examples_per_document=3, recipe=TINY)


def labelled(document) -> list[tuple[str, str]]:
    return [tuple(text.split(" => ")) for text in document.text.split("\n")]


def test_days_have_classes_in_order_of_first_appearance(task):
    assert [day.name for day in task.days()] == ["day1", "day2"]
    answers = [list(dict.fromkeys(q.answer for q in day.questions)) for day in task.days()]
    assert answers == [["book flight", "tire pressure"], ["w2", "credit limit"]]
    assert all(len(day.questions) == 8 for day in task.days())
    assert {q.answer for q in task.known()} == {"play music", "meal suggestion"}
    assert all(q.document == "" for q in task.known())


def test_every_utterance_is_in_one_document(task):
    for day, labels in zip(task.days(), (LABELS[:2], LABELS[2:4]), strict=True):
        written = [example for document in day.documents for example in labelled(document)]
        expected = [(u, label.replace("_", " ")) for u, label in pairs(0, 10) if label in labels]
        assert sorted(written) == sorted(expected)
        assert all(len(labelled(document)) <= 3 for document in day.documents)
        assert all(
            len({label for _, label in labelled(d)}) == 2
            for d in day.documents
            if len(labelled(d)) > 1
        )


def test_pages_per_example(path, task):
    once = task.days()[0]
    thrice = Classify(
        path,
        days=2,
        classes_per_day=2,
        examples_per_document=3,
        pages_per_example=3,
        recipe=TINY,
    ).days()[0]

    def lines(day):
        return Counter(example for document in day.documents for example in labelled(document))

    assert lines(thrice) == Counter({example: 3 * n for example, n in lines(once).items()})
    assert len({document.text for document in thrice.documents}) > 2 * len(once.documents)
    assert thrice.documents[: len(once.documents)] == once.documents


def test_questions_name_a_document_with_their_class(task):
    train = {u for u, _ in pairs(0, 10)}
    asked = [q for day in task.days() for q in day.questions]
    assert len({q.id for q in [*asked, *task.known()]}) == len(asked) + len(task.known())
    for day in task.days():
        documents = {document.id: document for document in day.documents}
        for q in day.questions:
            assert (
                q.prompt.startswith("\n")
                and q.prompt.endswith(" =>")
                and q.prompt[1:-3] not in train
            )
            assert q.answer in {label for _, label in labelled(documents[q.document])}


def test_order_seed_permutes_classes_only(path):
    def order(seed):
        days = Classify(path, days=3, classes_per_day=2, order_seed=seed).days()
        return [list(dict.fromkeys(q.answer for q in day.questions)) for day in days]

    plain = order(None)
    orders = [order(seed) for seed in range(4)]
    assert order(2) == orders[2]
    assert any(shuffled != plain for shuffled in orders)
    assert all(sorted(chain(*shuffled)) == sorted(chain(*plain)) for shuffled in orders)


def test_test_per_class_limits_the_questions(path):
    days = Classify(path, days=2, classes_per_day=2, test_per_class=1).days()
    assert [len(day.questions) for day in days] == [2, 2]


def test_baseline_texts(task):
    day = task.sft_texts(task.days()[0])
    assert len(day) == 20 and {text.completion for text in day} == {
        " book flight",
        " tire pressure",
    }
    assert all(text.prompt.startswith("\n") and text.prompt.endswith(" =>") for text in day)
    assert len(task.joint_texts()) == 60 and set(day) < set(task.joint_texts())


def test_grade_requires_the_whole_label(task):
    question = next(q for q in task.days()[1].questions if q.answer == "credit limit")
    graded = {
        text: task.grade(question, text)
        for text in (
            " credit limit",
            "credit limit\nmore",
            "credit",
            "",
            "credit limit change",
            "w2",
        )
    }
    assert [text for text, grade in graded.items() if grade] == [
        " credit limit",
        "credit limit\nmore",
    ]


def test_dataset_with_class_labels_drops_oos(path, tmp_path):
    import datasets  # takes two seconds

    names = ["oos", *LABELS]
    features = datasets.Features(
        {"text": datasets.Value("string"), "intent": datasets.ClassLabel(names=names)}
    )

    def split(records):
        columns = {
            "text": [u for u, _ in records],
            "intent": [names.index(label) for _, label in records],
        }
        return datasets.Dataset.from_dict(columns, features=features)

    splits = {
        "train": [["who won the game", "oos"], *pairs(0, 10)],
        "test": [*pairs(12, 16), ["and who lost", "oos"]],
    }
    saved = datasets.DatasetDict({key: split(records) for key, records in splits.items()})
    saved.save_to_disk(tmp_path / "saved")
    for key, part in saved.items():
        part.to_parquet(tmp_path / "hub" / f"{key}.parquet")
    expected = Classify(path, days=2, classes_per_day=2)
    for folder in ("saved", "hub"):
        read = Classify(str(tmp_path / folder), days=2, classes_per_day=2)
        assert (read.days(), read.known()) == (expected.days(), expected.known())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file"),
        ("", "the file is empty"),
        (b"\xff\xfe\x00", "expected UTF-8 text, got another encoding at byte 0"),
        ('{"train": [', "Expecting value: line 1 column 12"),
        ("[1, 2]", "expected an object with the lists train and test"),
        ('{"train": [], "val": []}', "expected an object with the lists train and test"),
        (
            '{"train": [["hi", "greet"], ["hi"]], "test": []}',
            "record 1: expected a pair of utterance and label",
        ),
        ('{"train": [["hi", 3]], "test": []}', "record 0: expected a pair of utterance and label"),
    ],
    ids=str,
)
def test_invalid_file_gives_one_line_error(text, says, tmp_path):
    path = str(tmp_path / "bad.json") if text is None else write(tmp_path / "bad.json", text)
    with pytest.raises(InputError) as refused:
        Classify(path, days=1, classes_per_day=1)
    message = str(refused.value)
    assert message.startswith(
        f"task.classify.path: a CLINC150 json, a datasets folder or a hub name, got {path}: "
    )
    assert says in message and "\n" not in message


def test_dataset_with_other_columns_is_refused(tmp_path):
    import datasets

    part = datasets.Dataset.from_dict({"question": ["hi"], "reply": ["ho"]})
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "other")
    with pytest.raises(
        InputError,
        match=r"expected a column text and one ClassLabel column, found question, reply$",
    ):
        Classify(str(tmp_path / "other"))
    datasets.DatasetDict({"train": part}).save_to_disk(tmp_path / "half")
    with pytest.raises(
        InputError, match=r"expected a column text|expected the splits train and test, found train$"
    ):
        Classify(str(tmp_path / "half"))


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"days": 0}, "task.days: at least 1, got 0"),
        ({"examples_per_document": 0}, "task.classify.examples_per_document: at least 1, got 0"),
        ({"test_per_class": -1}, "task.classify.test_per_class: at least 1, got -1"),
        (
            {"days": 3, "classes_per_day": 3},
            "task.days * task.classify.classes_per_day is at most 6, ",
        ),
    ],
)
def test_impossible_counts_are_refused(counts, says, path):
    with pytest.raises(InputError) as refused:
        Classify(path, **counts)
    assert str(refused.value).startswith(says) and "\n" not in str(refused.value)


def test_base_needs_remaining_classes_or_base_text(path, tmp_path):
    task = Classify(path, days=3, classes_per_day=2)
    assert task.known() == ()
    with pytest.raises(InputError, match=r"^task.base_text: "):
        task.base_checkpoint(str(tmp_path), 0, None)
    with pytest.raises(InputError, match=r"^task.base_text: .*no such file$"):
        Classify(path, days=3, classes_per_day=2, base_text=str(tmp_path / "none.json"))
    other = write(
        tmp_path / "other.json",
        json.dumps({"train": [["hi", "greet"]], "test": [["hey", "greet"]]}),
    )
    assert [
        q.answer for q in Classify(path, days=3, classes_per_day=2, base_text=other).known()
    ] == ["greet"]


def test_parts_tokenize_like_the_whole(task):
    tokenizer = train_tokenizer([u for u, _ in pairs(0, 10)], 300)
    day = task.days()[0]

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    document = day.documents[0].text
    question = day.questions[0]
    utterance = question.prompt[1:-3]
    pieces = [document, task.opener, utterance, task.marker, f" {question.answer}"]
    assert list(chain(*map(ids, pieces))) == ids("".join(pieces))
    assert ids("".join(pieces)) == ids(document) + ids(question.prompt) + ids(question.answer)
    assert len(ids(task.opener)) == len(ids(task.marker)) == 1
    assert tokenizer.decode(ids("never seen: ñandú № 5")).strip() == "never seen: ñandú № 5"


def test_base_text_repeats_examples_and_padding_has_weight_zero(path):
    train = {
        "book flight": ["fly me to rome", "a flight to zürich"],
        "play music": ["play jazz", "some music please"],
    }
    tokenizer = train_tokenizer([u for utterances in train.values() for u in utterances], 300)
    text = BaseText(
        train,
        tokenizer,
        Recipe(repeated=1.0, nonsense=0.0, drill=0.0, with_page=1.0, renamed=0.0),
        0,
    )
    ids_BT, weight_BT = text.batches(1400)
    assert torch.equal(text.batches(1400)[0], ids_BT) and not torch.equal(
        text.batches(1401)[0], ids_BT
    )
    assert (weight_BT[ids_BT == tokenizer.pad_token_id] == 0).all() and (
        ids_BT[:, 0] == tokenizer.bos_token_id
    ).all()
    for row in ids_BT:
        page, *behind = (
            tokenizer.decode(row).replace("<pad>", "").replace("<bos>", "").split("<eos>")
        )
        lines = [example.strip() for example in page.split("\n")]
        assert lines[-1] in lines[:-1]
        assert all(example.strip() in lines for example in behind if example.strip())


def test_base_is_trained_once_and_loads_with_auto_classes(task, tmp_path):
    steps = []
    folder = task.base_checkpoint(
        str(tmp_path), 0, lambda step, total, loss: steps.append((step, total))
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert task.base_checkpoint(str(tmp_path), 0, lambda *_: pytest.fail("trained again")) == folder
    assert task.base_checkpoint(str(tmp_path), 1, None) != folder
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == (
        "<pad>",
        "<bos>",
        "<eos>",
    )
    question = task.days()[0].questions[0]
    ids = tokenizer(question.prompt)["input_ids"]
    assert (
        ids == train_tokenizer_of(task)(question.prompt)["input_ids"]
        and tokenizer.bos_token_id not in ids
    )
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == question.prompt.split()
    assert model(input_ids=torch.tensor([ids])).logits.shape == (1, len(ids), len(tokenizer))


def train_tokenizer_of(task: Classify):
    """Return the tokenizer as trained, before it is saved: ids must not depend on the process or on
    saving.
    """
    texts = [
        text
        for label in ("play_music", "meal_suggestion")
        for u, given in pairs(0, 10)
        if given == label
        for text in (u, label.replace("_", " "))
    ]
    return train_tokenizer(texts, TINY.vocabulary)


@pytest.mark.skipif(not REAL.is_file(), reason="the CLINC150 file is not on this machine")
def test_clinc150():
    task = Classify(str(REAL))
    days = task.days()
    assert [len({q.answer for q in day.questions}) for day in days] == [15, 15, 15]
    assert sum(len(day.questions) for day in days) == 1350 and len(task.known()) == 315
    assert [len(day.documents) for day in days] == [250, 250, 250]
    assert [len(task.sft_texts(day)) for day in days] == [1500, 1500, 1500] and len(
        task.joint_texts()
    ) == 15_000
    assert days[0].questions[0].answer == "translate"
