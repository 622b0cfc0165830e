"""Which rungs find the best configuration again, and what they save: recorded learning curves, and searches replayed.

``record`` trains random configurations and keeps their scores on the way (a minute each on one core); ``replay``
runs thousands of searches over such a recording, in random orders, with and without pruning (seconds). Usage::

    python benchmarks/rungs.py record --triplets nli.jsonl --output curves.json     # 40 configurations
    python benchmarks/rungs.py record --task sts --train-size 1800 --configurations 24 --output sts.json
    python benchmarks/rungs.py replay benchmarks/data/curves-triplets.json          # what the README shows

A recording that is there already is continued. The data come from wheels (see ``examples/embedded.py``);
``--triplets`` takes lines of JSON with ``anchor``, ``positive`` and ``negative``.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from same_search import machine


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser(
        "record", help="train and record", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    recording.add_argument(
        "--output", metavar="FILE", type=Path, required=True, help="the recording; continued if there"
    )
    recording.add_argument("--task", choices=("triplets", "sts"), default="triplets", help="what is trained on")
    recording.add_argument("--triplets", metavar="FILE", help="triplets to train on, as JSON lines")
    recording.add_argument("--configurations", type=int, default=40, help="how many in all")
    recording.add_argument("--seed", type=int, default=0, help="of the configurations and of the evaluator's parts")
    recording.add_argument("--train-seed", type=int, default=12, help="of each training")
    recording.add_argument("--scale", action="store_true", help="also draw the loss's scale, 5..50")
    recording.add_argument("--train-size", type=int, help="the first N training examples only")
    recording.add_argument("--dev-size", type=int, help="the first N pairs of STS-B dev only")
    recording.add_argument("--threads", type=int, default=1, help="torch's threads")
    recording.add_argument("--model", metavar="PATH", help="another checkpoint than the embedded one")
    replaying = commands.add_parser(
        "replay", help="replay searches", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    replaying.add_argument("recording", metavar="FILE", type=Path, help="what `record` wrote")
    replaying.add_argument("--orders", type=int, default=2000, help="random orders of the configurations")
    replaying.add_argument("--trials", type=int, default=20, help="trials of a search")
    replaying.add_argument(
        "--tolerance", type=float, default=0.002, help="how near to the best is as good as the best"
    )
    replaying.add_argument("--seed", type=int, default=0, help="of the orders")
    replaying.add_argument("--all", action="store_true", help="also policies that differ in a number only")
    replaying.add_argument("--json", metavar="FILE", type=Path, help="where to write all figures")
    options = parser.parse_args(argv)
    if options.command == "record":
        for name in ("configurations", "threads"):
            if getattr(options, name) < 1:
                parser.error(f"--{name} must be at least 1, but got {getattr(options, name)}")
        if options.task == "triplets" and (options.triplets is None or not Path(options.triplets).is_file()):
            parser.error(
                f"--triplets: name the file of triplets, or take --task sts; there is none: {options.triplets}"
            )
        if options.task == "sts" and options.scale is False and options.triplets is not None:
            parser.error("--triplets is for --task triplets")
    elif not options.recording.is_file():
        parser.error(f"there is no recording {str(options.recording)!r}")
    return options


def main() -> None:
    """Runs what the command line asks for."""
    options = parse()
    if options.command == "record":
        os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        os.environ |= {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
        from curves import record

        record(options, machine())
        return
    from replay import replay, show

    result = replay(options)
    show(result)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
