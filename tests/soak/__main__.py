"""``python -m soak --minutes 30``: a table of what was seen."""

from __future__ import annotations

import argparse
import statistics
import sys

from .run import Soak, soak

PARTS = 6


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--forget", default="null", help="otel.forget-spans of the cluster with the bridge, e.g. 5s")
    arguments = parser.parse_args()
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731, T201
    found = soak(60 * arguments.minutes, say, arguments.forget)
    print(table(found))  # noqa: T201


def table(found: Soak) -> str:
    """A row for each part of the time."""
    lines = [
        "| part | roots with / without | RSS with, MiB | RSS without, MiB | sweep, ms (median) | waiting, at most |",
        "|---|---|---|---|---|---|",
    ]
    for part in range(PARTS):
        ours, plain = (_part(story.samples, part) for story in (found.bridge, found.plain))
        sweep = 1000 * statistics.median(each["sweep"] for each in ours)
        lines.append(
            f"| {part + 1} | {ours[-1]['roots']} / {plain[-1]['roots']} | {_mib(ours):.1f} | {_mib(plain):.1f} "
            f"| {sweep:.2f} | {max(each['waiting'] for each in ours)} |"
        )
    end = found.bridge.end
    lines.append(
        f"\n{end['roots']} roots, {found.traces} traces arrived; {end['sent']} spans sent, {found.spans} arrived, "
        f"{end['dropped']} dropped, {end['waiting']} left; the collector changed {found.weather} times."
    )
    return "\n".join(lines)


def _part(samples: list[dict], number: int) -> list[dict]:
    size = len(samples) // PARTS
    return samples[number * size : (number + 1) * size] or samples[-1:]


def _mib(samples: list[dict]) -> float:
    return statistics.median(each["rss"] for each in samples) / 2**20


if __name__ == "__main__":
    main()
