"""The RunInfo and the Limits of a new run, made from its Job."""

import secrets
from datetime import UTC, datetime

from streams.job import Job
from streams.log import EventLog, Limits, RunInfo
from streams.policy import Policy


def info_of(job: Job, log: EventLog) -> RunInfo:
    """What never changes about a new run of a job in this log."""
    return RunInfo(
        run=secrets.token_urlsafe(16),
        source=job.source,
        route=job.route,
        started=datetime.now(UTC),
        owner=job.owner,
        key=job.key,
        shared=job.shared,
        topic=job.topic,
        arguments=job.arguments if log.shared else None,
        argument_bytes=job.argument_bytes,
        arguments_hash=job.arguments_hash,
        guard_arguments=job.guard_arguments,
        fingerprint=job.fingerprint,
    )


def limits_of(policy: Policy) -> Limits:
    return Limits(policy.window, policy.retain, drops_oldest=policy.linger is None)
