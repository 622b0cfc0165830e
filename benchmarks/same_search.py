"""The same search with upstream and with st_hpo: wall time, peak memory, models alive, the time beside the training.

Both get the same model, data, search space, sampler and seed; every search runs in a process of its own, and the two
libraries take turns. The parent checks that both were proposed the same values. Usage::

    python benchmarks/same_search.py                              # STS-B pairs, CoSENTLoss, 10 trials, 3 rounds
    python benchmarks/same_search.py --triplets nli.jsonl         # triplets, MultipleNegativesRankingLoss
    python benchmarks/same_search.py --train-size 200 --trials 3  # a quick look
    python benchmarks/same_search.py --no-baseline                # also st_hpo without its baseline
    python benchmarks/same_search.py --machinery                  # 1,000 trials of next to no training

``--triplets`` takes lines of JSON with ``anchor``, ``positive`` and ``negative``. Everything runs offline: the model
and the STS benchmark come from wheels (see ``examples/embedded.py``). ``--json`` keeps the raw numbers as well.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from one_search import LIBRARIES, OURS, OURS_WITHOUT_BASELINE, UPSTREAM, run

PACKAGES = ("st-hpo", "sentence-transformers", "transformers", "torch", "datasets", "accelerate", "optuna", "numpy")
CPU_MODEL = "model name"
# What the table shows of each search: key, title, factor, format
ROWS = (
    ("wall_s", "wall time, s", 1, ".2f"),
    ("cpu_s", "CPU time, s", 1, ".2f"),
    ("peak_rss_mib", "peak memory, MiB", 1, ".0f"),
    ("above_start_mib", "  above the start, MiB", 1, ".0f"),
    ("peak_gpu_mib", "peak GPU memory, MiB", 1, ".0f"),
    ("construct_s", "trainer built, s", 1, ".3f"),
    ("import_s", "imports, s", 1, ".2f"),
    ("process_s", "whole process, s", 1, ".2f"),
    ("outside_per_trial_s", "outside train + eval, ms a trial", 1e3, ".1f"),
    ("machinery_s", "machinery, ms a trial", 1e3, ".1f"),
    ("once_s", "machinery, ms once a search", 1e3, ".0f"),
)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10, help="trials of each search")
    parser.add_argument("--rounds", type=int, default=3, help="searches with each library, in turns")
    parser.add_argument("--triplets", metavar="FILE", help="triplets to train on, as JSON lines, instead of STS-B")
    parser.add_argument("--train-size", type=int, help="the first N training examples only")
    parser.add_argument("--dev-size", type=int, help="the first N pairs of STS-B dev only")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--model", metavar="PATH", help="another checkpoint than the embedded one")
    parser.add_argument("--no-baseline", action="store_true", help="also run st_hpo with baseline=False")
    parser.add_argument("--json", metavar="FILE", type=Path, help="where to write machine, options and raw runs")
    parser.add_argument("--machinery", action="store_true", help="only run very many trials of next to no training")
    parser.add_argument("--machinery-trials", type=int, default=1000, help="how many")
    parser.add_argument("--run", choices=LIBRARIES, help=argparse.SUPPRESS)
    parser.add_argument("--part", default="search", choices=("search", "models", "machinery"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    for name, least in (("trials", 2), ("rounds", 1), ("threads", 1), ("machinery_trials", 2)):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, but got {getattr(options, name)}")
    if options.triplets is not None and not Path(options.triplets).is_file():
        parser.error(f"--triplets: there is no file {options.triplets!r}")
    return options


def child(options: argparse.Namespace, library: str, part: str) -> dict[str, Any]:
    """Measures one part with one library in a new process."""
    command = [sys.executable, __file__, "--run", library, "--part", part]
    for name in ("trials", "triplets", "train_size", "dev_size", "threads", "model", "machinery_trials"):
        if getattr(options, name) is not None:
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    threads = {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads, **offline})
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    measured = json.loads(done.stdout.splitlines()[-1])
    return {"library": library, "process_s": time.perf_counter() - started, **measured}


def machine() -> dict[str, Any]:
    """Returns what the numbers depend on."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if CPU_MODEL in line]
        cpu = names[0] if names else cpu
    facts = {"cpu": cpu, "cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    if hasattr(os, "getloadavg"):
        facts["load_at_start"] = os.getloadavg()[0]
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {**facts, "time": datetime.now(timezone.utc).isoformat(timespec="seconds"), "packages": versions}


def check_same(runs: list[dict[str, Any]]) -> None:
    """Refuses to compare searches that were proposed different values, or trained for different numbers of steps."""
    first = runs[0]
    for other in runs[1:]:
        for key in ("proposals", "steps"):
            if other[key] != first[key]:
                raise SystemExit(
                    f"Not the same search: the {key} of {first['library']} were {first[key]},\nbut those of "
                    f"{other['library']} were {other[key]}."
                )


def same_search(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the searches in turns, and counts models in runs of their own."""
    libraries = [UPSTREAM, OURS, *([OURS_WITHOUT_BASELINE] if options.no_baseline else [])]
    models = {library: child(options, library, "models") for library in (UPSTREAM, OURS)}
    runs = []
    for number in range(options.rounds):
        for library in libraries:
            run_ = child(options, library, "search")
            run_["above_start_mib"] = run_["peak_rss_mib"] - run_["rss_before_mib"]
            runs.append({"round": number, **run_})
            say = f"round {number + 1}/{options.rounds}  {library:20}{run_['wall_s']:9.2f} s  best {run_['best']:.4f}"
            print(say, file=sys.stderr, flush=True)
    check_same(runs)
    return {"models_alive": models, "runs": runs, "ratios": ratios(runs, libraries[1:])}


def ratios(runs: list[dict[str, Any]], libraries: list[str]) -> dict[str, dict[str, list[float]]]:
    """Returns each library's share of what upstream took, round by round."""
    result: dict[str, dict[str, list[float]]] = {}
    upstream = [run_ for run_ in runs if run_["library"] == UPSTREAM]
    for library in libraries:
        ours = [run_ for run_ in runs if run_["library"] == library]
        result[library] = {
            key: [mine[key] / theirs[key] for mine, theirs in zip(ours, upstream, strict=True)]
            for key, *_ in ROWS
            if key in upstream[0] and key != "once_s"
        }
    return result


def spread(values: list[float], form: str, factor: float = 1) -> str:
    """Returns the median, and the smallest and greatest value."""
    low, middle, high = (f"{value * factor:{form}}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}..{high})"


def table(rows: list[list[str]]) -> str:
    """Returns the rows with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def show_search(result: dict[str, Any]) -> None:
    """Prints the ratios first, then what they are made of."""
    runs, libraries = result["runs"], [UPSTREAM, *result["ratios"]]
    keys = [row for row in ROWS if row[0] in runs[0]]
    head = ["median (min..max)", *(f"{name} / upstream" for name in libraries[1:]), *libraries]
    rows = [head]
    for key, title, factor, form in keys:
        # What is done once a search is nothing in upstream: no share of it says anything
        shares = ["" if key == "once_s" else spread(result["ratios"][name][key], ".3f") for name in libraries[1:]]
        values = [[run_[key] for run_ in runs if run_["library"] == name] for name in libraries]
        rows.append([title, *shares, *(spread(value, form, factor) for value in values)])
    for key, title in (("at_build", "models alive, one just built"), ("at_train_begin", "models alive, training")):
        counts = [str(max(result["models_alive"][name][key])) for name in (UPSTREAM, OURS)]
        rows.append([title, *[""] * (len(libraries) - 1), *counts, *[""] * (len(libraries) - 2)])
    print(table(rows))
    print("\nRatios are round by round; below 1 is less than upstream. 'Outside' is the search less its trainings and")
    print("evaluations. 'Machinery' is less model_init and loss as well, from one trial's proposal to the next one's.")
    for library in libraries[1:]:
        phases = [run_["phases_ms"] for run_ in runs if run_["library"] == library]
        shown = {key: statistics.median(v for phase in phases for v in phase[key]) for key in phases[0]}
        print(f"\n{library}, median ms a phase: " + ", ".join(f"{key} {value:.2f}" for key, value in shown.items()))


def show_machinery(result: dict[str, Any]) -> None:
    """Prints what each hundred trials cost."""
    blocks = result["machinery"]["blocks"]
    first, last = blocks[0], blocks[-1]
    print(f"machinery of the last block / of the first: {last['machinery_ms'] / first['machinery_ms']:.3f}")
    print(f"resident memory, last - first block: {last['rss_mib'] - first['rss_mib']:+.1f} MiB\n")
    columns = ("machinery_ms", "in_phases_ms", "user_ms", "rss_mib")
    names = [key for key in first["phases_ms"] if key not in ("model", "loss", "train", "evaluate")]
    rows = [["trials", "machinery ms", "in phases ms", "model+loss+train+eval ms", "RSS MiB", *names]]
    for block in blocks:
        cells = [f"{block[key]:.2f}" for key in columns] + [f"{block['phases_ms'][key]:.2f}" for key in names]
        rows.append([block["trials"], *cells])
    print(table(rows))


def main() -> None:
    """Runs what the command line asks for."""
    options = parse()
    if options.run is not None:
        run(options)
        return
    shown = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    result: dict[str, Any] = {"machine": machine(), "options": shown}
    versions = ", ".join(f"{name} {version}" for name, version in result["machine"]["packages"].items())
    print(f"{result['machine']['cpu']}, {result['machine']['cores']} cores, {options.threads} thread(s); {versions}\n")
    if options.machinery:
        result["machinery"] = child(options, OURS, "machinery")
        show_machinery(result)
    else:
        result |= same_search(options)
        show_search(result)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
