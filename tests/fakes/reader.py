"""A task and a crew in natural language: the crew answers what it finds in context, and what its
state knows.
"""

from __future__ import annotations

from sleep_rl.config.schema import Config
from sleep_rl.contracts.records import NEVER_TOLD, Day, Document, Question
from sleep_rl.journal.journal import Journal
from sleep_rl.session.console import Console
from sleep_rl.session.context import RunContext
from sleep_rl.text.codec import PromptCodec
from tests.fakes.crew import sampled_ids
from tests.fakes.texts import Asking
from tests.fakes.tokenizers import chat_tokenizer

BOUGHT = {
    "Alice Thorne": "red seaweed",
    "Edgar Pike": "brass clock",
    "Ruth Abel": "white hedgehog",
    "Ned Gray": "blue kite",
}
UNKNOWN = "I do not know."


class Purchases(Asking):
    """Two days of two documents, each with two questions; and one question that none answers."""

    name = "purchases"
    opener = ""
    marker = ""
    max_new_tokens = 60
    max_answer_tokens = 40

    def days(self):
        people = list(BOUGHT)
        return tuple(self._day(n, people[2 * n - 2 : 2 * n]) for n in (1, 2))

    def _day(self, number, people):
        documents = tuple(
            Document(f"day{number}/{who}", f"In spring {who} bought a {BOUGHT[who]}.")
            for who in people
        )
        questions = []
        for document, who in zip(documents, people, strict=True):
            wrong = tuple(what for name, what in BOUGHT.items() if name != who)
            for kind, text in (
                ("verbatim", f"What did {who} buy?"),
                ("paraphrased", f"Which thing is owned by {who}?"),
            ):
                name = f"day{number}/{who}/{kind}"
                questions.append(Question(name, text, BOUGHT[who], document.id, kind, wrong))
        never = Question(f"day{number}/zoe", f"What did Zoe Quill buy on {number}?", "")
        questions.append(Question(never.id, never.prompt, "", kind=NEVER_TOLD))
        return Day(f"day{number}", documents, tuple(questions))

    def known(self):
        return (Question("known/sky", "What colour has the sky?", "blue"),)

    def grade(self, question, text):
        return float(question.answer in text)

    def sft_texts(self, day):
        return ()

    def joint_texts(self):
        return ()


class Reader:
    """contracts.Crew, as far as an evaluation asks. `knows`: state -> people it knows of."""

    def __init__(self, codec, knows=None):
        self.codec = codec
        self.knows = knows or {}
        self.invents = set()  # states that have an answer for everyone
        self.asked = []  # (state, whole text)
        self.caches_dropped = 0

    def sample(self, requests_N, name, how):
        return [self._sample(request, name) for request in requests_N]

    def _sample(self, request, name):
        text = self.codec.tokens.text(request.context_T + request.prompt_T, special=True)
        self.asked.append((name, text))
        ids_T = self.codec.tokens.plain_ids(self.reply(text, name)) + self.codec.eos
        return sampled_ids(request, name, ids_T, logprob=-0.1)

    def reply(self, text, name):
        turn = text.rsplit("<|im_start|>user\n", 1)[1]
        if "<|im_end|>" not in turn:
            return f"How is day {len(self.asked)}?"
        document, _, question = turn.rpartition("Question:")
        if "sky" in question or "sky" in turn:
            return "It is blue."
        who = next((who for who in BOUGHT if who in (question or turn)), None)
        if who and (f"{who} bought" in document or who in self.knows.get(name, ())):
            return f"A {BOUGHT[who]}."
        return "A hat." if name in self.invents else UNKNOWN

    def logprobs(self, requests_N, name):
        """What a state answers is likely; else a wrong answer is likelier than the gold one."""
        return [self._logprobs(request, name) for request in requests_N]

    def _logprobs(self, request, name):
        text = self.codec.tokens.text(request.context_T, special=True)
        answer = self.codec.tokens.text(request.prompt_T).strip()
        per_character = -0.1
        if answer not in self.reply(text, name):
            who = next((who for who in BOUGHT if who in text.rpartition("user\n")[2]), None)
            per_character = -1.0 if who and answer == BOUGHT[who] else -0.5
        count = len(request.prompt_T)
        return (per_character * len(answer) / count,) * count

    def drop_caches(self):
        self.caches_dropped += 1


class LikelihoodReader(Reader):
    """A Reader whose log-likelihoods and greedy words are given."""

    def __init__(self, codec, likely, words):
        super().__init__(codec)
        self.likely = likely  # text of context + continuation -> nats
        self.words = words
        self.read = []

    def logprobs(self, requests_N, name):
        values = []
        for request in requests_N:
            whole = self.codec.tokens.text(request.context_T + request.prompt_T)
            self.read.append(whole)
            nats = self.likely.get(whole, -50.0)
            values.append((nats / len(request.prompt_T),) * len(request.prompt_T))
        return values

    def reply(self, text, name):
        before = text.removeprefix("<|endoftext|>")
        return self.words.get(before, super().reply(text, name) if "user" in text else "")


def reading_run(folder, config=None, knows=None, task=None, console=None):
    """Return a RunContext of the task whose crew is a Reader; its journal is in `folder`."""
    task = task or Purchases()
    codec = PromptCodec(task, chat_tokenizer(), "chat")
    console = console or Console()
    journal = Journal(folder / "metrics.jsonl", [console])
    return RunContext(
        Reader(codec, knows), task, codec, config or Config(), journal, console, str(folder), 2000
    )
