"""Produced: the runs that one worker produces, and its appends to them.

Invariant: a commit stores the batches of all its runs only if the generation is the one at which
this worker last looked which runs it produces. It is one statement, so no worker can be stopped
in the middle of it and hold up the others.
"""

import logging
import sqlite3
from collections.abc import Sequence

import msgspec

from streams.errors import for_log
from streams.log.sqlite.rows import (
    FIRST,
    LAST,
    can_follow,
    close_run,
    find_run,
    find_state,
    insert_batches,
    insertion,
    packed,
    read_generation,
)
from streams.log.store import (
    LOST,
    Append,
    Committed,
    Fenced,
    Forgotten,
    Missing,
    Notice,
    Outcome,
    report_damage,
)

logger = logging.getLogger("streams")


class ProducedRun(msgspec.Struct):
    """A run that this worker produces, as far as it knows. `id` is its number in the tables."""

    id: int
    last: int
    first: int
    evicted: int = -1
    """The newest event up to which this worker has tried to evict."""


class LargeCommit(msgspec.Struct):
    """A commit for the writer: its outcomes if it succeeds, the statement, and its values."""

    outcomes: list[Outcome]
    statement: str
    values: Sequence[object]
    runs: list[ProducedRun | None] = []
    """After it: the run of each append, unless it was lost meanwhile."""


