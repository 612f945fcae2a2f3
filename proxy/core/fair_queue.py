"""Who is served next when an upstream has room again: the keys in turn by weight, each key's requests as they came.

Deficit round robin (Shreedhar and Varghese 1995) gives each key, round after round, credit by its weight, and serves
it while its credit pays for an item. Here the rounds are infinitely small and never run: when a key's next item is
paid for is worked out at once, as the point of the round at which it falls due, and the item that is due first is
served. That is self-clocked fair queueing (Golestani 1994), and no loop depends on a weight. It needs no memory of keys
that left: a key that comes again falls due a whole turn after what was served last, so that leaving gains it nothing.

Each place keeps turns of its own. What a key is served at one upstream never delays it at another, where others would
have to be served as much before it was its turn again.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

T = TypeVar("T", bound=Hashable)

MAX_WEIGHT: Final = 1e6
# Points of the round are whole numbers: sums stay exact whatever the weights and however long it goes on. A turn of
# weight 1 is this long, so that one of `MAX_WEIGHT` is still rounded by less than a millionth.
_TURN: Final = 1 << 40
_STALE_ENTRIES: Final = 16  # beyond as many as there are valid ones


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter(Generic[T]):
    item: T
    key: str
    places: frozenset[str]
    size_bytes: int


def _bytes_of(waiters: Mapping[_Waiter[T], None]) -> int:
    return sum(waiter.size_bytes for waiter in waiters)


class _Turn(Generic[T]):
    """A key at a place: its waiters there, and when the first of them is due.

    `due` sorts: the point of the round; at the same point, a key that just came before those that had their turn; the
    place in the ring.
    """

    __slots__ = ("due", "length", "waiters")

    def __init__(self, length: int, due: tuple[int, int, int]) -> None:
        self.length = length
        self.due = due
        self.waiters: OrderedDict[_Waiter[T], None] = OrderedDict()  # a dict's first key is slow to find once many left

    def later(self, items: int) -> tuple[int, int, int]:
        """When the item is due that comes after `items` others of this key."""
        point, _, joined = self.due
        return (point + items * self.length, 1, joined) if items else self.due

    def before(self, due: tuple[int, int, int]) -> int:
        """How many of its waiters come before what is due then."""
        if due < self.due:
            return 0
        whole = (due[0] - self.due[0]) // self.length
        return min(whole + (self.later(whole) < due), len(self.waiters))


class _Place(Generic[T]):
    """The ring of one place."""

    __slots__ = ("_heap", "_joined", "_now", "turns", "waiting")

    def __init__(self) -> None:
        self.turns: dict[str, _Turn[T]] = {}
        self.waiting = 0
        self._now = 0  # the point of the round at which the last one was served
        self._joined = 0
        self._heap: list[tuple[tuple[int, int, int], _Turn[T]]] = []  # `due` is unique: turns are never compared

    def add(self, waiter: _Waiter[T], length: int) -> None:
        turn = self.turns.get(waiter.key)
        if turn is None:
            self._joined += 1
            turn = self.turns[waiter.key] = _Turn(length, (self._now + length, 0, self._joined))
            heapq.heappush(self._heap, (turn.due, turn))
        elif turn.length != length:
            turn.length = length
            if self._now + length < turn.due[0]:  # nobody waits longer than a turn of its weight
                turn.due = (self._now + length, *turn.due[1:])
                heapq.heappush(self._heap, (turn.due, turn))
                self._tidy()
        turn.waiters[waiter] = None
        self.waiting += 1

    def remove(self, waiter: _Waiter[T]) -> None:
        turn = self.turns[waiter.key]
        del turn.waiters[waiter]
        self.waiting -= 1
        if not turn.waiters:
            del self.turns[waiter.key]
            self._tidy()

    def take(self) -> _Waiter[T]:
        """The next waiter, which leaves. Someone must be waiting."""
        while not self._is_valid(self._heap[0]):
            heapq.heappop(self._heap)
        turn = self._heap[0][1]
        waiter, _ = turn.waiters.popitem(last=False)
        self.waiting -= 1
        self._now = turn.due[0]
        if turn.waiters:
            turn.due = turn.later(1)
            heapq.heapreplace(self._heap, (turn.due, turn))
        else:
            del self.turns[waiter.key]
            heapq.heappop(self._heap)
        return waiter

    def position(self, waiter: _Waiter[T]) -> int:
        own = self.turns[waiter.key]
        ahead = next(index for index, other in enumerate(own.waiters) if other is waiter)
        due = own.later(ahead)
        return ahead + sum(turn.before(due) for turn in self.turns.values() if turn is not own)

    def _is_valid(self, entry: tuple[tuple[int, int, int], _Turn[T]]) -> bool:
        due, turn = entry
        return turn.due is due and bool(turn.waiters)

    def _tidy(self) -> None:
        """Entries of who left are dropped when they come up, or when they are most of all there is."""
        if len(self._heap) > 2 * len(self.turns) + _STALE_ENTRIES:
            self._heap = [(turn.due, turn) for turn in self.turns.values()]
            heapq.heapify(self._heap)


class FairQueue(Generic[T]):
    """Items that wait for one of several places, at most `max_waiting` in number and `max_bytes` in size.

    Both may be changed at any time; what waits already stays.

    With equal weights a key's only item is served next but for the other keys' one each, however many they have
    waiting; otherwise keys that have items waiting all the time are served in proportion to their weights. Items of a
    key are served in the order in which they came, among those that the place may serve. Nothing is kept of a key or a
    place for which nothing waits. Items are told apart by equality.
    """

    def __init__(self, *, max_waiting: int, max_bytes: int) -> None:
        self.max_waiting = max_waiting
        self.max_bytes = max_bytes
        self._held_bytes = 0
        self._waiters: dict[T, _Waiter[T]] = {}
        self._places: dict[str, _Place[T]] = {}
        self._by_key: dict[str, dict[_Waiter[T], None]] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def __contains__(self, item: T) -> bool:
        return item in self._waiters

    @property
    def held_bytes(self) -> int:
        """The size of all that waits."""
        return self._held_bytes

    def push(self, key: str, weight: float, item: T, places: frozenset[str], size_bytes: int) -> bool:
        """Let `item` wait for any of `places`; False if there is no room. A key has the weight with which it came last.

        Raises `ValueError` for a weight outside (0, `MAX_WEIGHT`], no place, or an item that waits.
        """
        if not 0 < weight <= MAX_WEIGHT or not places or size_bytes < 0 or item in self._waiters:
            raise ValueError(
                f"cannot wait: weight {weight}, {len(places)} places, {size_bytes} bytes, or waits already"
            )
        if len(self._waiters) >= self.max_waiting or self._held_bytes + size_bytes > self.max_bytes:
            return False
        waiter = _Waiter(item, key, places, size_bytes)
        length = _turn_length(weight)
        for place in places:
            ring = self._places.get(place)
            if ring is None:
                ring = self._places[place] = _Place()
            ring.add(waiter, length)
        self._waiters[item] = waiter
        self._by_key.setdefault(key, {})[waiter] = None
        self._held_bytes += size_bytes
        return True

    def crowders(self, key: str, size_bytes: int) -> list[T] | None:
        """Who has to make room in a full queue for an item of `key`: the newest of the key that fills most of it.

        By number, or by size where that is short. None if no room can be made so, or that key would be left with less
        than `key`. Costs O(waiting) where sizes are short, else O(keys).
        """
        too_many = len(self._waiters) + 1 - self.max_waiting
        too_large = self._held_bytes + size_bytes - self.max_bytes
        by_size = too_large > 0
        measure = _bytes_of if by_size else len
        most: dict[_Waiter[T], None] = max(self._by_key.values(), key=measure, default={})
        own = measure(self._by_key.get(key, {})) + (size_bytes if by_size else 1)
        left = measure(most)
        found: list[T] = []
        for waiter in reversed(most):
            if too_many <= 0 and too_large <= 0:
                break
            left -= waiter.size_bytes if by_size else 1
            if left < own:
                return None
            found.append(waiter.item)
            too_many -= 1
            too_large -= waiter.size_bytes
        return None if too_many > 0 or too_large > 0 else found

    def pop(self, place: str) -> T | None:
        """The next item that may be served at `place`, which leaves; None if none waits for it."""
        ring = self._places.get(place)
        if ring is None:
            return None
        waiter = ring.take()
        self._forget(waiter, served_at=place)
        return waiter.item

    def remove(self, item: T) -> bool:
        """The item waits no longer. False if it did not."""
        waiter = self._waiters.get(item)
        if waiter is None:
            return False
        self._forget(waiter)
        return True

    def position(self, item: T) -> int:
        """How many would be served before it, at the best of its places, if no more came. Costs O(waiting).

        An estimate where some of them may be served at other places too. Raises `KeyError` if it does not wait.
        """
        waiter = self._waiters[item]
        return min(self._places[place].position(waiter) for place in waiter.places)

    def waiting(self, place: str) -> int:
        """How many may be served at `place`."""
        ring = self._places.get(place)
        return 0 if ring is None else ring.waiting

    def _forget(self, waiter: _Waiter[T], served_at: str | None = None) -> None:
        del self._waiters[waiter.item]
        of_key = self._by_key[waiter.key]
        del of_key[waiter]
        if not of_key:
            del self._by_key[waiter.key]
        if not self._waiters:
            self._waiters.clear()  # a dict gives its table back only so
        self._held_bytes -= waiter.size_bytes
        for place in waiter.places:
            ring = self._places[place]
            if place != served_at:
                ring.remove(waiter)
            if not ring.waiting:
                del self._places[place]


def _turn_length(weight: float) -> int:
    numerator, denominator = weight.as_integer_ratio()
    return _TURN * denominator // numerator
