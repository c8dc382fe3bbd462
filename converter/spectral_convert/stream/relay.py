"""A relay: jobs that run one at a time and all stop before a layer, which is then exchanged once for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Job = Callable[[], Any]


class Abandoned(BaseException):
    """Unwinds a job that nobody waits for any more."""


class Runner(threading.Thread):
    """One job in a thread of its own, used as a coroutine: it runs only between `resume` and its next stop."""

    def __init__(self, job: Job) -> None:
        super().__init__(daemon=True)
        self.job = job
        self.layer: int | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.abandoned = False
        self.finished = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)

    def run(self) -> None:
        """The thread's body."""
        self._go.acquire()
        try:
            if not self.abandoned:
                self.result = self.job()
        except BaseException as error:  # handed to whoever resumes
            self.error = error
        self.layer, self.finished = None, True
        self._back.release()

    def resume(self) -> None:
        """Runs the job up to its next stop or its end; its error is raised here."""
        self._go.release()
        self._back.acquire()
        if self.error is not None and not self.abandoned:
            raise self.error

    def stop_before(self, layer: int) -> None:
        """Called by the job: waits until it is resumed."""
        self.layer = layer
        self._back.release()
        self._go.acquire()
        if self.abandoned:
            raise Abandoned


def stop_before(layer: int) -> bool:
    """Stops the calling job before a layer; False when the caller is no job of a relay."""
    runner = threading.current_thread()
    if not isinstance(runner, Runner):
        return False
    runner.stop_before(layer)
    return True


def relay(jobs: Sequence[Job], enter: Callable[[int], None], resumed: Callable[[int], None]) -> Iterator[Any]:
    """Yields the jobs' results in order; one pass over the layers serves all jobs.

    Args:
        jobs: each calls `stop_before(layer)` before every layer, in the same order of layers.
        enter: makes a layer ready; called once when all jobs stand before it.
        resumed: told the number of the job that runs next.
    """
    runners = [Runner(job) for job in jobs]
    for runner in runners:
        runner.start()
    waiting = list(range(len(runners)))
    try:
        while waiting:
            for number in list(waiting):
                resumed(number)
                runners[number].resume()
                if runners[number].finished:
                    waiting.remove(number)
                    yield runners[number].result
                    runners[number].result = None
            layers = {runners[number].layer for number in waiting}
            if len(layers) > 1:
                raise RuntimeError(f"jobs stand before different layers: {sorted(map(str, layers))}")
            for layer in layers:
                assert layer is not None
                enter(layer)
    finally:
        for runner in runners:
            if not runner.finished:
                runner.abandoned = True
                runner.resume()
            runner.join()
