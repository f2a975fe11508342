"""The processes of a distributed run, and what they tell each other, by torch.distributed.

Under `torchrun` or `accelerate launch` the processes are there already, and say who they are in the usual variables;
`--nproc` starts them on this machine. Orders go from rank 0 to all others as safetensors over gloo; who takes which
job of an order, and what came of it, goes through the group's key-value store as numbers and JSON. Nothing is
pickled. Gradients go over NCCL where processes have a GPU each; those that have none leave training to them.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch.distributed import PrefixStore, Store, TCPStore, rendezvous  # type: ignore[attr-defined]

from lorareg.compress.generators.trainers import Trainers
from lorareg.registry.errors import LostRankError

Arrays = Mapping[str, NDArray[Any]]

MESSAGE, END = "order", "end"
PATIENCE = timedelta(hours=6)
"""How long a process waits for an order, or for others in a collective operation; that one ended is seen at once."""

GLANCE_S = 0.02
"""Between two looks at whether a result is there, and all processes are."""

JOIN = timedelta(seconds=120)
LAST_WORDS_S = 0.5


@dataclass(frozen=True, slots=True)
class Order:
    """Work for all ranks: what it is, its settings as JSON values, and arrays."""

    number: int
    kind: str
    settings: dict[str, Any]
    arrays: Arrays


class Ranks:
    """This process among those of a run."""

    def __init__(self, store: Store, rank: int, size: int, workers: list[subprocess.Popen[bytes]]) -> None:
        """Join the group; returns when all have."""
        self.rank, self.size, self.workers = rank, size, workers
        self.board = PrefixStore("board", store)
        self._expect_joined()
        dist.init_process_group("gloo", store=PrefixStore("group", store), rank=rank, world_size=size, timeout=PATIENCE)
        self.trainers = self._trainers()
        self._posted = 0

    @property
    def leads(self) -> bool:
        """Whether this is the process that plans and records."""
        return self.rank == 0

    # -- orders ---------------------------------------------------------------------------------

    def post(self, kind: str, settings: Mapping[str, Any], arrays: Arrays) -> Order:
        """Give an order to all; they take it as soon as they have done the last."""
        order = Order(self._posted, kind, dict(settings), arrays)
        self._posted += 1
        header = json.dumps({"kind": kind, "settings": order.settings})
        data = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata={MESSAGE: header})
        with self.together():
            self.board.set(f"size/{order.number}", str(len(data)))
            dist.broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8), 0)
        return order

    def orders(self) -> Iterator[Order]:
        """What rank 0 orders, until it is done or gone."""
        while (order := self._next()).kind != END:
            yield order

    def _next(self) -> Order:
        number, self._posted = self._posted, self._posted + 1
        try:
            self.board.wait([f"size/{number}"], PATIENCE)
            content = torch.empty(int(self.board.get(f"size/{number}")), dtype=torch.uint8)
            dist.broadcast(content, 0)
        except RuntimeError:  # rank 0 is gone, and with it the reason to be here
            return Order(number, END, {}, {})
        data = content.numpy().tobytes()
        header = json.loads(_metadata(data)[MESSAGE])
        return Order(number, header["kind"], header["settings"], load(data))

    def take(self, order: Order) -> int:
        """The next job of an order that nobody has taken."""
        with self.together():
            return int(self.board.add(f"taken/{order.number}", 1)) - 1

    def put(self, order: Order, job: int, result: Mapping[str, Any]) -> None:
        """Say what a job came to."""
        self.board.set(f"result/{order.number}/{job}", json.dumps(result))

    def is_done(self, order: Order, job: int) -> bool:
        """Whether somebody has said what a job came to."""
        with self.together():
            return bool(self.board.check([f"result/{order.number}/{job}"]))

    def result(self, order: Order, job: int) -> dict[str, Any]:
        """What a job came to, as soon as somebody says.

        Raises:
            LostRankError: a process has ended.
        """
        key = f"result/{order.number}/{job}"
        with self.together():
            while not self.board.check([key]):
                self._expect_all()
                time.sleep(GLANCE_S)
            found: dict[str, Any] = json.loads(self.board.get(key))
            self.board.delete_key(key)
        return found

    def is_led(self) -> bool:
        """Whether rank 0 is still there."""
        try:
            self.board.check(["is anybody there"])
        except RuntimeError:
            return False
        return True

    def end(self) -> None:
        """Rank 0 has no more orders: all end."""
        if self.leads:
            self.post(END, {}, {})
        dist.destroy_process_group()
        for worker in self.workers:
            worker.wait()

    def abandon(self) -> None:
        """Rank 0 cannot go on: what it started ends at once."""
        end_all(self.workers)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """For what all do at once: that another process has ended becomes an error that says so."""
        try:
            yield
        except RuntimeError as error:
            if not _is_of_the_group(error):
                raise
            time.sleep(LAST_WORDS_S)  # a connection closes a moment before its process has ended
            self._expect_all()
            raise LostRankError(rank="another", reason=f"it does not answer ({str(error).splitlines()[0]})") from error

    def _expect_joined(self) -> None:
        """Wait for the processes that were started here: to join a group with one that ended has no end."""
        self.board.set(f"joined/{self.rank}", "")
        until = time.monotonic() + JOIN.total_seconds()
        for rank in range(1, len(self.workers) + 1):
            while not self.board.check([f"joined/{rank}"]):
                self._expect_all()
                if time.monotonic() > until:
                    raise LostRankError(rank=rank, reason=f"it did not start within {JOIN.total_seconds():.0f} s")
                time.sleep(GLANCE_S)

    def _expect_all(self) -> None:
        for rank, worker in enumerate(self.workers, 1):
            if worker.poll() is not None:
                raise LostRankError(rank=rank, reason=f"it ended with exit code {worker.returncode}")

    # -- training -------------------------------------------------------------------------------

    def _trainers(self) -> Trainers | None:
        """This process among those that train: those with a GPU of their own, or all where there are none."""
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        own_gpu = torch.cuda.is_available() and local < torch.cuda.device_count()
        flags = [torch.zeros(1, dtype=torch.int32) for _ in range(self.size)]
        dist.all_gather(flags, torch.tensor([int(own_gpu)], dtype=torch.int32))
        with_gpu = [rank for rank, flag in enumerate(flags) if int(flag)]
        ranks, backend = (with_gpu, "nccl") if with_gpu else (list(range(self.size)), "gloo")
        group = dist.new_group(ranks, timeout=PATIENCE, backend=backend)
        if self.rank not in ranks:
            return None
        device = torch.device("cuda", local) if own_gpu else torch.device("cpu")
        if own_gpu:
            torch.cuda.set_device(device)
        return Trainers(ranks.index(self.rank), len(ranks), device, group)


def join() -> Ranks:
    """The ranks of a run that was launched from outside."""
    store, rank, size = next(rendezvous("env://", timeout=JOIN))
    return Ranks(store, rank, size, [])


def launch(count: int, home: Path) -> Ranks:
    """Start `count - 1` more processes on this machine, for the registry at `home`, and lead them.

    Raises:
        LostRankError: one of them does not start.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=JOIN)
    threads = str(max(1, (os.cpu_count() or 1) // count))
    command = [sys.executable, "-m", "lorareg.cli", "compress", "--home", str(home.absolute())]
    shared = {  # what makes such a command a worker
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(count),
    }
    workers = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for this process, which ends those
        )
        for rank in range(1, count)
    ]
    try:
        return Ranks(store, 0, count, workers)
    except BaseException:
        end_all(workers)
        raise


def end_all(workers: list[subprocess.Popen[bytes]]) -> None:
    """End processes that were started here, at once."""
    for worker in workers:
        worker.kill()
        worker.wait()


def _is_of_the_group(error: RuntimeError) -> bool:
    """Whether an error is about the other processes, and not about what this one computes."""
    said = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in said for word in ("gloo", "nccl", "connection"))


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata of safetensors bytes."""
    size = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + size])["__metadata__"]
    return found
