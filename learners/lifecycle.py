"""The states of a learner, and which methods are allowed in each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

from sleep_rl.contracts.errors import RunError

Method = TypeVar("Method", bound=Callable)


class LearnerState(Enum):
    """The state machine of a learner.

    IDLE -> open_night -> NIGHT_OPEN -> commit_night or discard_night -> IDLE
    IDLE -> activate_random_expert -> DREAMING -> discard_night -> IDLE
    """

    IDLE = "an idle learner", "it is idle"
    NIGHT_OPEN = "an open night", "a night is open"
    DREAMING = "a dreaming state", "it is dreaming"

    def __init__(self, needed: str, current: str):
        """Set the phrases of error messages: `needed` names the required state, `current` the
        present one.
        """
        self.needed = needed
        self.current = current


def allowed_in(*states: LearnerState) -> Callable[[Method], Method]:
    """Return a decorator for a learner's methods: when its attribute `state` is not among `states`,
    the method raises RunError and does nothing.
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
