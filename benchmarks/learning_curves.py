"""Would a model of the learning curves choose better who goes on from a rung? Replayed over a recording (numpy only).

With pausing, the score at the rung decides who goes on. Here a prediction of the final score does: a Gaussian process
over the hyperparameters and the score at the rung, which learns from the trials that are completed, as in freeze-thaw
Bayesian optimization (Swersky et al. 2014). Beside it, how well each predicts the order of the final scores at all::

    python benchmarks/learning_curves.py benchmarks/data/curves-triplets.json    # some minutes
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from replay import Recording, quartiles, spearman, spread

SCORE, MODEL = "score", "model"
RUNGS = (0.065, 0.13, 0.26, 0.52)
LENGTH = 2.0  # of the Gaussian process, in standard deviations of its inputs
NOISE = 0.05  # its noise, as a share of the variance
LEAST = 3  # completed trials that a model needs


def features(configurations: list[dict[str, Any]]) -> np.ndarray:
    """Returns the hyperparameters of a recording, standardized: configurations x hyperparameters.

    Args:
        configurations: As ``rungs.py record`` has written them; learning rates count on a log scale.
    """
    names = sorted(configurations[0]["values"])
    columns = np.array([[item["values"][name] for name in names] for item in configurations], dtype=float)
    rate = names.index("learning_rate")
    columns[:, rate] = np.log(columns[:, rate])
    return standardized(columns)


def standardized(values: np.ndarray) -> np.ndarray:
    """Returns columns of mean 0 and standard deviation 1; constant ones become 0."""
    return np.asarray((values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-9))


def kernel(a: np.ndarray, b: np.ndarray, length: float = LENGTH) -> np.ndarray:
    """Returns the squared exponential covariances of two sets of points."""
    return np.asarray(np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=-1) / 2 / length**2))


def predicted(known: np.ndarray, values: np.ndarray, wanted: np.ndarray, length: float = LENGTH) -> np.ndarray:
    """Returns the mean of a Gaussian process with a constant mean.

    Args:
        known: Points: n x d.
        values: What was seen there: n.
        wanted: Points: m x d.
        length: The length scale.

    Returns:
        Its mean at the wanted points: m.
    """
    mean = values.mean()
    covariance = kernel(known, known, length) + NOISE * np.eye(len(known))
    return np.asarray(mean + kernel(wanted, known, length) @ np.linalg.solve(covariance, values - mean))


def order_of_finals(recording: Recording, inputs: np.ndarray) -> list[dict[str, float]]:
    """Returns, for each rung, the rank correlation of what predicts the final score with the final score.

    Args:
        recording: The recording.
        inputs: The hyperparameters of its configurations, standardized.

    Returns:
        For each rung: ``score``, the score there; ``line``, the line through the scores at this and the previous rung,
        over the logarithm of the fraction; ``model``, the Gaussian process, for each configuration from the final
        scores of all others; ``hyperparameters``, the same without the score at the rung.
    """
    found = []
    others = [np.arange(recording.size) != index for index in range(recording.size)]

    def left_out(points: np.ndarray) -> float:
        each = zip(others, points, strict=True)
        values = [predicted(points[mask], recording.final[mask], point[None])[0] for mask, point in each]
        return float(spearman(np.array(values), recording.final))

    for rung, previous in zip(RUNGS, (0.033, *RUNGS), strict=False):
        score, before = (recording.scores(place)[:, 0] for place in (rung, previous))
        line = score + (score - before) * np.log(1 / rung) / np.log(rung / previous)
        found.append(
            {
                "rung": rung,
                "score": float(spearman(score, recording.final)),
                "line": float(spearman(line, recording.final)),
                "model": left_out(np.column_stack([inputs, standardized(score[:, None])])),
                "hyperparameters": left_out(inputs),
            }
        )
    return found


def search(costs: tuple[np.ndarray, ...], inputs: np.ndarray, factor: int, by: str) -> tuple[np.ndarray, float]:
    """Runs one search with pausing at one rung.

    Args:
        costs: Of each trial, in the order in which they are proposed: the score at the rung, the final score, the
            seconds up to the rung with its evaluation, and those from there to the end.
        inputs: Their hyperparameters, standardized.
        factor: One of how many goes on, the best ones first.
        by: ``score`` or ``model``, which decides once ``LEAST`` trials are completed, and takes those for what they
            have scored. What it has learnt may promote one more at once, so that it completes a few more trials.

    Returns:
        When each trial was completed (infinity where it was not), and when the search ended.
    """
    score, final, early, late = costs
    ended, clock = np.full(len(score), np.inf), 0.0
    for trial in range(len(score)):
        clock += early[trial]
        seen = slice(0, trial + 1)
        while True:
            completed = np.isfinite(ended[seen])
            value = score[seen]
            if by == MODEL and completed.sum() >= LEAST:
                points = np.column_stack([inputs[seen], standardized(score[seen, None])])
                gain = (final - score)[seen][completed]
                value = np.where(completed, final[seen], score[seen] + predicted(points[completed], gain, points))
            best = np.argsort(-value, kind="stable")[: (trial + 1) // factor]
            waiting = [index for index in best if not completed[index]]
            if not waiting:
                break
            clock += late[waiting[0]]
            ended[waiting[0]] = clock
    return ended, clock


def replay(recording: Recording, inputs: np.ndarray, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns what becomes of searches in random orders: by rung, by factor, and by what decides."""
    rng = np.random.default_rng(options.seed)
    orders = [rng.permutation(recording.size)[: options.trials] for _ in range(options.orders)]
    found = []
    for rung in RUNGS[1:3]:
        score = recording.scores(rung)[:, 0]
        trained, evaluated = recording.seconds(rung)
        costs = (score, recording.final, trained + evaluated, recording.whole - trained)
        for factor in (3, 4):
            for by in (SCORE, MODEL):
                totals, firsts, pruned = [], [], 0
                for order in orders:
                    final, whole = recording.final[order], recording.whole[order].cumsum()
                    good = final >= final.max() - options.tolerance
                    ended, clock = search(tuple(item[order] for item in costs), inputs[order], factor, by)
                    totals.append(clock / whole[-1])
                    firsts.append(ended[good].min() / whole[good].min())
                    pruned += int(np.isinf(ended[final.argmax()]))
                found.append(
                    {
                        "policy": f"pause at {rung:g}, keep 1/{factor}",
                        "by": by,
                        "winner_pruned": pruned / len(orders),
                        "none_good": float(np.isinf(firsts).mean()),
                        "total": quartiles(np.array(totals)),
                        "held_of_first": quartiles(np.array(firsts)),
                    }
                )
    return found


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("recording", metavar="FILE", type=Path, help="what `rungs.py record` wrote")
    parser.add_argument("--orders", type=int, default=2000, help="random orders of the configurations")
    parser.add_argument("--trials", type=int, default=20, help="trials of a search")
    parser.add_argument("--tolerance", type=float, default=0.002, help="how near to the best is as good as the best")
    parser.add_argument("--seed", type=int, default=0, help="of the orders")
    options = parser.parse_args()
    if not options.recording.is_file():
        parser.error(f"there is no recording {str(options.recording)!r}")
    data = json.loads(options.recording.read_text(encoding="utf-8"))
    recording, inputs = Recording(data), features(data["configurations"])
    if recording.size < options.trials:
        parser.error(f"--trials must be at most {recording.size}, the configurations of the recording")
    print("| rung | its score | line | model | hyperparameters alone |\n|---|---|---|---|---|")
    for item in order_of_finals(recording, inputs):
        cells = [item["rung"], *(round(item[name], 2) for name in ("score", "line", "model", "hyperparameters"))]
        print("| " + " | ".join(f"{cell:g}" for cell in cells) + " |")
    print("\n| policy | who goes on by | winner pruned | none good | total | b' |\n|---|---|---|---|---|---|")
    for item in replay(recording, inputs, options):
        cells = [item["policy"], item["by"], f"{item['winner_pruned']:.1%}", f"{item['none_good']:.1%}"]
        print("| " + " | ".join([*cells, spread(item["total"]), spread(item["held_of_first"])]) + " |")


if __name__ == "__main__":
    main()
