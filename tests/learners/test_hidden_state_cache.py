"""The LRU cache of hidden states."""

import torch

from learners.hidden_state_cache import HiddenStateCache, TeacherInput


def key(n):
    return TeacherInput(0, (n,), (n, n))


def test_entries_are_copies_and_the_least_recently_used_is_evicted():
    cache = HiddenStateCache(3 * 40)
    rows = [torch.full((2, 5), float(n)) for n in range(4)]  # 40 bytes each
    for n in range(3):
        cache.put(key(n), rows[n])
    assert cache.bytes == 120 and torch.equal(cache.get(key(0)), rows[0])
    rows[0].zero_()  # the cache has a copy
    cache.put(key(3), rows[3])
    assert cache.bytes == 120 and cache.get(key(1)) is None
    assert [float(cache.get(key(n))[0, 0]) for n in (0, 2, 3)] == [0.0, 2.0, 3.0] and float(
        cache.get(key(2)).sum()
    ) == 20
    cache.put(key(9), torch.zeros(100, 5))  # larger than the limit
    assert cache.get(key(9)) is None and cache.bytes == 120
    cache.clear()
    assert cache.bytes == 0 and cache.get(key(0)) is None
    assert (HiddenStateCache(0).put(key(0), rows[0]), HiddenStateCache(0).bytes) == (None, 0)
