"""What the teacher computed is given back unchanged, within its limit; rows of like length go
together.
"""

from itertools import combinations

import pytest
import torch

from learners.hidden_state_cache import HiddenStateCache, Reading, group_by_length


def key(n):
    return Reading(0, (n,), (n, n))


def test_it_gives_back_what_it_was_given_and_forgets_the_least_used_first():
    cache = HiddenStateCache(3 * 40)
    rows = [torch.full((2, 5), float(n)) for n in range(4)]  # 40 bytes each
    for n in range(3):
        cache.put(key(n), rows[n])
    assert cache.bytes == 120 and torch.equal(cache.get(key(0)), rows[0])
    rows[0].zero_()  # its own copy
    cache.put(key(3), rows[3])
    assert cache.bytes == 120 and cache.get(key(1)) is None
    assert [float(cache.get(key(n))[0, 0]) for n in (0, 2, 3)] == [0.0, 2.0, 3.0] and float(
        cache.get(key(2)).sum()
    ) == 20
    cache.put(key(9), torch.zeros(100, 5))  # larger than everything
    assert cache.get(key(9)) is None and cache.bytes == 120
    cache.clear()
    assert cache.bytes == 0 and cache.get(key(0)) is None
    assert (HiddenStateCache(0).put(key(0), rows[0]), HiddenStateCache(0).bytes) == (None, 0)


@pytest.mark.parametrize(
    "lengths", [[], [4], [5, 5, 5], [9, 10, 9], [12, 50, 13, 47, 12], [3, 100], [7, 30, 200]]
)
def test_two_groups_only_where_they_save_a_fifth(lengths):
    def padded(groups):
        return sum(len(group) * max(lengths[i] for i in group) for group in groups)

    groups = group_by_length(lengths)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(group for group in groups) and len(groups) <= 2
    everything = range(len(lengths))
    splits = [
        [list(few), [i for i in everything if i not in few]]
        for size in range(1, len(lengths))
        for few in combinations(everything, size)
    ]
    best = min(map(padded, splits), default=0)
    if lengths:
        whole = padded([list(everything)])
        assert padded(groups) == (best if splits and best < 0.8 * whole else whole)
