"""The schedule compared with a slow reference: the definitions night by night."""

import itertools
import sys

import pytest

from sleep_rl.schedule import ScheduledConsolidation, by_night, most_experts, schedule

# ---- the slow twin: each quantity from its definition, looking at the whole life each time


def senders_of(chunks, nights, reset, teachers):
    """Return [(night, sender)] of a life."""
    held = [0] * (len(chunks) + 1)
    out = []
    if teachers:
        out.append((0, 0))
        held[1] += 1
    for night in range(1, nights + 1):
        for sender in range(len(chunks) - 1, -1, -1):
            if sender == 0 or (night % chunks[sender - 1] == 0 and held[sender] > 0):
                out.append((night, sender))
                held[sender + 1] += 1
                held[sender] = 0 if reset else held[sender]
    return out


def steps_of(pairs, night, sender, steps):
    """Return `steps` times the consolidations into the sender since it last sent."""
    into = list(itertools.takewhile(lambda pair: pair != (night, sender), pairs))
    last = max((i for i, (_, s) in enumerate(into) if s == sender), default=-1)
    return steps * max(sum(s + 1 == sender for _, s in into[last + 1 :]), 1)


def due_of(chunks, nights, night, endless):
    ends = night == nights and not endless
    return {level for level, c in enumerate(chunks, start=1) if night % c == 0 or ends}


def twin(chunks, nights, steps, reset, teachers, endless):
    pairs = senders_of(chunks, nights, reset, teachers)
    out = []
    for night in range(nights + 1):
        updates = due_of(chunks, nights, night, endless) if night else set()
        for sender in [s for n, s in pairs if n == night]:
            due = updates if sender == 0 else updates & {sender, sender + 1}
            out.append((night, sender, sender + 1, tuple(sorted(due))))
            updates = updates - due
    return [ScheduledConsolidation(*row, steps_of(pairs, row[0], row[1], steps)) for row in out]


def experts_of(pairs, levels, reset, dreams):
    """Return the largest number of experts per level over all prefixes of a life."""
    most = [0] * levels
    for stop in range(1, len(pairs) + 1):
        for level in range(1, levels + 1):
            sent = [i for i in range(stop) if pairs[i][1] == level] if reset else []
            since = sent[-1] + 1 if sent else 0
            came = [(n, s) for n, s in pairs[since:stop] if s + 1 == level]
            held = sum(2 if dreams and s == 0 and n > 0 else 1 for n, s in came)
            most[level - 1] = max(most[level - 1], held)
    return most


CHUNKS = [[1], [2], [3], [1, 2], [1, 3], [2, 4], [1, 2, 4], [1, 2, 6], [1, 3, 9], [2, 4, 8, 16]]


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_schedule_equals_reference(chunks):
    flags = itertools.product((True, False), repeat=3)
    for nights, (reset, teachers, endless) in itertools.product(range(21), flags):
        options = {"reset": reset, "teachers": teachers, "endless": endless}
        found = schedule(chunks, nights, steps=7, **options)
        assert found == twin(chunks, nights, 7, **options), (nights, options)
        pairs = senders_of(chunks, nights, reset, teachers)
        for dreams in (False, True):
            most = most_experts(found, len(chunks), reset=reset, dreams=dreams)
            assert most == experts_of(pairs, len(chunks), reset, dreams), (nights, options)


def test_slow_levels_send_first():
    """C = (1, 2, 4): level l is consolidated into l+1 if the night is a multiple of C(l) and it has
    something to send.
    """
    found = [(c.night, c.sender) for c in schedule([1, 2, 4], 5)]
    assert found == [
        (1, 0),
        (2, 1),
        (2, 0),
        (3, 1),
        (3, 0),
        (4, 2),
        (4, 1),
        (4, 0),
        (5, 1),
        (5, 0),
    ]
    assert [(c.night, c.sender) for c in schedule([1], 3)] == [(1, 0), (2, 0), (3, 0)]
    assert all(c.receiver == c.sender + 1 for c in schedule([1, 2, 4], 5))


def test_open_chunks_end_with_the_last_night():
    last = by_night(schedule([1, 2, 4], 5))
    due = [sorted(level for c in last[night] for level in c.due) for night in range(1, 6)]
    assert due == [[1], [1, 2], [1], [1, 2, 3], [1, 2, 3]]
    assert [c.due for c in last[4]] == [(2, 3), (1,), ()]


def test_endless_life():
    """The schedule of the nights so far does not depend on later ones."""
    life = schedule([1, 2, 4], 50, endless=True)
    for nights in range(1, 50):
        so_far = schedule([1, 2, 4], nights, endless=True)
        assert so_far == [c for c in life if c.night <= nights]
    due = by_night(life)
    assert [sorted(level for c in due[n] for level in c.due) for n in (1, 2, 3, 4, 50)] == [
        [1],
        [1, 2],
        [1],
        [1, 2, 3],
        [1, 2],
    ]


def test_night_0():
    first, second, *_ = schedule([1], 2, steps=5, teachers=True)
    assert first == ScheduledConsolidation(0, 0, 1, (), 5) and second == ScheduledConsolidation(
        1, 0, 1, (1,), 5
    )


def test_steps_are_multiplied_by_received_consolidations():
    """Level 2 has received one consolidation when it first sends, and three each time after
    that.
    """
    for reset in (True, False):  # what stayed there is not moved a second time
        found = schedule([1, 3, 9], 10, steps=7, reset=reset)
        more = {(c.night, c.sender): c.steps for c in found if c.steps != 7}
        assert more == {(6, 2): 21, (9, 2): 21}
        assert (3, 2) in [(c.night, c.sender) for c in found]


def test_most_experts():
    assert most_experts(schedule([1, 3, 9], 27), 3)[:2] == [1, 3]  # C(l) / C(l-1)


def lines_executed(call):
    """Return the number of lines of Python that `call` executes, in all functions."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def test_work_grows_in_proportion_to_the_nights():
    chunks = [1, 2, 4, 8, 16]

    def compute(nights):
        life = schedule(chunks, nights, reset=False)
        assert most_experts(life, 5, reset=False)[0] == len(by_night(life)) == nights

    once, twice = (lines_executed(lambda n=nights: compute(n)) for nights in (1600, 3200))
    assert once > 1600 and twice < 2.01 * once