class Produced:
    """The runs that `worker` produces, by their ids, and `notices` of those that it has lost."""

    def __init__(self, app: str, worker: str) -> None:
        self._app = app
        self._worker = worker
        self._generation = -1
        self.runs: dict[str, ProducedRun] = {}
        self.notices: list[Notice] = []

    def large_commit(self, db: sqlite3.Connection, appends: Sequence[Append]) -> LargeCommit | None:
        """The commit of appends for the writer; None if there is nothing to store."""
        outcomes, batches, _ = self._plan(db, appends)
        if not batches:
            return None
        return LargeCommit(outcomes, *insertion(batches, self._generation))

    def on_large_commit(self, appends: Sequence[Append], commit: LargeCommit) -> None:
        """Remembers a commit of the writer. Meanwhile, other workers may have claimed runs."""
        commit.runs = [
            self._on_committed(append, outcome)
            if isinstance(outcome, Committed) and append.run in self.runs
            else None
            for append, outcome in zip(appends, commit.outcomes, strict=True)
        ]

    def after_large_commit(
        self, db: sqlite3.Connection, appends: Sequence[Append], commit: LargeCommit
    ) -> list[Outcome]:
        """Evicts what the committed appends ask for. Returns their final outcomes."""
        return [
            outcome if run is None else self._evict_after(db, append, run, outcome)
            for append, run, outcome in zip(appends, commit.runs, commit.outcomes, strict=True)
        ]

    def look_again(self) -> None:
        """Before the next commit: the database has something else than this worker remembers."""
        self._generation = -1

    def append(self, db: sqlite3.Connection, appends: Sequence[Append]) -> list[Outcome]:
        while True:
            outcomes, batches, has_looked = self._plan(db, appends)
            try:
                committed = self._commit(db, batches)
            except sqlite3.IntegrityError as error:  # A row that no worker has written.
                if has_looked:
                    return self._append_one_by_one(db, appends, error)
                committed = False
            if committed:
                return [
                    self._evict_after(db, append, self._on_committed(append, outcome), outcome)
                    if isinstance(outcome, Committed)
                    else outcome
                    for append, outcome in zip(appends, outcomes, strict=True)
                ]
            self.look_again()

    def _plan(
        self, db: sqlite3.Connection, appends: Sequence[Append]
    ) -> tuple[list[Outcome], list[object], bool]:
        """The outcomes of appends if their batches are committed, and these.

        Returns also whether this worker has looked for it which runs it produces.
        """
        has_looked = False
        while True:
            if self._generation < 0:
                self.find(db, self._generation)
                has_looked = True
            outcomes: list[Outcome] = []
            batches: list[object] = []
            for append in appends:
                run = self.runs.get(append.run)
                if run is not None and append.number <= run.last + 1:
                    outcomes.append(_extend(batches, run, append))
                elif has_looked:
                    outcomes.append(self._refusal(db, append.run, run))
                else:  # The database may have something else than this worker remembers.
                    break
            else:
                return outcomes, batches, has_looked
            self.look_again()

    def _append_one_by_one(
        self, db: sqlite3.Connection, appends: Sequence[Append], error: sqlite3.IntegrityError
    ) -> list[Outcome]:
        """Ends the run to which nothing can be appended, and appends to the others."""
        if len(appends) > 1:
            return [outcome for append in appends for outcome in self.append(db, [append])]
        self._end_damaged(db, appends[0].run, error)
        return [Fenced()]

    def _end_damaged(self, db: sqlite3.Connection, run: str, what: object) -> None:
        db.execute("BEGIN IMMEDIATE")
        close_run(db, self._app, run, LOST, frees_key=True)
        db.execute("COMMIT")
        self.runs.pop(run, None)
        report_damage(run, what)

    def _commit(self, db: sqlite3.Connection, batches: list[object]) -> bool:
        """Returns False, and stores nothing, if the generation is not the one of the last look."""
        if batches:
            return insert_batches(db, batches, self._generation)
        return read_generation(db) == self._generation

    def _refusal(self, db: sqlite3.Connection, name: str, run: ProducedRun | None) -> Outcome:
        if run is not None:
            return Missing(run.last)
        return Forgotten() if find_run(db, self._app, name) is None else Fenced()

    def _on_committed(self, append: Append, outcome: Committed) -> ProducedRun:
        run = self.runs[append.run]
        run.last = max(run.last, outcome.last)
        if append.status is not None:
            del self.runs[append.run]
        return run

    def _evict_after(
        self, db: sqlite3.Connection, append: Append, run: ProducedRun, outcome: Outcome
    ) -> Outcome:
        if append.evict is None or append.evict <= max(run.evicted, run.first - 1):
            return outcome
        try:
            self._evict(db, run, append.evict, append.evicts_unread)
        except sqlite3.Error as error:  # The events are committed. The next append tries again.
            logger.debug("events of run %s were not evicted: %s", append.run, for_log(error))
        return Committed(run.last, run.first)

    def _evict(self, db: sqlite3.Connection, run: ProducedRun, up_to: int, unread: bool) -> None:
        """Deletes batches, without `unread` only those that the readers of all workers have had.

        The newest one stays: it tells the last number.
        """
        cursors = "SELECT coalesce(min(after), :up_to) FROM cursor WHERE run = :run"
        db.execute(
            "DELETE FROM batch WHERE run = :run AND last <= :up_to AND last < :last "
            f"AND last <= {':up_to' if unread else f'({cursors})'}",
            {"run": run.id, "up_to": up_to, "last": run.last},
        )
        query = f"SELECT {FIRST} FROM run AS r WHERE id = ?"
        (run.first,) = db.execute(query, (run.id,)).fetchone()
        run.evicted = up_to

    def find(self, db: sqlite3.Connection, generation: int) -> None:
        """Looks which runs this worker produces, unless it has looked at `generation` or later."""
        if 0 <= generation <= self._generation:
            return
        generation = read_generation(db)  # First: what is read after it is at least as new.
        rows = db.execute(
            f"SELECT name, id, {LAST}, {FIRST} FROM run AS r "
            "WHERE producer = ? AND status = 'running'",
            (self._worker,),
        ).fetchall()
        runs = {name: ProducedRun(*columns) for name, *columns in rows}
        for run in [run for run, produced in runs.items() if not can_follow(produced.last)]:
            self._end_damaged(db, run, f"event {runs.pop(run).last} is none of its own")
        for run in self.runs.keys() - runs.keys():
            state = find_state(db, self._app, run)
            if state is None:
                self.notices.append(Notice("forgotten", run))
            else:
                claimed = state.status == "running"
                self.notices.append(Notice("claimed" if claimed else "closed", run))
        self._generation, self.runs = generation, runs

    def check(self, db: sqlite3.Connection) -> None:
        """Looks again before the next append if rows of runs were deleted by hand."""
        query = "SELECT count(*) FROM run WHERE producer = ? AND status = 'running'"
        if db.execute(query, (self._worker,)).fetchone()[0] != len(self.runs):
            self._generation = -1


def _extend(batches: list[object], run: ProducedRun, append: Append) -> Committed:
    """Adds the batch of an append, unless all of it is committed. Returns its outcome."""
    frames = append.frames[run.last + 1 - append.number :]
    last = run.last + len(frames)
    if frames:
        batches += (run.id, last, append.status, append.frees_key, *packed(frames))
    return Committed(last, run.first)
