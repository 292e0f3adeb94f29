"""Ranks: the processes that torchrun started for one run, or this process alone.

Every rank takes the same decisions from the same seeds; the first one alone writes files.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

from detofa.errors import UserError

Value = TypeVar("Value")
Item = TypeVar("Item")
_ITEMS_AT_ONCE = 4  # of each rank: what a crash loses
_LONGEST_START = timedelta(minutes=10)  # until all processes are there
_LONGEST_WAIT = timedelta(hours=12)  # for what the first rank does alone; torchrun ends the dead
_GLOO = "/gloo/transport/"  # the source of what gloo says of a connection, however it ended
_UNTIL_TOLD = timedelta(minutes=1)  # of waiting


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of one run, as one of them sees it.

    Attributes:
        index: Which one this is, from 0.
        count: How many there are.
    """

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Return whether this is the one that writes files and talks to the user."""
        return self.index == 0

    def first(self, work: Callable[[], Value]) -> Value:
        """Return what `work` returns on the first rank; the others wait for it.

        Raises:
            UserError: as `work`, on every rank.
        """
        if self.count == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = work()
            except UserError as error:
                outcome[1] = str(error)
        with self._waiting("what process 0 does alone"):
            distributed.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise UserError(outcome[1])
        value: Value = outcome[0]
        return value

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with self._waiting("what each of the others has found"):
            distributed.all_gather_object(values, value)
        return values

    def spread(
        self, work: Callable[[Sequence[Item]], Iterator[Value]], items: Sequence[Item]
    ) -> Iterator[Value]:
        """Yield the results of items in their order, each worked out by one rank."""
        if self.count == 1:
            yield from work(items)
            return
        at_once = _ITEMS_AT_ONCE * self.count
        for start in range(0, len(items), at_once):
            group = items[start : start + at_once]
            parts = self.gather(list(work(group[self.index :: self.count])))
            for place in range(len(group)):
                yield parts[place % self.count][place // self.count]

    def means(self, count: int) -> list[Callable[[Tensor], Tensor]]:
        """Return so many functions that give the mean of a number over the ranks.

        All ranks call the same one at the same time; different ones may be called by threads in
        any order. All ranks must call this, too.
        """
        if self.count == 1:
            return [lambda value: value] * count
        with self._waiting("the others to begin"):
            groups = [
                distributed.new_group(backend="gloo", timeout=_LONGEST_WAIT) for _ in range(count)
            ]
        return [partial(self._mean_in, group) for group in groups]

    @torch.no_grad()
    def mean(
        self, loss: float, gradients: list[Tensor | None], parameters: Sequence[Tensor]
    ) -> tuple[float, list[Tensor | None]]:
        """Return the loss and the gradients as means over the ranks, in one reduction.

        A gradient that one rank lacks counts as zeros there; one that all lack stays None.
        """
        if self.count == 1:
            return loss, gradients
        device = parameters[0].device
        is_there = torch.tensor([gradient is not None for gradient in gradients], device=device)
        whole = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for gradient, parameter in zip(gradients, parameters, strict=True)
        ]
        scalars = torch.cat([torch.tensor([loss], device=device), is_there.float()])
        flat = torch.cat([scalars, *(gradient.flatten() for gradient in whole)])
        with self._waiting("the gradients of the others"):
            distributed.all_reduce(flat)
            flat /= self.count
            anywhere = (flat[1 : len(scalars)] > 0).tolist()  # a GPU's sum is waited for here
        pieces = torch.split(flat, [len(scalars), *(gradient.numel() for gradient in whole)])
        for gradient, piece in zip(whole, pieces[1:], strict=True):
            gradient.copy_(piece.view(gradient.shape))  # which keeps its strides
        return float(pieces[0][0]), [
            gradient if there else None for gradient, there in zip(whole, anywhere, strict=True)
        ]

    @torch.no_grad()
    def _mean_in(self, group: Any, value: Tensor) -> Tensor:
        total = value.detach().to("cpu", copy=True)
        with self._waiting("a path's loss of the others"):
            distributed.all_reduce(total, group=group)
        return (total / self.count).to(value.device)

    @contextlib.contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        """Say on stderr, once, if what is done inside waits long for the other ranks."""
        timer = threading.Timer(_UNTIL_TOLD.total_seconds(), self._tell_wait, [what])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _tell_wait(self, what: str) -> None:
        print(
            f"process {self.index} of {self.count} has waited {_UNTIL_TOLD.total_seconds():g} s "
            f"for {what}, and waits on. That is no fault while the others work; if one is gone or "
            "stands still, stop all: the same command resumes the run",
            file=sys.stderr,
            flush=True,
        )


ALONE = Ranks()
"""This process, without others."""


@contextlib.contextmanager
def join_ranks(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the other processes if torchrun started this one; yield the ranks and this one's device.

    Of several GPUs each rank takes its own. Only the first rank prints from here on.

    Raises:
        UserError: more processes on this machine than GPUs.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE, device
        return
    backend = "gloo"
    if device.type == "cuda":
        local, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= num_gpus:
            raise UserError(
                f"process {local} of this machine has no GPU, PyTorch finds {num_gpus}; use "
                f"--nproc-per-node {num_gpus}, or --device cpu"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"  # the former for what is no tensor
    # torchrun keeps its store over restarts, and so the addresses of processes that are gone.
    store, rank, _ = next(rendezvous("env://", timeout=_LONGEST_START))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    distributed.init_process_group(
        backend,
        store=distributed.PrefixStore(f"attempt_{attempt}", store),  # type: ignore[attr-defined]
        rank=rank,
        world_size=count,
        timeout=_LONGEST_WAIT,
    )
    ranks = Ranks(index=rank, count=count)
    try:
        with contextlib.ExitStack() as stack:
            if not ranks.is_first:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            yield ranks, device
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and _GLOO not in str(error):
            raise
        raise UserError(
            f"process {rank} of {count} stops, since another one has died (torchrun says which, "
            "and its last words stand above); the same command resumes the run"
        ) from error
    finally:
        distributed.destroy_process_group()
