"""Loading the next thing while the present one is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(load: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`load` of each item, in order, on a thread that is one item ahead."""
    ahead: deque[Future[R]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="read") as worker:
        for item in items:
            ahead.append(worker.submit(load, item))
            if len(ahead) > 1:
                yield ahead.popleft().result()  # bound to no name: the caller alone decides how long it lives
        while ahead:
            yield ahead.popleft().result()
