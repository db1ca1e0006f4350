"""A million viewers who all lose their connections at once, and come back: how long the queue gets.

Each comes after the `retry` that it was sent, to workers that take so many a second together, in
turn. What a worker takes is measured: see *resume* in redis_log.py. `python -m bench.stampede`.
"""

import random
from collections.abc import Iterator

VIEWERS = 1_000_000
RESUMES = 500
"""That a worker takes in a second, if it does nothing else."""

PATIENCE = 60
"""Seconds after which a proxy answers in place of a worker, commonly."""

RETRIES = [(2, 2), (1, 3), (5, 15), (10, 60), (30, 120)]
WORKERS = [16, 64, 256]


def waits(retry: tuple[float, float], a_second: float) -> Iterator[tuple[float, float]]:
    """When each viewer asks, and when it is served, in seconds from the break."""
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
    titles = (
        f"retry | workers | resumes/s | longest queue | longest wait | all back | over {PATIENCE} s"
    )
    print(f"| {titles} |\n|{'---|' * (titles.count('|') + 1)}")
    for workers in WORKERS:
        for retry in RETRIES:
            print(row(retry, workers), flush=True)


if __name__ == "__main__":
    main()
