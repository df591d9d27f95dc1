"""Rounds of measurements in which several sides take turns, none of them able to end the others."""

import time

from .processes import Failed


class Side:
    """One that is measured. After a failure, or beyond its time, it sits out."""

    def __init__(self, name, measure, limit):
        self.name = name
        self.measure = measure
        self.left = limit
        self.failure = None

    def turn(self):
        """A measurement, or `None`."""
        if self.failure or self.left <= 0:
            return None
        begun = time.perf_counter()
        try:
            return self.measure()
        except (Failed, OSError, LookupError, ValueError) as problem:
            self.failure = f"{type(problem).__name__}: {problem}"
            print(f"  {self.name} failed: {self.failure}", flush=True)
            return None
        finally:
            self.left -= time.perf_counter() - begun


def alternate(sides, pairs, after_round=lambda rounds: None):
    """`pairs` rounds; the order turns round each time, so that none always goes first. A side's
    name is a path: its measurement goes to that place of the round."""
    rounds = []
    for number in range(pairs):
        found = {}
        for side in sides if number % 2 == 0 else reversed(sides):
            measured = side.turn()
            if measured is not None:
                place = found
                *above, last = side.name.split("/")
                for key in above:
                    place = place.setdefault(key, {})
                place[last] = measured
        rounds.append(found)
        after_round(rounds)
    return rounds


def failures(sides):
    """What went wrong, by side."""
    return {side.name: side.failure for side in sides if side.failure}
