"""Samplers and reduction factors, compared over hundreds of searches of a surrogate of recorded trainings.

``time_to_best.py`` takes a quarter of an hour a seed. Here a training is a draw from a Gaussian process through the
configurations that ``rungs.py record`` has trained, so that the same race, with Optuna's own samplers, takes seconds:
upstream's 20 trials set the target (its best less a tolerance), and a search that pauses at a rung runs until a
completed trial holds it, or until upstream's time is over. What holds here is a reason to measure, not a measurement::

    python benchmarks/surrogate.py benchmarks/data/curves-triplets.json    # some minutes
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from learning_curves import NOISE, kernel
from optuna.trial import TrialState, create_trial
from replay import Recording, quartiles, spread
from time_to_best import search_space

PAUSED, COMPLETED = "paused and completed", "completed"
FACTOR = 4  # st_hpo's own
SHARED = 0.6  # how much of a trial's luck at the end it has at the rung already: a correlation

Sampler = Callable[[int], optuna.samplers.BaseSampler]


@dataclass(frozen=True)
class Draw:
    """One training.

    Attributes:
        score: At the rung.
        final: At the end.
        early: Seconds up to the rung, with its evaluation.
        late: Seconds from there to the end.
        plain: Seconds without a rung.
    """

    score: float
    final: float
    early: float
    late: float
    plain: float


class Surrogate:
    """Trainings of any hyperparameters, from the recorded ones.

    The expected scores at the rung and at the end are those of a Gaussian process through the recorded ones; around
    them a trial has luck of its own, which the rung has in part. That the same values have other luck in upstream's
    search is so in truth as well: it shuffles otherwise. Seconds are linear in epochs and batches.

    Args:
        data: What ``rungs.py record`` has written.
        rung: The fraction at which trials pause.
        luck: The standard deviation of a trial's score around the expected one.
    """

    def __init__(self, data: dict[str, Any], rung: float, luck: float) -> None:
        recording = Recording(data)
        values = [item["values"] for item in data["configurations"]]
        raw = np.array([self._columns(item) for item in values])
        self._mean, self._scale = raw.mean(axis=0), np.maximum(raw.std(axis=0), 1e-9)
        self._points = (raw - self._mean) / self._scale
        self._luck = luck
        self._scores = np.column_stack([recording.scores(rung)[:, 0], recording.final])
        centred = self._scores - self._scores.mean(axis=0)
        covariance = kernel(self._points, self._points) + NOISE * np.eye(len(self._points))
        self._weights = np.linalg.solve(covariance, centred)
        trained, evaluated = recording.seconds(rung)
        seconds = np.column_stack([trained + evaluated, recording.whole - trained, recording.whole])
        costs = np.array([self._cost_columns(item) for item in values])
        self._seconds = np.linalg.lstsq(costs, seconds, rcond=None)[0]

    @staticmethod
    def _columns(values: dict[str, Any]) -> list[float]:
        rate, batch = math.log(values["learning_rate"]), math.log2(values["per_device_train_batch_size"])
        return [rate, batch, values["num_train_epochs"], values["warmup_steps"]]

    @staticmethod
    def _cost_columns(values: dict[str, Any]) -> list[float]:
        epochs = values["num_train_epochs"]
        return [1.0, epochs, epochs * math.log2(values["per_device_train_batch_size"])]

    def train(self, values: dict[str, Any], rng: np.random.Generator) -> Draw:
        """Returns a training with these hyperparameters.

        Args:
            values: Those of ``time_to_best.py``.
            rng: Draws its luck.
        """
        point = (np.array([self._columns(values)]) - self._mean) / self._scale
        score, final = self._scores.mean(axis=0) + (kernel(point, self._points) @ self._weights)[0]
        at_the_end, own = rng.normal(size=2) * self._luck
        score += SHARED * at_the_end + math.sqrt(1 - SHARED**2) * own
        early, late, plain = np.array(self._cost_columns(values)) @ self._seconds
        return Draw(score, final + at_the_end, early, late, plain)


def upstreams(surrogate: Surrogate, seed: int, trials: int) -> list[tuple[float, float]]:
    """Returns when each trial of upstream's search has ended, and its score."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    rng, clock, found = np.random.default_rng(seed), 0.0, []
    for _ in range(trials):
        trial = study.ask()
        draw = surrogate.train(search_space(trial), rng)
        clock += draw.plain
        found.append((clock, draw.final))
        study.tell(trial, draw.final)
    return found


