"""The states of a learner, and the methods that each allows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

from sleep_rl.contracts.errors import RunError

Method = TypeVar("Method", bound=Callable)


class LearnerState(Enum):
    """What a learner is in the middle of.

    IDLE -> open_night -> NIGHT_OPEN -> commit_night or discard_night -> IDLE
    IDLE -> activate_random_expert -> DREAMING -> discard_night -> IDLE
    """

    IDLE = "an idle learner", "it is idle"
    NIGHT_OPEN = "an open night", "a night is open"
    DREAMING = "a dreaming state", "it is dreaming"

    def __init__(self, needed: str, current: str):
        """How a message says that the state is needed, and that it is the current one."""
        self.needed = needed
        self.current = current


def allowed_in(*states: LearnerState) -> Callable[[Method], Method]:
    """Decorate a method of a learner: in a state (attribute `state`) that is not among `states` it
    raises RunError and does nothing.
    """

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def checked(self, *args, **kwargs):
            if self.state not in states:
                needed = " or ".join(state.needed for state in states)
                raise RunError(
                    f"learner: {method.__name__} needs {needed}, but {self.state.current}"
                )
            return method(self, *args, **kwargs)

        return checked

    return decorate
