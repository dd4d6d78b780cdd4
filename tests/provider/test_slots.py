"""Slots find the provider's cap by its answers, and keep near it."""

import heapq
import itertools
import threading
import time

import pytest

from nanobanana_pipeline.provider.slots import Slots

LATENCY = 2.0
NOTICE = 0.1


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def held(slots: Slots, count: int) -> None:
    """Take slots that are known to be free."""
    for _ in range(count):
        assert slots.acquire(threading.Event())


def test_it_starts_small_and_never_above_the_most() -> None:
    assert Slots(40).limit == 4
    assert Slots(2).limit == 2
    assert Slots(1).limit == 1


def test_a_slow_start_doubles_in_each_round() -> None:
    slots = Slots(100)
    for expected in (8, 16, 32):
        for _ in range(slots.limit):
            slots.served(LATENCY)
        assert slots.limit == expected


def test_it_never_grows_above_the_most() -> None:
    slots = Slots(7)
    for _ in range(1000):
        slots.served(LATENCY)
    assert slots.limit == 7


@pytest.mark.parametrize(("taken", "left"), [(20, 12), (10, 7), (5, 4)])
def test_a_429_takes_most_from_whoever_has_most(taken: int, left: int) -> None:
    clock = Clock()
    slots = Slots(40, clock=clock)
    for _ in range(36):
        slots.served(LATENCY)
    held(slots, taken + 1)
    slots.refused(0)
    assert slots.limit == left


def test_429s_within_one_latency_count_once() -> None:
    clock = Clock()
    slots = Slots(40, clock=clock)
    for _ in range(36):
        slots.served(LATENCY)
    held(slots, 40)
    slots.refused(0)
    limit = slots.limit
    for _ in range(9):
        clock.now += 0.1
        slots.refused(0)
    assert slots.limit == limit
    clock.now += LATENCY
    slots.refused(0)
    assert slots.limit < limit
    assert slots.rate_limited == 11


def test_it_never_shrinks_below_one() -> None:
    clock = Clock()
    slots = Slots(40, clock=clock)
    held(slots, 1)
    for _ in range(50):
        clock.now += 10
        slots.refused(0)
    assert slots.limit == 1


def test_nothing_is_sent_before_retry_after_is_over() -> None:
    slots = Slots(4)
    held(slots, 1)
    began = time.monotonic()
    slots.refused(0.6)
    slots.release()
    assert slots.acquire(threading.Event())
    assert 0.6 <= time.monotonic() - began < 10


def test_a_shorter_retry_after_does_not_shorten_a_longer_one() -> None:
    clock = Clock()
    slots = Slots(4, clock=clock)
    slots.refused(100)
    slots.refused(1)
    stop = threading.Event()
    threading.Timer(0.4, stop.set).start()
    clock.now += 50
    assert not slots.acquire(stop)
    clock.now += 50
    assert slots.acquire(threading.Event())


@pytest.mark.parametrize("retry_after", [None, 0.0])
def test_a_429_without_a_wait_pauses_for_a_second(retry_after: float | None) -> None:
    clock = Clock()
    slots = Slots(4, clock=clock)
    slots.refused(retry_after)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    assert not slots.acquire(stop)
    clock.now += 1
    assert slots.acquire(threading.Event())


def test_a_stop_ends_the_wait() -> None:
    slots = Slots(1)
    held(slots, 1)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    began = time.monotonic()
    assert not slots.acquire(stop)
    assert time.monotonic() - began < 10


def test_what_is_usual_is_known_after_some_requests_and_forgets_old_ones() -> None:
    slots = Slots(10)
    for seconds in range(19):
        slots.served(float(seconds))
    assert slots.usual is None
    slots.served(19.0)
    assert slots.usual == (1.0, 18.0)
    for seconds in range(100, 200):
        slots.served(float(seconds))
    assert slots.usual == (105.0, 194.0)


def test_no_more_than_the_limit_are_held_by_racing_threads() -> None:
    slots = Slots(4)
    inside, most = itertools.count(), [0]
    lock = threading.Lock()
    current = [0]

    def work() -> None:
        for _ in range(20):
            assert slots.acquire(threading.Event())
            with lock:
                current[0] += 1
                most[0] = max(most[0], current[0])
                next(inside)
            time.sleep(0.0005)
            with lock:
                current[0] -= 1
            slots.release()

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert next(inside) == 320
    assert most[0] <= 4
    assert slots.in_use == 0