def pausing(
    surrogate: Surrogate, sampler: optuna.samplers.BaseSampler, factor: int, told: str, race: tuple[int, float, float]
) -> float:
    """Returns the seconds until a search that pauses holds the target; infinity if it does not in time.

    Args:
        surrogate: What it trains.
        sampler: What proposes.
        factor: One of how many goes on, the best ones first.
        told: Which trials the sampler gets to know.
        race: The seed, the target and the seconds there are.
    """
    seed, target, limit = race
    study = optuna.create_study(direction="maximize", sampler=sampler)
    rng, clock = np.random.default_rng([seed, 1]), 0.0
    draws: list[tuple[Draw, Any]] = []
    completed: set[int] = set()
    while clock < limit:
        trial = study.ask()
        draws.append((surrogate.train(search_space(trial), rng), trial))
        clock += draws[-1][0].early
        trial.report(draws[-1][0].score, 26)
        study.tell(trial, state=TrialState.PRUNED if told == PAUSED else TrialState.FAIL)
        best = sorted(range(len(draws)), key=lambda index: -draws[index][0].score)[: len(draws) // factor]
        for index in best:
            if index in completed:
                continue
            draw, paused = draws[index]
            completed.add(index)
            clock += draw.late
            if draw.final >= target and clock < limit:
                return clock
            more = {"params": paused.params, "distributions": paused.distributions}
            study.add_trial(create_trial(value=draw.final, **more))
    return math.inf


def samplers() -> dict[str, tuple[Sampler, str]]:
    """Returns what is compared: a sampler for a seed, and which trials it gets to know."""
    return {
        "TPE, knows paused trials": (lambda seed: optuna.samplers.TPESampler(seed=seed), PAUSED),
        "TPE, knows completed trials alone": (lambda seed: optuna.samplers.TPESampler(seed=seed), COMPLETED),
        "random": (lambda seed: optuna.samplers.RandomSampler(seed=seed), COMPLETED),
    }


def race(surrogate: Surrogate, options: argparse.Namespace) -> None:
    """Prints the table."""
    runs = [upstreams(surrogate, seed, options.trials) for seed in range(options.seeds)]
    targets = [max(score for _, score in run) - options.tolerance for run in runs]
    totals = np.array([run[-1][0] for run in runs])
    firsts = np.array(
        [min(at for at, score in run if score >= target) for run, target in zip(runs, targets, strict=True)]
    )
    print("| sampler | keep | a | b | reached |\n|---|---|---|---|---|")
    print(f"| upstream: TPE | all | {spread(quartiles(firsts / totals))} | 1.00 | 100% |", flush=True)
    for name, (sampler, told) in samplers().items():
        for factor in options.factors if told == PAUSED else [FACTOR]:
            found = np.array(
                [
                    pausing(surrogate, sampler(seed), factor, told, (seed, targets[seed], totals[seed]))
                    for seed in range(options.seeds)
                ]
            )
            ratios = " | ".join(spread(quartiles(found / times)) for times in (totals, firsts))
            print(f"| {name} | 1/{factor} | {ratios} | {np.isfinite(found).mean():.0%} |", flush=True)


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("recording", metavar="FILE", type=Path, help="what `rungs.py record` wrote")
    parser.add_argument("--seeds", type=int, default=200, help="searches of each kind")
    parser.add_argument("--trials", type=int, default=20, help="trials of upstream's searches")
    parser.add_argument("--rung", type=float, default=0.26, help="where trials pause; one that was recorded")
    parser.add_argument("--luck", type=float, default=0.003, help="standard deviation of a score around its mean")
    parser.add_argument("--tolerance", type=float, default=0.002, help="how near to upstream's best is as good")
    parser.add_argument("--factors", type=int, nargs="+", default=[3, 4, 5, 6, 8, 12], help="one of how many goes on")
    options = parser.parse_args()
    if not options.recording.is_file():
        parser.error(f"there is no recording {str(options.recording)!r}")
    if min(options.seeds, options.trials) < 1 or any(factor < 2 for factor in options.factors):
        parser.error("--seeds and --trials must be at least 1, and --factors at least 2")
    data = json.loads(options.recording.read_text(encoding="utf-8"))
    if options.rung not in data["fractions"] or options.rung >= 1:
        parser.error(f"--rung must be below 1 and one of {data['fractions']}, but got {options.rung}")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    race(Surrogate(data, options.rung, options.luck), options)


if __name__ == "__main__":
    main()
