"""A Ray cluster of several nodes on one machine, whose nodes can be killed."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# A node that is killed is missed after about two seconds, not after a quarter of a minute. One that answers late on a
# busy machine is not: its answers are waited for as long as Ray waits by default.
WATCHFUL = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 4,
}
STORE = 80 << 20  # bytes of a node's object store; 75 MiB are the least


class Nodes:
    """A head that stays, and another node that comes and goes; each has so many cores."""

    def __init__(self, cores: int) -> None:
        from ray.cluster_utils import Cluster

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self._node = {"num_cpus": cores, "object_store_memory": STORE}
        head = {**self._node, "include_dashboard": False, "_system_config": WATCHFUL}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.other: Any = None

    def join(self) -> None:
        """Have another node join, unless it is there."""
        if self.other is None:
            self.other = self.cluster.add_node(**self._node)

    def kill(self) -> None:
        """Kill the other node's raylet: its workers die with it."""
        node, self.other = self.other, None
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)


@contextmanager
def nodes(cores: int = 1) -> Iterator[Nodes]:
    """The cluster, with this process connected to it."""
    import ray

    found = Nodes(cores)
    # before another joins: of several on one machine Ray takes any, and this process must not lose its own
    ray.init(address=found.cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    found.join()
    try:
        yield found
    finally:
        ray.shutdown()
        found.cluster.shutdown()


@contextmanager
def watching(ready: Callable[[], bool], then: Callable[[], None]) -> Iterator[None]:
    """Call `then` on a thread of its own as soon as something is `ready`, and wait for it at the end."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if ready():
                then()
                return
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
