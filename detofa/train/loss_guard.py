"""LossGuard: tells steps that may count from those that must not."""

import math
from collections.abc import Mapping
from typing import Any

from detofa.errors import UserError

_EXPLODED = 10.0  # times the usual loss
_MEMORY = 0.98  # of the usual loss, an average over some fifty steps
_STEPS_TO_KNOW = 20  # before a usual loss is known
_MOST_IN_A_ROW = 5
_MOST_RETURNS = 2


class LossGuard:
    """Watches the loss and the gradients; what it knows is part of the training state.

    A step whose loss or gradients are not finite, or whose loss is ten times the usual one, does
    not count: weights, averages and the optimiser stay as they are. After five such steps in a
    row training goes back to its last saved state, at half the learning rate; after two returns it
    stops.

    Attributes:
        skipped: Steps that did not count.
        returns: How often training went back.
    """

    def __init__(self) -> None:
        self.skipped, self.returns = 0, 0
        self._in_a_row, self._known, self._usual = 0, 0, 0.0

    def is_sound(self, loss: float, gradient_norm: float) -> bool:
        """Note a step, and return whether it may count."""
        finite = math.isfinite(loss) and math.isfinite(gradient_norm)
        known = self._known >= _STEPS_TO_KNOW
        if not finite or (known and loss > _EXPLODED * self._usual):
            self.skipped += 1
            self._in_a_row += 1
            return False
        self._in_a_row = 0
        self._known += 1
        weight = max(1 - _MEMORY, 1 / self._known)
        self._usual += weight * (loss - self._usual)
        return True

    @property
    def should_return(self) -> bool:
        """Return whether so many steps in a row failed that training should go back."""
        return self._in_a_row >= _MOST_IN_A_ROW

    @property
    def rate(self) -> float:
        """Return what the learning rate is multiplied by."""
        return 0.5**self.returns

    def returned(self, before: "LossGuard") -> None:
        """Note that training went back, and keep the counts of what it went back from.

        Raises:
            UserError: it has gone back too often; says what to try.
        """
        self.skipped = before.skipped
        self.returns = before.returns + 1
        if self.returns > _MOST_RETURNS:
            raise UserError(
                f"the loss is not finite, or exploded, {_MOST_IN_A_ROW} steps in a row, and still "
                f"after going back {_MOST_RETURNS} times at half the learning rate. The last good "
                "state is kept. Start again with a smaller --learning-rate under another --name, "
                "and look at the data with `detofa data check`"
            )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads back."""
        return {
            "skipped": self.skipped,
            "returns": self.returns,
            "in_a_row": self._in_a_row,
            "known": self._known,
            "usual": self._usual,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "LossGuard":
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        guard = cls()
        guard.skipped, guard.returns = int(record["skipped"]), int(record["returns"])
        guard._in_a_row, guard._known = int(record["in_a_row"]), int(record["known"])
        guard._usual = float(record["usual"])
        return guard
