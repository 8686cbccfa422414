"""Promotions: items that stand at a slot of the list, whatever their score."""

from collections.abc import Mapping, Sequence


def at_slots(pins: Mapping[int, int], others: Sequence[int], n: int) -> list[int]:
    """At most n positions: each of ``pins`` (slot, from 1 -> position) at its slot, the others in their order around.

    Where the others run out there are no holes: the remaining pins follow at once, in the order of their slots.
    """
    order: list[int] = []
    rest = iter(others)
    waiting = sorted(pins.items())
    while len(order) < n:
        if waiting and waiting[0][0] == len(order) + 1:
            order.append(waiting.pop(0)[1])
        elif (following := next(rest, None)) is not None:
            order.append(following)
        else:
            return order + [at for _, at in waiting[: n - len(order)]]
    return order
