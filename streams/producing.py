"""Producing: the runs that this worker produces, and the limits of how many there are.

Invariants:

1. A client has no more running runs than `max_per_client`; shared ones are nobody's.
2. A shared source has no more runs than its `max_shared`, except those that are taken over.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from streams.admission import Quota
from streams.bursts import Bursts
from streams.errors import TooManyRuns
from streams.event import NO_READER, Encoder, Payload
from streams.job import Job, Opener
from streams.log import RunLog
from streams.observer import Observer, Observers, Production
from streams.policy import Policy
from streams.run import Run
from streams.thread import Threads


class Producing:
    """The runs that this worker produces. `of_clients` counts those of each client.

    A run that was lost and taken back is there twice, until its first source has closed.
    """

    def __init__(
        self,
        of_clients: Quota,
        encoder: Encoder,
        threads: Threads,
        observers: Observers,
    ) -> None:
        self.of_clients = of_clients
        self.encoder = encoder
        self.threads = threads
        self.observers = observers
        self._bursts = Bursts()
        self._runs: dict[Run, None] = {}  # A set that is in order.
        self._shared: dict[str, dict[Run, None]] = {}  # by source
        self._uncertain: dict[RunLog, Production | None] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs))

    def start(self, log: RunLog, job: Job) -> Run:
        """Produces a new run. Raises TooManyRequests or TooManyRuns if a limit is reached."""
        clients: Sequence[str] = ()
        if job.shared:
            self._make_room(job)
            # Nothing of the client that happens to start a shared run may be visible in it, but
            # the trace.
            context = Context()
        else:
            clients, context = job.clients, copy_context()
            self.of_clients.take(clients)
        production = Production(log.info.without_arguments())
        self.observers.tell(Observer.run_starts, production, context, job.parent)
        return self._produce(log, job.open, job.policy, production, context, clients, job.preface)

    def go_on(self, log: RunLog, open_source: Opener, policy: Policy) -> None:
        """Produces the run of another worker that does not produce it any more."""
        production, context = Production(log.info.without_arguments()), Context()
        self.observers.tell(Observer.run_continues, production, context)
        self._produce(log, open_source, policy, production, context)

    def _make_room(self, job: Job) -> None:
        """Ends the oldest run of a shared source that nobody watches, if it has too many."""
        runs, limit = self._shared.get(job.source, {}), job.policy.max_shared
        if len(runs) < limit:
            return
        unwatched = next((run for run in runs if run.is_unwatched), None)
        if unwatched is None:
            raise TooManyRuns(
                f"source {job.source} has {len(runs)} runs with other parameters (limit "
                f"max_shared={limit}); view one of them, or try again in "
                f"{TooManyRuns.retry_after} s"
            )
        del runs[unwatched]
        unwatched.cancel(NO_READER)

    def _produce(
        self,
        log: RunLog,
        open_source: Opener,
        policy: Policy,
        production: Production,
        context: Context,
        clients: Sequence[str] = (),
        preface: Payload | None = None,
    ) -> Run:
        async def iterate_source() -> AsyncIterator[Any]:
            name = f"run {log.info.run} of source {log.info.source}"
            return self.threads.iterate(await open_source(), name)

        ended = partial(self._ended, clients)
        run = Run(
            log,
            iterate_source,
            policy,
            self.encoder,
            preface,
            production,
            context,
            bursts=self._bursts,
            ended=ended,
            observers=self.observers,
        )
        self._runs[run] = None
        if log.info.shared:
            self._shared.setdefault(log.info.source, {})[run] = None
        return run

    def _ended(self, clients: Sequence[str], run: Run) -> None:
        self.of_clients.give_back(clients)
        del self._runs[run]
        source = run.log.info.source
        others = self._shared.get(source, {})
        others.pop(run, None)
        if not others:
            self._shared.pop(source, None)
        if run.handed_over:
            self.observers.tell(Observer.run_ended, run.production, "running")
        else:
            self.tell_end(run.log, run.production)

    def tell_end(self, log: RunLog, production: Production | None = None) -> None:
        """Tells the observers how a run has ended, as soon as that is certain.

        Until the store has the end, another worker may end or claim the run, and counts it then.
        Without a production, this worker has ended the run of another one.
        """
        if log.ended_here is not None:
            self._tell(log, production)
            return
        self._uncertain[log] = production
        log.watch(partial(self._tell_if_certain, log))

    def _tell_if_certain(self, log: RunLog) -> None:
        if log.ended_here is not None:
            log.watch(_ignore)
            self._tell(log, self._uncertain.pop(log))

    def _tell(self, log: RunLog, production: Production | None) -> None:
        status = "running" if log.ended_here is False else log.status
        if production is not None:
            self.observers.tell(Observer.run_ended, production, status)
        elif status != "running":
            self.observers.tell(Observer.ended_elsewhere, log.info, status)

    def tell_uncertain(self) -> None:
        """Tells the observers of the ends that will not become certain any more."""
        while self._uncertain:
            log, production = self._uncertain.popitem()
            log.watch(_ignore)
            self._tell(log, production)

    def abandon(self) -> list[Run]:
        """Forgets the runs of an event loop that is closed, and their tasks. Returns them."""
        self._bursts.clear()
        runs = list(self)
        for run in runs:
            run.abandon()
        return runs


def _ignore() -> None:
    """Does nothing: nothing more is to be told."""
