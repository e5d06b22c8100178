from __future__ import annotations

import asyncio

import pytest

from segkit.serving.limits import Limits, Refused, Room


def room(**limits):
    return Room(Limits(**limits), max_images=3, max_pixels=100)


def test_one_request_too_many_is_told_when_to_come_again():
    async def scenario():
        some = room(max_requests=2, retry_s=7)
        with some.request(), some.request():
            with pytest.raises(Refused) as refused, some.request():
                pass
            assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "7"})
            assert some.requests == 2
        with some.request():
            assert some.requests == 1

    asyncio.run(scenario())


def test_bytes_are_counted_over_all_requests_and_given_back():
    async def scenario():
        some = room(max_held_bytes=10)
        with some.request() as first:
            first.add(6)
            with some.request() as second:
                second.add(4)
                with pytest.raises(Refused, match="full"):
                    second.add(1)
            assert some.bytes == 6
        assert some.bytes == 0

    asyncio.run(scenario())


def test_decoded_images_wait_for_room_in_their_order():
    order = []

    async def hold(some, name, pixels, let):
        async with some.image(pixels):
            order.append(name)
            await let.wait()

    async def scenario():
        some, lets = room(), {name: asyncio.Event() for name in "abcde"}
        tasks = []
        for name, pixels in (("a", 60), ("b", 40), ("c", 50), ("d", 1), ("e", 500)):
            tasks.append(asyncio.create_task(hold(some, name, pixels, lets[name])))
            for _ in range(5):
                await asyncio.sleep(0)
        assert order == ["a", "b"]  # d would fit, but c came before it
        for name, then in (("b", "ab"), ("a", "abcd"), ("c", "abcd"), ("d", "abcde"), ("e", "abcde")):
            lets[name].set()
            for _ in range(10):
                await asyncio.sleep(0)
            assert order == list(then)
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_many_classes_allow_fewer_pixels():
    limits = Limits(max_pixels=50_000_000)
    assert limits.pixels_of(3) == 50_000_000
    # 2**30 numbers, 4 GiB of float32
    assert limits.pixels_of(128) == 2**23


def test_limits_are_above_zero():
    with pytest.raises(ValueError, match="max_pixels is 0"):
        Limits(max_pixels=0)
