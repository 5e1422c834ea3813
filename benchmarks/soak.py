"""The demo model under mixed traffic for hours: does anything grow, slow down, or come out otherwise than alone?

Sends what `tests/faults/traffic.py` makes of a seed, request after request, from several clients of whom a third leave.
Every minute it prints what the server and its worker take, how long answers took, and how many of the finished ones,
asked again of a second server that does nothing else, came out otherwise; a difference is printed with the seed and the
number that make its request again. The last line is a JSON document of all minutes.

Ends with status 1 when an answer differed or failed.

Usage: python benchmarks/soak.py [--minutes 60] [--clients 16] [--seed N] [--checked 20] [--folder DIR]
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.clients import Seen, alone, differences, drive
from tests.faults.live import Server, open_files, resident_mib, serving, threads
from tests.faults.traffic import Ask, Mix, one_ask

MIX = Mix(leaving=0.4, wrong=0.05, unique=True)
PERIOD_S = 60.0
COLUMNS = "{:>6} {:>8} {:>6} {:>8} {:>10} {:>10} {:>6} {:>8} {:>22} {:>22} {:>10}"


@dataclass(frozen=True)
class Minute:
    """What one minute brought; times in seconds of the finished requests, waiting included."""

    minute: int
    finished: int
    left: int
    turned_away: int
    server_mib: float
    worker_mib: float
    files: int
    threads: int
    first_byte_s: tuple[float, float, float]
    whole_s: tuple[float, float, float]
    checked: int
    differences: int


def percentiles(values: list[float]) -> tuple[float, float, float]:
    """Median, 95th percentile and maximum."""
    if not values:
        return 0.0, 0.0, 0.0
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[int(0.95 * (len(ordered) - 1))], ordered[-1]


def until(deadline: float, numbers: Iterator[int], seed: int) -> Iterator[Ask]:
    """Request after request, until the time has come."""
    while time.monotonic() < deadline:
        yield one_ask(seed, next(numbers), MIX)


async def one_minute(
    number: int, loaded: Server, idle: Server, numbers: Iterator[int], options: argparse.Namespace
) -> Minute:
    """Drive the loaded server for a minute, then compare some of its answers with those of the idle one."""
    seen: list[Seen] = await drive(
        loaded.port, until(time.monotonic() + PERIOD_S, numbers, options.seed), options.clients
    )
    await loaded.idle(within_s=120.0)
    finished = [one for one in seen if one.is_whole]
    checked = finished[: options.checked]
    failed = [one for one in seen if one.problem is not None]
    wrong = differences([*checked, *failed], await alone(idle.port, [one.ask for one in checked]))
    for line in wrong:
        print(f"  {line}", flush=True)
    return Minute(
        minute=number,
        finished=len(finished),
        left=sum(one.has_left for one in seen),
        turned_away=sum(one.turned_away for one in seen),
        server_mib=round(resident_mib(loaded.pid), 1),
        worker_mib=round(resident_mib(loaded.worker), 1),
        files=open_files(loaded.pid),
        threads=threads(loaded.pid),
        first_byte_s=percentiles([one.first_s for one in finished]),
        whole_s=percentiles([one.whole_s for one in finished]),
        checked=len(checked),
        differences=len(wrong),
    )


def show(minute: Minute) -> None:
    """One line of the table."""

    def spread(times: tuple[float, float, float]) -> str:
        return " / ".join(f"{value:.2f}" for value in times)

    cells = (
        minute.minute,
        minute.finished,
        minute.left,
        minute.turned_away,
        minute.server_mib,
        minute.worker_mib,
        minute.files,
        minute.threads,
        spread(minute.first_byte_s),
        spread(minute.whole_s),
        f"{minute.differences} of {minute.checked}",
    )
    print(COLUMNS.format(*cells), flush=True)


def main() -> None:
    """Run for the minutes asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--checked", type=int, default=20, help="answers of every minute that are asked for again")
    parser.add_argument("--folder", type=Path, default=None, help="for the logs; left out: a temporary one")
    options = parser.parse_args()

    minutes: list[Minute] = []
    numbers = iter(range(10**12))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder if options.folder is not None else Path(temporary)
        for name in ("loaded", "idle"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        with serving(folder / "loaded", "--log-level", "warning") as loaded, serving(folder / "idle") as idle:
            names = "minute finished left away server_MiB worker_MiB files threads first_byte_s whole_s different"
            print(COLUMNS.format(*names.split()))
            print("(times: median / 95 % / longest)")
            for number in range(1, options.minutes + 1):
                minutes.append(asyncio.run(one_minute(number, loaded, idle, numbers, options)))
                show(minutes[-1])
    print(json.dumps({"seed": options.seed, "minutes": [asdict(minute) for minute in minutes]}))
    if any(minute.differences > 0 for minute in minutes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
