"""What a search did: the best path after every generation, and what came of the finalists."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from detofa.arch import Arch
from detofa.choose.records import Budget, Finalist
from detofa.errors import UserError
from detofa.files import read_json, write_json
from detofa.search import Generation

_KIND = "search_history"
_REMAKE = "`detofa search`"


@dataclass(frozen=True, kw_only=True)
class Round:
    """One search within one limit.

    Attributes:
        limit: The limit, in the unit of the budget; None where there was none.
        ranker: What scored the candidates: `path filter` or `predicted AP`.
        generations: The state after each generation, from the first that found a path that may be
            chosen.
    """

    limit: float | None
    ranker: str
    generations: tuple[Generation, ...]


@dataclass(frozen=True, kw_only=True)
class SearchHistory:
    """All rounds of one `detofa search`.

    Attributes:
        budget: What was asked for; without a limit for the front.
        rounds: In the order they ran.
        finalists: The paths evaluated for real, in the order they were told to the user.
        command: The command line.
    """

    budget: Budget
    rounds: tuple[Round, ...]
    finalists: tuple[Finalist, ...]
    command: str

    def save(self, folder: Path) -> None:
        """Write it into `folder`, over that of an earlier search with the same budget."""
        limit = None if math.isinf(self.budget.limit) else self.budget.limit
        name = "front" if limit is None else f"{limit:.6g}"
        record = {
            "budget": {"kind": self.budget.kind, "limit": limit},
            "rounds": [asdict(one) for one in self.rounds],
            "finalists": [item.to_json() for item in self.finalists],
            "command": self.command,
        }
        write_json(folder / f"{self.budget.kind}-{name}.json", _KIND, record)

    @classmethod
    def load(cls, path: Path) -> "SearchHistory":
        """Read what `save` wrote.

        Raises:
            UserError: missing, broken, or changed by hand.
        """
        record = read_json(path, _KIND, remake=_REMAKE)
        try:
            budget, limit = record["budget"], record["budget"]["limit"]
            return cls(
                budget=Budget(kind=budget["kind"], limit=math.inf if limit is None else limit),
                rounds=tuple(
                    Round(
                        limit=one["limit"],
                        ranker=one["ranker"],
                        generations=tuple(Generation(**item) for item in one["generations"]),
                    )
                    for one in record["rounds"]
                ),
                finalists=finalists_from_json(record["finalists"]),
                command=record["command"],
            )
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path} was changed ({error}); remove it, and {_REMAKE} makes it again"
            ) from error


def finalists_from_json(records: Sequence[dict[str, object]]) -> tuple[Finalist, ...]:
    """Return the finalists that `Finalist.to_json` wrote.

    Raises:
        KeyError: a field is missing.
        TypeError: a field is unknown, or of the wrong kind.
        UserError: an arch is none.
    """
    return tuple(
        Finalist(**{**record, "arch": Arch.from_json(record["arch"])})  # type: ignore[arg-type]
        for record in records
    )
