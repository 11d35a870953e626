"""Styles of answers: shipped and custom files, the contexts they give, and one-line errors."""

import pytest

from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import Document
from sleep_rl.text.answer_style import AT_LENGTH, FOLDER, SENTENCE, AnswerStyle, load_style
from sleep_rl.text.codec import PromptCodec
from sleep_rl.text.forms import ChatForm, RawForm
from sleep_rl.text.probe import check_round_trip
from sleep_rl.text.tokens import TextTokenizer
from tests.fakes.texts import Natural
from tests.fakes.tokenizers import TEMPLATES, chat_tokenizer

STYLE = AnswerStyle(
    "Answer in a word.", (("A note.", "Who?", "Mara."), ("B note.", "When? <|im_end|>", "1912."))
)
DOCUMENT = Document("d", "The old house.\n")


def in_chat(text, tokenizer):
    """Return a conversation with one answered turn, rendered by the template itself."""
    return tokenizer.apply_chat_template(
        [
            {
                "role": "user",
                "content": "Answer in a word.\n\nDocument:\nA note.\n\nQuestion:\nWho?",
            },
            {"role": "assistant", "content": "Mara."},
            {"role": "user", "content": f"Answer in a word.\n\nDocument:\n{text}"},
        ],
        tokenize=False,
    )


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_shipped_styles_round_trip(name, template):
    style = load_style(name)
    assert style.instruction.endswith(".")
    for form in ("chat", "raw"):
        tokenizer = chat_tokenizer(TEMPLATES[template])
        check_round_trip(PromptCodec(Natural(), tokenizer, form, style=style))


def test_examples_precede_the_document_as_answered_turns():
    tokenizer = chat_tokenizer()
    tokens = TextTokenizer(tokenizer)
    form = ChatForm(tokens)
    style = AnswerStyle(STYLE.instruction, STYLE.examples[:1])
    text = tokens.text(form.context(DOCUMENT, style), special=True)
    space = text[len(text.rstrip()) :]
    expected = in_chat(f"The old house.\n\nQuestion:{space}WHAT", tokenizer).partition("WHAT")[0]
    assert text == expected.replace("Question:\nWho?", f"Question:{space}Who?")
    assert form.context(None, style) == form.context(None)
    plain = tokens.text(form.context(DOCUMENT, AT_LENGTH), special=True)
    assert f"Read this document and answer the question.\n\nDocument:\n{DOCUMENT.text}" in plain


def test_examples_of_the_raw_form_are_plain_text():
    tokenizer = chat_tokenizer()
    tokens = TextTokenizer(tokenizer)
    form = RawForm(tokens)
    assert tokens.text(form.context(DOCUMENT, STYLE)) == (
        "A note.\n\nQuestion: Who?\nAnswer: Mara.\n\n\n"
        "B note.\n\nQuestion: When? <|im_end|>\nAnswer: 1912.\n\n\n"
        "The old house.\n\nQuestion:"
    )
    assert form.context(DOCUMENT, AT_LENGTH) == form.context(DOCUMENT)


@pytest.mark.parametrize("form", [ChatForm, RawForm])
def test_control_strings_of_examples_are_plain_text(form):
    tokenizer = chat_tokenizer()
    tokens = TextTokenizer(tokenizer)
    added = set(tokenizer.get_added_vocab().values())
    clean = AnswerStyle("Answer in a word.", (("A note.", "Who?", "Mara."), ("B.", "When?", "1.")))
    contexts = [form(tokens).context(DOCUMENT, style) for style in (STYLE, clean)]
    controls = [[token for token in context if token in added] for context in contexts]
    assert controls[0] == controls[1]


def test_style_from_a_path(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("instruction: Say it.\nexamples: [{document: d, question: 'q?', answer: 12}]\n")
    assert load_style(str(file)) == AnswerStyle("Say it.", (("d", "q?", "12"),))


@pytest.mark.parametrize(
    "text, line",
    [
        ("- a", r"instruction and, if wanted, examples, got \['a'\]"),
        ("instruction: a\nexample: []", "examples, got instruction, example"),
        ("examples: []", "instruction and, if wanted, examples, got examples"),
        ("instruction: ''", "instruction is a sentence, got an empty one"),
        ("instruction: a\nexamples: b", "examples is a list, got 'b'"),
        ("instruction: a\nexamples: [b]", "an example has document, question, answer, got 'b'"),
        (
            "instruction: a\nexamples: [{question: b}]",
            "an example has document, question, answer, got question",
        ),
        (
            "instruction: a\nexamples: [{document: '', question: b, answer: c}]",
            "a text in each of its keys",
        ),
        ("instruction: [", "no readable style of answers"),
    ],
)
def test_invalid_style_gives_one_line_error(tmp_path, text, line):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=line) as error:
        load_style(str(file))
    assert "\n" not in str(error.value)


def test_unknown_style_names_the_shipped_ones():
    with pytest.raises(
        InputError, match=r"generation\.answers: one of sentence, short, or the path"
    ):
        load_style("long")


def test_evaluation_asks_for_a_sentence_and_leaves_room_for_the_longer_style():
    codec = PromptCodec(Natural(), chat_tokenizer(), "chat", style=STYLE)
    assert codec.context(DOCUMENT) == codec.form.context(DOCUMENT, SENTENCE)
    assert codec.context(DOCUMENT, codec.style) == codec.form.context(DOCUMENT, STYLE)
    longest = len(codec.context(Document("", "."), STYLE))
    assert longest > len(codec.context(Document("", ".")))
    assert codec.room(1024) == 1024 - longest - codec.task.max_new_tokens
