"""The verdicts on twelve ill and six healthy workloads, and what five cures save.

Each workload runs on a cluster of its own, in processes of their own, whose traces come here over OTLP.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import time
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))

from workloads import CURES, HEALTHY, ILL, Cure, Workload
from workloads.cluster import start
from workloads.evidence import Meter

from dask_otel.cli.receiver import Receiver, Span
from dask_otel.schema import (
    CRITICAL_GAP,
    CRITICAL_SECONDS,
    CRITICAL_STEPS,
    CRITICAL_STEPS_SECONDS,
    VERDICT,
    VERDICT_AT_MOST,
    VERDICT_HINTS,
    VERDICT_TEXT,
    VERDICT_WITHHELD,
    WATERFALL,
    WATERFALL_THREADS,
)

#: A workload is run again if other programs used so many cores meanwhile: half as much as it needs to be a cause.
NOISE = 0.4
TRIES = 2
#: Seconds to wait until they use fewer.
QUIET = 20.0
#: Ill workloads that may have another verdict.
ALLOWED = 1
#: What a cure may save beyond "at most", as a part of the ill run: durations vary.
TOLERANCE = 0.1


@dataclass
class Result:
    """What came of a workload."""

    workload: str
    #: None for a cured one, which may well be ill of something else.
    expected: list[str] | None
    #: Seconds of the root's segment.
    seconds: float = 0.0
    #: Seconds that the client waited.
    waited: float = 0.0
    #: Cores that other programs used meanwhile.
    noise: float = 0.0
    verdict: list[str] = field(default_factory=list)
    text: str = ""
    at_most: float = 0.0
    #: Wall seconds by part.
    waterfall: dict[str, float] = field(default_factory=dict)
    #: Seconds by what the critical path is made of.
    path: dict[str, float] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    hints: list[str] = field(default_factory=list)
    withheld: str = ""
    evidence: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Whether the first verdict is one that was expected, or there is none where none was."""
        if self.expected is None:
            return True
        return self.verdict[0] in self.expected if self.expected and self.verdict else self.verdict == self.expected

    def lines(self) -> list[str]:
        """Return the result as text."""

        def seconds(parts: dict[str, float]) -> str:
            largest = sorted(parts.items(), key=lambda item: -abs(item[1]))
            return ", ".join(f"{name} {value:.1f}" for name, value in largest if abs(value) >= 0.05) or "-"

        expected = "any" if self.expected is None else " or ".join(self.expected) or "none"
        lines = [
            f"{'right' if self.is_right else 'WRONG'}: {self.workload}: {self.seconds:.1f} s of {self.waited:.1f} s, "
            f"expected {expected}, found {', '.join(self.verdict) or 'none'} (others used {self.noise:.1f} cores)",
            f"  text: {self.text or '-'}",
            f"  waterfall: {seconds(self.waterfall)}",
            f"  path: {seconds(self.path)}",
            f"  steps: {seconds(self.steps)}",
        ]
        lines += [f"  hint: {each}" for each in self.hints]
        lines += [f"  withheld: {self.withheld}"] if self.withheld else []
        return lines + [f"  {each}" for each in self.evidence]


def measure(workload: Workload, folder: Path, *, evidence: bool) -> Result:
    """Run a workload; the cluster also writes its traces into a folder."""
    with Receiver() as receiver:
        environment = {
            "DASK_OTEL__TRACES__FOLDER": str(folder),
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoints["http/protobuf"],
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }
        with start(workload, environment) as cluster:
            with Meter(cluster, stream=evidence) as measured:
                workload.run(cluster)
                done = time()
            # The last task has ended not long before the client knew of it.
            receiver.wait(lambda spans: any(not each.parent_id and each.end > done - 2 for each in spans), timeout=60)
        spans = receiver.wait(lambda spans: True, timeout=1)
    roots = [each for each in spans if not each.parent_id]
    worst = max(roots, key=lambda root: (VERDICT in root.attributes, root.seconds))
    result = from_root(workload, worst)
    result.waited, result.noise = measured.seconds, measured.others
    result.evidence = measured.lines() if evidence else []
    return result


def from_root(workload: Workload, root: Span) -> Result:
    """Read the attributes of a root."""
    found = root.attributes
    threads = found.get(WATERFALL_THREADS, 0.0)
    path = {"runs": CRITICAL_SECONDS} | {f"gap: {cause}": name for cause, name in CRITICAL_GAP.items()}
    return Result(
        workload.name,
        None if workload.expected is None else sorted(workload.expected),
        root.seconds,
        verdict=found.get(VERDICT, []),
        text=found.get(VERDICT_TEXT, ""),
        at_most=found.get(VERDICT_AT_MOST, 0.0),
        waterfall={part: found[name] / threads for part, name in WATERFALL.items() if name in found and threads},
        path={each: found[name] for each, name in path.items() if name in found},
        steps=dict(zip(found.get(CRITICAL_STEPS, ()), found.get(CRITICAL_STEPS_SECONDS, ()), strict=True)),
        hints=found.get(VERDICT_HINTS, []),
        withheld=found.get(VERDICT_WITHHELD, ""),
    )


