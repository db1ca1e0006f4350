"""Simulates a million viewers that reconnect at once: how long does the queue get?

All viewers lose their connections at the same moment. Each reconnects after a random delay from
its `retry` range, and the workers together serve a fixed number of resumes per second, in order of
arrival. logs.py measures the rate of one worker (*resume*). Run it with
`python -m bench.stampede`.
"""

import random
from collections.abc import Iterator

VIEWERS = 1_000_000
RESUMES = 500
"""Resumes per second that a worker serves if it does nothing else."""

PATIENCE = 60
"""Seconds after which a proxy typically gives up waiting for the worker and answers itself."""

RETRIES = [(2, 2), (1, 3), (5, 15), (10, 60), (30, 120)]
WORKERS = [16, 64, 256]


def waits(retry: tuple[float, float], a_second: float) -> Iterator[tuple[float, float]]:
    """When each viewer reconnects, and when it is served, in seconds after the disconnect."""
    chance = random.Random(1)
    free = 0.0
    for asks in sorted(chance.uniform(*retry) for _ in range(VIEWERS)):
        free = max(free, asks) + 1 / a_second
        yield asks, free


def row(retry: tuple[float, float], workers: int) -> str:
    a_second = workers * RESUMES
    served = list(waits(retry, a_second))
    longest = max(done - asks for asks, done in served)
    late = sum(done - asks > PATIENCE for asks, done in served) / VIEWERS
    cells = [f"{retry[0]} to {retry[1]} s", workers, f"{a_second:,}", f"{longest * a_second:,.0f}"]
    cells += [f"{longest:.1f} s", f"{served[-1][1]:.0f} s", f"{late:.0%}"]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    titles = ["retry", "workers", "resumes/s", "longest queue", "longest wait", "all served"]
    titles.append(f"wait over {PATIENCE} s")
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for workers in WORKERS:
        for retry in RETRIES:
            print(row(retry, workers), flush=True)


if __name__ == "__main__":
    main()
