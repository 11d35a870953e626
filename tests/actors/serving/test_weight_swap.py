"""Swaps of nights in an engine that serves requests."""

import asyncio
import shutil

import pytest

from actors.serving.weight_swap import SwapTimeout
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.model import checkpoints, memory_folder
from tests.fakes.models import LEVELS
from tests.fakes.serving import Swapping, sleep_once


def test_a_swap_waits_for_requests_in_flight_and_blocks_new_ones(run, base_checkpoint):
    swap = Swapping(run, base_checkpoint())
    order = []

    async def ask(name, seconds):
        async with swap.swapper.request_lock.shared():
            swap.client.in_flight += 1
            began = swap.swapper.label
            await asyncio.sleep(seconds)
            order.append((name, began, swap.swapper.label))
            swap.client.in_flight -= 1

    async def body():
        slow = asyncio.create_task(ask("slow", 0.3))
        await asyncio.sleep(0.05)
        taking = asyncio.create_task(swap.swapper.swap_to(2))
        await asyncio.sleep(0.1)
        late = asyncio.create_task(ask("late", 0))
        await asyncio.gather(slow, taking, late)

    swap.go(body)
    assert order == [("slow", "night-1", "night-1"), ("late", "night-2", "night-2")]
    assert (
        swap.client.holds(swap.second)
        and swap.client.version == "night-2"
        and not swap.client.paused
    )


def test_a_swap_times_out_when_requests_do_not_end(run, base_checkpoint):
    swap = Swapping(run, base_checkpoint(), drain_s=0.1)

    async def body():
        async with swap.swapper.request_lock.shared():
            with pytest.raises(SwapTimeout, match=r"1 requests were still in flight after 0.1 s"):
                await swap.swapper.swap_to(2)
        async with swap.swapper.request_lock.shared():  # new requests are admitted again
            assert swap.swapper.label == "night-1" and swap.client.holds(swap.first)
        assert await swap.swapper.swap_to(2) and not await swap.swapper.swap_to(2)

    swap.go(body)
    assert swap.client.holds(swap.second) and swap.client.writes == 1


def test_a_damaged_write_restores_the_previous_night(run, base_checkpoint):
    swap = Swapping(run, base_checkpoint(), break_at=(0,))

    async def body():
        with pytest.raises(RunError, match="in the model differs from what was written"):
            await swap.swapper.swap_to(2)

    swap.go(body)
    assert (
        swap.client.holds(swap.first)
        and swap.swapper.label == "night-1"
        and not swap.ended
        and not swap.client.paused
    )


def test_a_memory_that_cannot_be_restored_ends_the_server(run, base_checkpoint):
    swap = Swapping(run, base_checkpoint(), break_at=(0, 1))

    async def body():
        with pytest.raises(RunError, match="night-1 could not be restored"):
            await swap.swapper.swap_to(2)

    swap.go(body)
    # no request is answered
    assert (
        swap.ended == [1]
        and "differs from what was written" in swap.swapper.failure
        and swap.client.paused
    )


def test_a_night_with_other_levels_is_refused_without_blocking_requests(run, base_checkpoint):
    swap = Swapping(run, base_checkpoint())
    other = checkpoints.load(base_checkpoint(), LEVELS["two levels"])
    memory_folder.save_memory(other, str(run / "memory" / "night-3"), base_checkpoint())

    async def body():
        async with swap.swapper.request_lock.shared():
            for number, message in (
                (3, "its levels are not those"),
                (7, r"one of the run's nights \(1, 2, 3\)"),
            ):
                with pytest.raises(InputError, match=message):
                    await swap.swapper.swap_to(number)

    swap.go(body)
    assert swap.client.holds(swap.first) and swap.client.writes == 0


def test_follow_swaps_in_each_newest_night_once_and_skips_damaged_ones(run, base_checkpoint):
    swap = Swapping(run, base_checkpoint())

    async def logged(text):
        while not any(text in line for line in swap.log):
            await asyncio.sleep(0.01)

    async def body():
        following = asyncio.create_task(swap.swapper.follow(swap.log.append, every_s=0.02))
        await logged("night 2 is served")  # it existed before the engine
        third = sleep_once(run, base_checkpoint(), 3)
        await logged("night 3 is served")
        assert swap.client.holds(third)
        await swap.swapper.swap_to(1)  # stays until there is a newer night
        shutil.copytree(run / "memory" / "night-1", run / "memory" / "night-4-rejected")
        (run / "memory" / "night-4").mkdir()
        (run / "memory" / "night-4" / memory_folder.MEMORY).write_bytes(b"half")
        shutil.copy(run / "memory" / "night-1" / memory_folder.POINTER, run / "memory" / "night-4")
        await logged("warning: night 4 cannot be loaded, night-1 is still served")
        await asyncio.sleep(0.1)
        assert swap.client.holds(swap.first)
        fourth = sleep_once(run, base_checkpoint(), 4)  # as when a resumed run writes it again
        await logged("night 4 is served")
        assert swap.client.holds(fourth)
        following.cancel()

    swap.go(body)
    assert len(swap.log) == 4
