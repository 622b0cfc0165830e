"""Where the time of a trial goes, with upstream's search and with st_hpo's, and how that grows with the trials.

A trial loads its model, tokenises, trains and evaluates; the rest is the search's machinery. Every search has a
process of its own, and the two libraries take turns; they are measured as in ``same_search.py``, but in seconds of
CPU: parts of some milliseconds cannot be told on the wall clock of a machine that does other things too. Usage::

    python benchmarks/overhead.py                          # BERT-tiny and a static embedding model
    python benchmarks/overhead.py --minilm PATH            # also a checkpoint of MiniLM's shape
    python benchmarks/overhead.py --random-minilm          # the same with random weights
    python benchmarks/overhead.py --growth 10 100 1000     # trials of one step, so many of them

``--json`` keeps the raw numbers. ``--upstream-trials`` bounds the searches of upstream, whose trials cost more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from one_search import OURS, UPSTREAM, Stopwatch, measure_search
from same_search import machine

TINY, STATIC, MINILM = "BERT-tiny", "static, 256 wide", "MiniLM, 6 layers"
PARTS = ("model", "loss", "tokenise", "train", "evaluate", "machinery")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs one search in this process, and returns the seconds of each part of a trial."""
    from sentence_transformers.base.data_collator import BaseDataCollator

    options.cpu = True
    tokenising = Stopwatch(time.process_time)
    BaseDataCollator.__call__ = tokenising.timed("tokenise", BaseDataCollator.__call__)
    found = measure_search(options)
    of_search = {name: found["timed_s"].get(name, 0.0) for name in ("model", "loss", "train", "evaluate")}
    of_search["tokenise"] = tokenising.seconds.get("tokenise", 0.0)
    of_search["train"] -= of_search["tokenise"]
    parts = {name: seconds / options.trials for name, seconds in of_search.items()}
    machinery = found["machinery_of_trials_s"]
    kept = ("search_s", "once_s", "peak_rss_mib", "proposals", "steps")
    return {
        **{name: found[name] for name in kept},
        "parts_s": {**parts, "machinery": found["machinery_s"]},
        "machinery_first_s": statistics.median(machinery[: max(1, min(100, len(machinery) // 5))]),
        "machinery_last_s": statistics.median(machinery[-max(1, min(100, len(machinery) // 5)) :]),
    }


def static_model(folder: str) -> str:
    """Makes a static embedding model with the embedded model's tokenizer, and returns its folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import AutoTokenizer, set_seed

    from embedded import model_path

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=256)], device="cpu").save(folder)
    return folder


def random_minilm(folder: str) -> str:
    """Makes a model of the shape of all-MiniLM-L6-v2 with random weights, and returns its folder."""
    from transformers import AutoTokenizer, BertConfig, BertModel, set_seed

    from embedded import model_path

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=5, help="trials of each search")
    parser.add_argument("--rounds", type=int, default=2, help="searches with each library, in turns")
    parser.add_argument("--triplets", metavar="FILE", help="triplets to train on, as JSON lines, instead of STS-B")
    parser.add_argument("--train-size", type=int, default=320, help="the first N training examples only")
    parser.add_argument("--dev-size", type=int, default=200, help="the first N pairs of STS-B dev only")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--minilm", metavar="PATH", help="a checkpoint of MiniLM's shape, measured as well")
    parser.add_argument("--random-minilm", action="store_true", help="the same with random weights")
    parser.add_argument("--growth", type=int, nargs="*", default=[], metavar="N", help="trials of one step, no models")
    parser.add_argument("--upstream-trials", type=int, default=100, help="with --growth, at most so many of upstream")
    parser.add_argument("--json", metavar="FILE", type=Path, help="where to write machine, options and raw runs")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--max-steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--run", choices=(UPSTREAM, OURS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name, least in (("trials", 2), ("rounds", 1), ("threads", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, but got {getattr(options, name)}")
    if any(count < 2 for count in options.growth):
        parser.error(f"--growth: at least 2 trials, but got {options.growth}")
    if options.minilm is not None and not Path(options.minilm).is_dir():
        parser.error(f"--minilm: there is no folder {options.minilm!r}")
    return options


def child(options: argparse.Namespace, library: str, **changes: Any) -> dict[str, Any]:
    """Measures one search in a new process."""
    values = {name: getattr(options, name) for name in ("trials", "triplets", "train_size", "dev_size", "threads")}
    command = [sys.executable, __file__, "--run", library]
    for name, value in {**values, **changes}.items():
        if value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    environment = {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return {"library": library, **json.loads(done.stdout.splitlines()[-1])}


def measure_models(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures the parts of a trial for each model, and prints a table: milliseconds a trial, and shares."""
    found = []
    print("| model | search | " + " | ".join(f"{name}, ms" for name in PARTS) + " | machinery, share |")
    print("|---" * (len(PARTS) + 3) + "|")
    with tempfile.TemporaryDirectory() as folder:
        paths: dict[str, str | None] = {TINY: None, STATIC: static_model(f"{folder}/static")}
        if options.minilm is not None or options.random_minilm:
            paths[MINILM] = options.minilm or random_minilm(f"{folder}/minilm")
        for name, path in paths.items():
            runs = [
                {"model": name, "round": number, **child(options, library, model=path)}
                for number in range(options.rounds)
                for library in (UPSTREAM, OURS)
            ]
            if any(run["proposals"] != runs[0]["proposals"] or run["steps"] != runs[0]["steps"] for run in runs):
                raise SystemExit(f"{name}: not the same search: {runs}")
            for library in (UPSTREAM, OURS):
                own = [run["parts_s"] for run in runs if run["library"] == library]
                parts = {part: statistics.median(item[part] for item in own) * 1e3 for part in PARTS}
                cells = " | ".join(f"{parts[part]:.1f}" for part in PARTS)
                share = parts["machinery"] / sum(parts.values())
                print(f"| {name} | {library} | {cells} | {share:.1%} |", flush=True)
            found += runs
    return found


def measure_growth(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures searches of ever more trials of one step, and prints a table."""
    found = []
    print("| trials | search | seconds | ms a trial | machinery, ms | first trials | last trials | MiB |")
    print("|---" * 8 + "|")
    for count in options.growth:
        for library in (UPSTREAM, OURS):
            if library == UPSTREAM and count > options.upstream_trials:
                continue
            run = child(options, library, trials=count, train_size=64, dev_size=16, max_steps=1)
            cells = [run["search_s"], run["search_s"] / count * 1e3, run["parts_s"]["machinery"] * 1e3]
            cells += [run["machinery_first_s"] * 1e3, run["machinery_last_s"] * 1e3]
            shown = " | ".join(f"{cell:.1f}" for cell in cells)
            print(f"| {count} | {library} | {shown} | {run['peak_rss_mib']:.0f} |", flush=True)
            found.append({"trials": count, **{key: value for key, value in run.items() if key != "proposals"}})
    return found


def main() -> None:
    """Runs what the command line asks for."""
    options = parse()
    if options.run is not None:
        print(json.dumps(measure(options)))
        return
    result: dict[str, Any] = {"machine": machine(), "options": {k: str(v) for k, v in vars(options).items()}}
    started = time.perf_counter()
    result["runs"] = measure_growth(options) if options.growth else measure_models(options)
    print(f"\n{time.perf_counter() - started:.0f} s, load {os.getloadavg()[0]:.1f} at the end", file=sys.stderr)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