def measure_quietly(workload: Workload, folder: Path, *, evidence: bool, tries: int, quiet: float) -> Result:
    """Run a workload, again if other programs used the processors too much, whatever the verdict was."""
    for left in reversed(range(tries)):
        wait_for_quiet(quiet)
        shutil.rmtree(folder, ignore_errors=True)
        result = measure(workload, folder, evidence=evidence)
        print("\n".join(result.lines()), flush=True)
        if result.noise < NOISE or not left:
            break
        print("  too noisy: once more", flush=True)
    return result


def wait_for_quiet(seconds: float) -> None:
    """Wait until other programs leave the processors alone, but not for ever."""
    deadline = time() + seconds
    while psutil.cpu_percent(2.0) / 100 * os.cpu_count() > NOISE and time() < deadline:
        pass


def check_cure(cure: Cure, ill: Result, cured: Result, folders: tuple[Path, Path]) -> list[str]:
    """Return what is wrong with a cure."""
    saved = ill.seconds - cured.seconds
    found = difference(*folders)
    parts, steps = list(found["parts"]["changes"]), [step["label"] for step in found["steps"]]
    print(
        f"cure of {cure.of}: {ill.seconds:.1f} s, cured {cured.seconds:.1f} s: saved {saved:.1f} s, "
        f"at most {ill.at_most:.1f} s were said; diff names {parts[0]} and {steps[0]}",
        flush=True,
    )
    wrong = []
    if saved <= 0:
        wrong.append("it does not help")
    if saved > ill.at_most + TOLERANCE * ill.seconds:
        wrong.append(f"it saved {saved:.1f} s, more than {ill.at_most:.1f} s")
    if parts[0] not in cure.parts:
        wrong.append(f"diff names {parts[0]}, not {' or '.join(sorted(cure.parts))}")
    if cure.steps and not any(step in steps[0] for step in cure.steps):
        wrong.append(f"diff names {steps[0]}, not {' or '.join(sorted(cure.steps))}")
    return [f"cure of {cure.of}: {each}" for each in wrong]


def difference(before: Path, after: Path) -> dict[str, Any]:
    """Return what `dask-otel diff` says about two folders of traces."""
    command = [
        sys.executable,
        "-c",
        "from dask_otel.cli import main; main()",
        "diff",
        str(before),
        str(after),
        "--json",
    ]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def run(names: set[str], folder: Path, **how: Any) -> tuple[list[Result], list[str]]:
    """Run workloads once; return what was found, and what is wrong."""
    found = {}
    cures = [cure for cure in CURES if cure.cured.name in names]
    for workload in (*ILL, *HEALTHY, *(cure.cured for cure in CURES)):
        if workload.name in names or workload.name in {cure.of for cure in cures}:
            try:
                found[workload.name] = measure_quietly(workload, folder / workload.name, **how)
            except Exception as error:  # noqa: BLE001  the others are still of interest
                traceback.print_exc()
                found[workload.name] = Result(workload.name, ["no failure"], text=repr(error))
    ill = [each.name for each in ILL if each.name in found and not found[each.name].is_right]
    wrong = ill if len(ill) > ALLOWED or len(found) < len(ILL) else []
    wrong += [each.name for each in HEALTHY if each.name in found and not found[each.name].is_right]
    for cure in cures:
        before, after = found[cure.of], found[cure.cured.name]
        if before.seconds and after.seconds:
            wrong += check_cure(cure, before, after, (folder / cure.of, folder / cure.cured.name))
        else:
            wrong.append(f"cure of {cure.of}: no trace")
    return list(found.values()), wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of workloads; cured: with the ill ones")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--tries", type=int, default=TRIES, help="runs of a workload until one is without noise")
    parser.add_argument("--quiet", type=float, default=QUIET, help="seconds to wait until other programs are quiet")
    parser.add_argument("--evidence", action="store_true", help="also measure without the bridge")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results")
    parser.add_argument("--folder", type=Path, help="where to keep the traces, a folder for each workload")
    options = parser.parse_args()
    all_names = {each.name for each in (*ILL, *HEALTHY, *(cure.cured for cure in CURES))}
    names = set(options.only or all_names)
    if unknown := names - all_names:
        parser.error(f"no workload is named {', '.join(sorted(unknown))}: there are {', '.join(sorted(all_names))}")
    # Also then, end the processes of the cluster.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results: list[Result] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(options.repeat):
            folder = (options.folder or Path(temporary)) / str(number)
            how = {"evidence": options.evidence, "tries": options.tries, "quiet": options.quiet}
            found, failed = run(names, folder, **how)
            results += found
            wrong += failed
            if options.json:
                options.json.write_text(json.dumps([asdict(each) for each in results], indent=1), encoding="utf-8")
    right = sum(each.is_right for each in results)
    print(f"{right} of {len(results)} right; wrong: " + (", ".join(wrong) or "nothing"))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
