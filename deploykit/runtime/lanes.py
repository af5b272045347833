"""Lanes: worker threads that each own one resource of an engine, fed from one thread in order.

Both CPU engines release the interpreter while they compute, so plain threads keep every core busy. The feeding thread
makes the next batches (it tokenises and pads) while the lanes compute.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")

# Batches made ahead per lane: one waits while one computes, so that a lane never waits for the feeding thread.
_AHEAD = 2


class Lanes(Generic[R]):
    """``len(resources)`` threads; each call of the work function holds one of the resources for itself."""

    def __init__(self, resources: Sequence[R]) -> None:
        self.count = len(resources)
        self._free: queue.SimpleQueue[R] = queue.SimpleQueue()
        for resource in resources:
            self._free.put(resource)
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="deploykit-lane")

    def map(self, work: Callable[[R, A], B], items: Iterable[A]) -> list[B]:
        """``work`` over ``items``, several at a time; results in the order of ``items``, which is consumed lazily.

        The first error stops the feeding, lets what is running end, and is raised. Several threads may call this at
        once.
        """
        window = threading.Semaphore(self.count * _AHEAD)
        futures: list[Future[B]] = []
        failed = threading.Event()

        def done(future: Future[B]) -> None:
            if future.exception() is not None:
                failed.set()
            window.release()

        try:
            for item in items:
                window.acquire()
                if failed.is_set():
                    break
                future = self._pool.submit(self._hold, work, item)
                future.add_done_callback(done)
                futures.append(future)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return [future.result() for future in futures]

    def close(self) -> None:
        """Wait for what is running and end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _hold(self, work: Callable[[R, A], B], item: A) -> B:
        resource = self._free.get()
        try:
            return work(resource, item)
        finally:
            self._free.put(resource)
