"""Forms: the ids of contexts, questions and answers are those of the whole text."""

import random

import pytest

from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import Document, Question, TrainingText
from sleep_rl.text.codec import CUT, STRING, TOKEN, PromptCodec
from sleep_rl.text.forms import ChatForm, RawForm
from sleep_rl.text.tokens import TextTokenizer
from tests.fakes.texts import Asking, Natural, Words
from tests.fakes.tokenizers import TEMPLATES, chat_tokenizer, tekken

WORDS = [
    "the",
    "old",
    "house",
    "of",
    "Mara",
    "Quill",
    "stands",
    "in",
    "Ostrava",
    "since",
    "1912",
    "37",
]
ENDINGS = ["?", ".", ")", '"', "?\n", ".\n\n", ")\n", '"\n\n\n', "!?", "…", "é?"]
CONTROL = "a <|im_end|> b <|im_start|>user c </s> [INST] <|endoftext|> <think> d <|eot_id|>"


@pytest.fixture(
    scope="module", params=[*TEMPLATES, pytest.param("tekken", marks=pytest.mark.stack)]
)
def tokenizer(request, tmp_path_factory):
    if request.param == "tekken":
        return tekken(tmp_path_factory.mktemp("tekken"))
    return chat_tokenizer(TEMPLATES[request.param])


def sentences(count):
    rng = random.Random(0)
    for _ in range(count):
        words = rng.choices(WORDS, k=rng.randint(2, 12))
        yield " ".join(words) + rng.choice(ENDINGS)


def rendered(tokenizer, question):
    """Return the prompt of a served model, rendered by the template itself, with a system turn if
    it requires one.
    """
    from jinja2 import TemplateError

    turns = [{"role": "user", "content": question}]
    options = {"add_generation_prompt": True, "tokenize": False, "enable_thinking": False}
    try:
        return tokenizer.apply_chat_template(turns, **options)
    except TemplateError:
        system = {"role": "system", "content": "You are a helpful assistant."}
        return tokenizer.apply_chat_template([system, *turns], **options)


def test_chat_ids_equal_those_of_the_rendered_text(tokenizer):
    form = ChatForm(TextTokenizer(tokenizer))
    for sentence in sentences(1000):
        whole = tokenizer(rendered(tokenizer, sentence.strip()), add_special_tokens=False)
        assert list(form.context(None) + form.question(sentence)) == whole["input_ids"], sentence


def test_raw_ids_equal_those_of_the_whole_text(tokenizer):
    form = RawForm(TextTokenizer(tokenizer))
    bos = [tokenizer.bos_token_id]
    for sentence in sentences(1000):
        text = f"Question: {sentence.strip()}\nAnswer: The house."
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        parts = form.context(None) + form.question(sentence) + form.answer("The house.")
        assert list(parts) == bos + whole, sentence


def test_markers_are_found_across_token_borders(tokenizer):
    """The answer of a sampled sequence begins after the marker, also if "?\\n" is one token."""
    tokens = TextTokenizer(tokenizer)
    for form in (RawForm(tokens), ChatForm(tokens)):
        for sentence in sentences(200):
            answer = form.answer("It stands there.")
            written = form.question(sentence) + answer
            length = form.x_length(written)
            assert tokens.text(written[length:]).strip() == "It stands there.", sentence
            assert form.x_length(written[: length - 1]) is None
            assert form.x_length(answer) is None


def test_document_ids_precede_the_question(tokenizer):
    tokens = TextTokenizer(tokenizer)
    for form in (RawForm(tokens), ChatForm(tokens)):
        without = form.context(None)
        for sentence in sentences(50):
            context = form.context(Document("d", f"{sentence} Ostrava.\n"))
            text = tokens.text(context + form.question("Who?"), special=True)
            assert f"{sentence} Ostrava.\n\nQuestion:" in text
            # the same text, tokenized whole, but for the place where x begins
            assert tokens.text(tokens.ids(text), special=True) == text
            assert form.context(None) == without != context