class Simulation:
    """Workers with always something to do, at a provider that takes `cap` at once."""

    def __init__(self, clients: int, most: int, retry_after: float | None) -> None:
        self.clock = Clock()
        self.slots = [Slots(most, clock=self.clock) for _ in range(clients)]
        self.retry_after = retry_after
        self.at_provider = 0
        self.done = 0
        self.served = [0] * clients
        self.refused = 0
        self._ends: list[tuple[float, int, int]] = []
        self._noticed: list[tuple[float, int, int]] = []
        self._order = itertools.count()

    def run(self, seconds: float, cap: int) -> None:
        until = self.clock.now + seconds
        while self.clock.now < until:
            self._end()
            for number, slots in enumerate(self.slots):
                while slots.in_use < slots.limit and slots._closed_until <= self.clock.now:
                    held(slots, 1)
                    self._send(number, slots, cap)
            self.clock.now += 0.05

    def _send(self, number: int, slots: Slots, cap: int) -> None:
        if self.at_provider >= cap:
            self.refused += 1
            slots.refused(self.retry_after)
            slots.release()
            return
        self.at_provider += 1
        # Latencies from 1.5 to 2.5 s, spread evenly and repeatably.
        latency = 1.5 + (next(self._order) * 0.618) % 1.0
        heapq.heappush(self._ends, (self.clock.now + latency, next(self._order), number))

    def _end(self) -> None:
        """The provider has room as soon as it is done; a worker notices a little later."""
        while self._ends and self._ends[0][0] <= self.clock.now:
            ended, order, number = heapq.heappop(self._ends)
            self.at_provider -= 1
            heapq.heappush(self._noticed, (ended + NOTICE, order, number))
        while self._noticed and self._noticed[0][0] <= self.clock.now:
            *_, number = heapq.heappop(self._noticed)
            self.done += 1
            self.served[number] += 1
            self.slots[number].served(LATENCY)
            self.slots[number].release()

    def shares(self, seconds: float, cap: int) -> tuple[float, float]:
        """Run on, and give the share of the cap that was used and of answers that were 429."""
        done, refused = self.done, self.refused
        self.run(seconds, cap)
        done, refused = self.done - done, self.refused - refused
        return done * LATENCY / (cap * seconds), refused / (done + refused)


@pytest.mark.parametrize("retry_after", [None, 2.0])
@pytest.mark.parametrize("cap", [5, 10, 15])
def test_below_a_cap_nearly_all_of_it_is_used_and_429s_are_rare(
    cap: int, retry_after: float | None
) -> None:
    simulation = Simulation(1, 40, retry_after)
    simulation.run(30, cap)
    used, refused = simulation.shares(600, cap)
    assert used > 0.85
    assert refused < 0.04


def test_without_a_cap_everything_allowed_is_used() -> None:
    simulation = Simulation(1, 40, 2.0)
    simulation.run(20, 1000)
    used, refused = simulation.shares(100, 40)
    assert used > 0.93
    assert refused == 0


def test_two_that_share_an_account_use_most_of_it_and_neither_starves() -> None:
    simulation = Simulation(2, 40, 2.0)
    simulation.run(60, 10)
    used, refused = simulation.shares(600, 10)
    assert used > 0.75
    assert refused < 0.07
    assert min(slots.limit for slots in simulation.slots) >= 2


def test_three_that_share_an_account_come_to_like_shares() -> None:
    simulation = Simulation(3, 15, 2.0)
    late = simulation.slots[1:]
    simulation.slots = simulation.slots[:1]
    simulation.run(60, 15)
    simulation.slots += late
    simulation.run(120, 15)
    before = list(simulation.served)
    used, refused = simulation.shares(300, 15)
    shares = [now - then for now, then in zip(simulation.served, before, strict=True)]
    assert used > 0.8
    assert refused < 0.1
    assert min(shares) > 0.4 * max(shares)


def test_a_cap_that_is_lifted_is_found_within_minutes() -> None:
    simulation = Simulation(1, 40, 2.0)
    simulation.run(60, 5)
    simulation.run(120, 40)
    used, _ = simulation.shares(100, 40)
    assert used > 0.9
