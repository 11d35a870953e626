"""The models of model.teachers: a worker that writes as one of them, and a crew that has them."""

from __future__ import annotations

from tests.fakes.crew import Crew, sampled_ids

IDS = {"student": (5, 299, 1), "wide": (5, 319, 1), "narrow": (5, 279, 1)}
"""Checkpoint -> what it writes: its last id but one is the last of its vocabulary."""


class Writer:
    """A rollout worker and a learner."""

    def __init__(self, checkpoint, **_):
        self.checkpoint = checkpoint
        self.loaded = ()

    def sample(self, requests_N, name, version, sampling):
        written = [(7, 8, 1), IDS[self.checkpoint]]
        return [
            sampled_ids(request, name, ids_T, version=version)
            for request, ids_T in zip(requests_N, written, strict=True)
        ]

    def load_teachers(self, paths):
        self.loaded = tuple(paths)

    def unload_teachers(self):
        self.loaded = ()

    def drop_caches(self):
        pass

    close = drop_caches


class Taught(Crew):
    """A crew that checks that two teachers exist in night 0 only, and that rows on their sequences
    name them.
    """

    def __init__(self, texts):
        super().__init__(texts)
        self.there = False
        self.taught = []

    def start_teachers(self):
        assert not self.there and self.open is None
        self.there = True
        self.protocol.append(("start teachers",))

    def stop_teachers(self):
        assert self.there and self.open is None
        self.there = False
        self.protocol.append(("stop teachers",))

    def check_requests(self, requests_N, name, how):
        if not name.startswith("peer-"):
            return super().check_requests(requests_N, name, how)
        assert self.there and name in ("peer-1", "peer-2")
        assert not any(r.context_T[1:] for r in requests_N)

    def answer(self, request, name):
        if not name.startswith("peer-"):
            return super().answer(request, name)
        return self.sampled(request, "base", f"old {name} ? A : yes", version=0)

    def check_batch(self, batch_N, step, steps):
        for row in batch_N if self.there else ():
            mine = f"old peer-{row.teacher} ?" if row.teacher else "old 0."
            assert row.advantage is not None or self.texts.text(row.completion_T).startswith(mine)
            assert (
                row.replay == (row.teacher == 0) and (row.teacher_T or row.prompt_T) == row.prompt_T
            )
        self.taught += [row.teacher for row in batch_N]
        if not self.there:
            super().check_batch(batch_N, step, steps)