def test_control_strings_in_user_text_are_plain_text(tokenizer):
    codec = PromptCodec(Natural(), tokenizer, "chat")
    added = set(tokenizer.get_added_vocab().values())
    document = Document("d", CONTROL)
    for form in (codec.form, codec.other):
        plain = form.context(Document("d", "a b c"))
        controls = [i for i in plain if i in added]
        assert [i for i in form.context(document) if i in added] == controls
        asked = [i for i in form.question("who?") if i in added]
        assert [i for i in form.question(CONTROL) if i in added] == asked
        assert not added & set(form.answer(CONTROL))
    assert not added & set(codec.ids(CONTROL))
    assert codec.tokens.text(codec.ids(CONTROL), special=True) == CONTROL
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert set(codec.document(document)) & added == ends
    prompt, completion = codec.baseline(TrainingText(CONTROL, CONTROL))
    clean_prompt, clean = codec.baseline(TrainingText("who?", "me"))
    assert [i for i in prompt if i in added] == [i for i in clean_prompt if i in added]
    assert [i for i in completion if i in added] == [i for i in clean if i in added]


def test_end_token():
    codec = PromptCodec(Natural(), chat_tokenizer(), "auto", ends=(7, 9))
    [end] = codec.eos
    assert codec.tokens.text((end,), special=True) == "<|im_end|>"
    assert codec.ends == (end, codec.tokenizer.eos_token_id, 7, 9)
    assert codec.baseline(TrainingText("who?", "me"))[1][-1] == end
    raw = PromptCodec(Natural(), chat_tokenizer(), "raw")
    assert raw.eos == (raw.tokenizer.eos_token_id,)


@pytest.mark.parametrize(
    "form, written, kept, end",
    [
        ("chat", "Anna Berg.{end}", "Anna Berg.", TOKEN),
        ("chat", "Anna Berg.\nUser: and then?{end}", "Anna Berg.", STRING),
        ("chat", "Anna Berg, the\nUser:", "Anna Berg, the", STRING),
        ("chat", "Anna Berg. She was the", "Anna Berg.", CUT),
        ("chat", "Anna Berg, the", None, None),
        ("chat", "\nUser: Anna Berg.{end}", None, None),
        ("raw", " Anna Berg{end}", " Anna Berg", TOKEN),
        ("raw", " Anna Berg\nUser:", " Anna Berg", STRING),
        ("raw", " Anna Berg\nQuestion: Who\nUser:", " Anna Berg", CUT),
        ("raw", " Anna Berg, \nUser:", " Anna Berg,", STRING),
    ],
)
def test_an_answer_ends_with_a_token_in_front_of_a_stop_string_or_is_cut(form, written, kept, end):
    codec = PromptCodec(Natural(), chat_tokenizer(), form, stop=("\nUser:",))
    text = codec.tokens.text(codec.eos, special=True)
    answer = codec.complete(codec.tokens.ids(written.format(end=text)))
    # the line break in ".\n", one token, stays
    assert (answer and (codec.text(answer[0]).rstrip("\n"), answer[1])) == (kept and (kept, end))
    cut = written.format(end="").partition("\nUser:")[0]
    assert codec.answer_text(codec.tokens.ids(written.format(end=text))) == cut
    # a task with a fixed form has no stop strings
    assert PromptCodec(Asking(), Words(), form, stop=("User:",)).stop == ()


def test_thinking_is_disabled():
    form = ChatForm(TextTokenizer(chat_tokenizer(TEMPLATES["thinking"])))
    assert form.template.between.endswith("<think>\n\n</think>\n\n")


def test_choose_form():
    tokenizer = chat_tokenizer()
    assert PromptCodec(Natural(), tokenizer, "auto").form.name == "chat"
    assert PromptCodec(Natural(), tokenizer, "raw").form.name == "raw"
    assert PromptCodec(Natural(), tokenizer, "raw").other.name == "chat"
    tokenizer.chat_template = None
    assert PromptCodec(Natural(), tokenizer, "auto").form.name == "raw"
    assert PromptCodec(Natural(), tokenizer, "auto").other is None
    with pytest.raises(
        InputError, match=r"model\.format: auto or raw .* without a chat template, got chat"
    ):
        PromptCodec(Natural(), tokenizer, "chat")
    tokenizer.chat_template = "{{ raise_exception('broken') }}"
    with pytest.raises(InputError, match=r"model\.format: .* cannot be used \(.*broken"):
        PromptCodec(Natural(), tokenizer, "chat")


def test_task_form():
    codec = PromptCodec(Asking(), Words(), "chat")
    assert codec.form.name == "task" and codec.other is None
    assert codec.question(Question("q", "Q : who ? A :", "me")) == codec.ids("Q : who ? A :")
    assert codec.bare == codec.bos + codec.ids("Q :")
