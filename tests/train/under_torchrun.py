"""What the tests of `Ranks` let torchrun start: python -m tests.train.under_torchrun DATA RUN."""

import sys
from pathlib import Path

import pytest
import torch

from detofa.errors import UserError
from detofa.train.ranks import join_ranks
from tests.samples import Quiet, config_of, trainer_of


def refuse() -> None:
    """Fail as the first rank may."""
    raise UserError("no space")


def main() -> None:
    """Train a few steps; fail where the ranks do not agree."""
    data, folder = (Path(argument) for argument in sys.argv[1:])
    torch.set_num_threads(1)
    with join_ranks(torch.device("cpu")) as (ranks, device):
        assert device.type == "cpu"
        assert ranks.first(lambda: f"of {ranks.index}") == "of 0"
        assert ranks.gather(ranks.index) == list(range(ranks.count))
        with pytest.raises(UserError, match="no space"):  # on every rank
            ranks.first(refuse)
        for count in (0, 1, 9, 16):
            items = list(range(count))
            done = ranks.spread(lambda some: (10 * item for item in some), items)
            assert list(done) == [10 * item for item in items]
        only_here = torch.ones(2) if ranks.is_first else None
        gradients = [torch.full((3,), float(ranks.index)), only_here, None]
        loss, mean = ranks.mean(float(ranks.index), gradients, [torch.ones(n) for n in (3, 2, 1)])
        assert loss == 0.5
        assert mean[0] is not None
        assert mean[0].tolist() == [0.5] * 3
        assert mean[1] is not None
        assert mean[1].tolist() == [0.5] * 2
        assert mean[2] is None
        trainer = trainer_of(config_of(data), folder, ranks)
        assert trainer.train(Quiet(), lambda: False)
        print(f"rank {ranks.index} trained")


if __name__ == "__main__":
    main()
