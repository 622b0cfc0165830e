"""Rank correlations of recorded learning curves, and searches replayed over them: what ``rungs.py replay`` runs."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from policies import (
    HYPERBAND,
    INCUMBENT,
    MEDIAN,
    PAUSE,
    PAUSE_AGAIN,
    SCREEN,
    SCREEN_AGAIN,
    Curves,
    Policy,
    run,
)

BOOTSTRAPS = 500
WHOLE = 1.0  # the whole evaluation data, as a share
SHOWN_SHARES = (WHOLE, 0.5, 0.25)


class Recording:
    """A recording as arrays: configurations x points.

    Args:
        data: What ``rungs.py record`` wrote.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        items = data["configurations"]
        self.size = len(items)
        self.shares = [*data["shares"], WHOLE]
        self.draws = len(items[0]["points"][0]["parts"][0])
        self.final = np.array([item["final"] for item in items])
        setup = np.array([item["setup_s"] for item in items])
        last = [item["points"][-1] for item in items]
        self.last = np.array([point["eval_s"] for point in last])
        self.whole = setup + np.array([point["train_s"] for point in last]) + self.last
        self.parts_s = np.array([item["part_eval_s"] for item in items])
        self._columns: dict[float, tuple[np.ndarray, ...]] = {}
        self.fractions: list[float] = [f for f in data["fractions"] if f < 1]
        self.examples: list[int] = []
        scales = [(data["fractions"], "of_fractions"), (data["examples"], "of_examples")]
        for places, key in scales:
            for column, place in enumerate(places):
                places_of = [(item["points"], item[key][column]) for item in items]
                found = [None if index is None else points[index] for points, index in places_of]
                if None in found or (key == "of_fractions" and place == 1):
                    continue
                if key == "of_examples":
                    self.examples.append(place)
                self._columns[place] = (
                    np.array([[[point["full"]] * self.draws] for point in found]),
                    np.array([point["parts"] for point in found]),
                    setup + np.array([point["train_s"] for point in found]),
                    np.array([point["eval_s"] for point in found]),
                )

    def scores(self, place: float, share: float = WHOLE) -> np.ndarray:
        """Returns the scores at a fraction or a number of examples: configurations x draws."""
        full, parts, *_ = self._columns[place]
        return np.concatenate([parts, full], axis=1)[:, self.shares.index(share)]

    def seconds(self, place: float, share: float = WHOLE) -> tuple[np.ndarray, np.ndarray]:
        """Returns the seconds up to a place, and those of its evaluation: one each for every configuration."""
        *_, trained, evaluated = self._columns[place]
        return trained, evaluated if share == WHOLE else self.parts_s[:, self.shares.index(share)]

    def curves(self, orders: np.ndarray, policy: Policy, share: float, rng: np.random.Generator) -> Curves:
        """Returns what the trials of all orders would show at a policy's rungs.

        Args:
            orders: Numbers of configurations: orders x trials.
            policy: The policy.
            share: Of the evaluation data at the rungs, if the policy does not say; every order has one random part.
            rng: Draws these.
        """
        draw = rng.integers(self.draws, size=(len(orders), 1))
        rungs, shares = policy.rungs, policy.parts or [share] * len(policy.rungs)
        none = np.zeros((*orders.shape, 0))
        places = list(zip(rungs, shares, strict=True))
        seconds = [self.seconds(*place) for place in places]
        return Curves(
            np.stack([self.scores(*place)[orders, draw] for place in places], axis=2) if rungs else none,
            np.stack([trained[orders] for trained, _ in seconds], axis=2) if rungs else none,
            np.stack([evaluated[orders] for _, evaluated in seconds], axis=2) if rungs else none,
            self.final[orders],
            self.whole[orders],
            self.last[orders],
        )


def ranks(values: np.ndarray) -> np.ndarray:
    """Returns the ranks along the last axis; equal values share the mean of theirs."""
    one, other = values[..., :, None], values[..., None, :]
    return (one > other).sum(axis=-1) + ((one == other).sum(axis=-1) - 1) / 2


def spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the rank correlation along the last axis; 0 where all values are equal."""
    one, other = (ranks(values) for values in (one, other))
    one, other = (values - values.mean(axis=-1, keepdims=True) for values in (one, other))
    norm = np.sqrt((one**2).sum(axis=-1) * (other**2).sum(axis=-1))
    return np.divide((one * other).sum(axis=-1), norm, out=np.zeros_like(norm), where=norm > 0)


def correlations(recording: Recording, seed: int) -> list[dict[str, Any]]:
    """Returns the rank correlation of the scores at every place with those at the end.

    Args:
        recording: The recording.
        seed: Of the bootstrap over configurations.

    Returns:
        One entry a place and share of the evaluation data: ``rho``, ``interval`` (95%) and ``rho_of_best`` (of the
        half with the best scores at the end), each the mean over the random parts.
    """
    sample = np.random.default_rng(seed).integers(recording.size, size=(BOOTSTRAPS, recording.size))
    best = np.argsort(-recording.final)[: max(2, recording.size // 2)]
    found = []
    for place in (*recording.fractions, *recording.examples):
        for share in recording.shares:
            columns = recording.scores(place, share).T[: 1 if share == WHOLE else None]
            boots = np.mean([spearman(column[sample], recording.final[sample]) for column in columns], axis=0)
            found.append(
                {
                    "place": place,
                    "share": share,
                    "rho": float(np.mean([spearman(column, recording.final) for column in columns])),
                    "interval": [float(value) for value in np.quantile(boots, [0.025, 0.975])],
                    "rho_of_best": float(np.mean([spearman(c[best], recording.final[best]) for c in columns])),
                }
            )
    return found


def policies(recording: Recording, everything: bool) -> list[Policy]:
    """Returns what is compared; rungs that were not recorded are left out.

    Args:
        recording: The recording.
        everything: Also what only differs in a number.
    """
    later = (0.033, 0.065, 0.13, 0.2, 0.26, 0.4, 0.52)
    found = [Policy((f,), keep=keep) for f in later for keep in ((1 / 2, 1 / 3, 1 / 4) if f == 0.26 else (1 / 3,))]
    found += [Policy((n,), keep=1 / 3) for n in (384, 768)]
    found += [Policy((0.26,), keep=1 / 3, startup=k) for k in (2, 5)]
    found += [Policy((f,), keep=1 / 3, margin=m) for f, m in ((0.13, 0.002), (0.13, 0.005), (0.26, 0.005))]
    found += [Policy((0.13,), keep=1 / 3, lenient=True), Policy((0.26,), INCUMBENT, margin=0.005)]
    found += [Policy((0.13, 0.4), keep=1 / 2), Policy((0.13, 0.4), keep=1 / 3)]
    found += [Policy((0.065, 0.13, 0.26, 0.52), keep=1 / 2)]
    found += [Policy(tuple(recording.fractions), MEDIAN, startup=5), Policy((0.13, 0.4), MEDIAN, startup=5)]
    found += [Policy((0.26, 0.52), MEDIAN, startup=5), Policy((0.13, 0.4), HYPERBAND, 1 / 3)]
    found += [Policy((0.26, 0.7), HYPERBAND, 1 / 3)]  # the package's are 0.26 and 0.78, which was not recorded
    for rule in (PAUSE, PAUSE_AGAIN):
        found += [Policy((0.065,), rule, 1 / 4), Policy((0.26,), rule, 1 / 3), Policy((0.26,), rule, 1 / 4)]
        found += [Policy((0.065, 0.26), rule, k, parts=(0.5, 1)) for k in (1 / 2, 1 / 3)]
    for rule in (SCREEN, SCREEN_AGAIN):
        found += [Policy((0.065,), rule, 1 / 4), Policy((0.065, 0.26), rule, 1 / 3)]
    if everything:
        found += [Policy((0.065, 0.26), rule, k, parts=(0.25, 1)) for rule in (PAUSE, SCREEN) for k in (1 / 3, 1 / 4)]
        found += [Policy((f,), keep=keep) for f in recording.fractions for keep in (1 / 2, 1 / 3, 1 / 4)]
        found += [Policy((n,), keep=1 / 3) for n in recording.examples]
        found += [Policy((f,), keep=1 / 3, startup=k) for f in (0.13, 0.2, 0.26) for k in (2, 3, 5)]
        near = (0.002, 0.005, 0.01)
        found += [Policy((f,), keep=k, margin=m) for f in (0.13, 0.2, 0.26) for k in (1 / 3, 1 / 4) for m in near]
        found += [Policy((f,), keep=k, lenient=True) for f in (0.065, 0.13, 0.2, 0.26) for k in (1 / 3, 1 / 4)]
        found += [Policy(rungs, keep=k) for rungs in ((0.065, 0.26), (0.2, 0.52)) for k in (1 / 2, 1 / 3)]
        found += [Policy((0.065, 0.13, 0.26, 0.52), keep=1 / 3)]
        found += [Policy((f,), INCUMBENT, margin=m) for f in (0.065, 0.13, 0.2, 0.26) for m in (0.0, 0.005, 0.01)]
        found += [Policy((0.13, 0.26, 0.52), HYPERBAND, 1 / 2)]
        again = (SCREEN, SCREEN_AGAIN, PAUSE, PAUSE_AGAIN)
        found += [Policy((f, 0.26), rule, k) for rule in again for f in (0.065, 0.13) for k in (1 / 2, 1 / 3)]
        found += [
            Policy((f,), rule, k) for rule in again for f in (0.033, 0.065, 0.13, 0.2, 0.26) for k in (1 / 3, 1 / 4)
        ]
    known = {*recording.fractions, *recording.examples}
    return [Policy(), *dict.fromkeys(policy for policy in found if known.issuperset(policy.rungs))]


def measure(
    recording: Recording, orders: np.ndarray, policy: Policy, share: float, options: argparse.Namespace
) -> dict:
    """Runs one policy over all orders, and returns its figures beside those of no pruning."""
    rng = np.random.default_rng(options.seed)
    curves = recording.curves(orders, policy, share, rng)
    outcome = run(curves, policy, rng)
    best = curves.final.max(axis=1)
    good = curves.final >= best[:, None] - options.tolerance
    plain = curves.whole.cumsum(axis=1)
    plain_first = np.where(good, plain, np.inf).min(axis=1)
    first = np.where(good & outcome.completed, outcome.ended, np.inf).min(axis=1)
    rows = np.arange(len(orders))
    reached = np.where(outcome.completed, curves.final, -np.inf).max(axis=1)

    return {
        "policy": str(policy),
        "share": share,
        "winner_pruned": float(1 - outcome.completed[rows, curves.final.argmax(axis=1)].mean()),
        "none_good": float(np.isinf(first).mean()),
        "regret_mean": float((best - reached).mean()),
        "regret_90": float(np.quantile(best - reached, 0.9)),
        "completed": float(outcome.completed.sum(axis=1).mean()),
        "total": quartiles(outcome.total / plain[:, -1]),
        "held_of_total": quartiles(first / plain[:, -1]),
        "held_of_first": quartiles(first / plain_first),
    }


def replay(options: argparse.Namespace) -> dict[str, Any]:
    """Returns all figures of a recording.

    Raises:
        SystemExit: If it has fewer configurations than a search has trials.
    """
    data = json.loads(Path(options.recording).read_text(encoding="utf-8"))
    recording = Recording(data)
    if recording.size < options.trials:
        raise SystemExit(
            f"{options.recording} has {recording.size} configurations, but a search of {options.trials} trials "
            f"needs as many: record more, or take --trials {recording.size}."
        )
    rng = np.random.default_rng(options.seed)
    orders = np.array([rng.permutation(recording.size)[: options.trials] for _ in range(options.orders)])
    best = np.sort(recording.final)
    found = [
        measure(recording, orders, policy, share, options)
        for policy in policies(recording, options.all)
        for share in (SHOWN_SHARES if policy.rungs and not policy.parts else [WHOLE])
    ]
    return {
        "task": data["options"]["task"],
        "configurations": recording.size,
        "trials": options.trials,
        "orders": options.orders,
        "tolerance": options.tolerance,
        "final": {"least": best[0], "median": float(np.median(best)), "best": best[-1]},
        "good": int((best >= best[-1] - options.tolerance).sum()),
        "seconds": {"trial": statistics.median(recording.whole), "evaluation": statistics.median(recording.last)},
        "part_seconds": dict(zip(map(str, recording.shares), np.median(recording.parts_s, axis=0), strict=False)),
        "correlations": correlations(recording, options.seed),
        "policies": found,
    }


def show(result: dict[str, Any]) -> None:
    """Prints the figures as tables for a page."""
    final, seconds = result["final"], result["seconds"]
    scores = f"final {final['least']:.4f} to {final['best']:.4f}, median {final['median']:.4f}"
    good = f"{result['good']} within {result['tolerance']} of the best"
    print(f"{result['configurations']} configurations of {result['task']}: {scores}; {good}")
    print(f"A trial {seconds['trial']:.1f} s CPU, an evaluation {seconds['evaluation']:.2f} s", end="")
    print("".join(f", of {float(share):.0%} {s:.2f} s" for share, s in result["part_seconds"].items()) + "\n")
    shares = sorted({item["share"] for item in result["correlations"]}, reverse=True)
    print("| rung | " + " | ".join(f"{share:.0%} of the data" for share in shares) + " | best half |")
    print("|---" * (len(shares) + 2) + "|")
    for place in dict.fromkeys(item["place"] for item in result["correlations"]):
        of = {item["share"]: item for item in result["correlations"] if item["place"] == place}
        cells = [f"{of[s]['rho']:.2f} ({of[s]['interval'][0]:.2f}..{of[s]['interval'][1]:.2f})" for s in shares]
        print(f"| {place:g} | " + " | ".join(cells) + f" | {of[WHOLE]['rho_of_best']:.2f} |")
    print(
        "\n| policy | winner pruned | none good | regret | completed | total | a' | b' | on 1/2 | b' | on 1/4 | b' |"
    )
    print("|---" * 12 + "|")
    for policy in dict.fromkeys(item["policy"] for item in result["policies"]):
        of = {item["share"]: item for item in result["policies"] if item["policy"] == policy}
        whole = of[WHOLE]
        cells = [f"{whole['winner_pruned']:.1%}", f"{whole['none_good']:.1%}", f"{whole['regret_mean']:.4f}"]
        cells += [f"{whole['completed']:.1f}", *(spread(whole[key]) for key in KEYS)]
        for share in SHOWN_SHARES[1:]:
            part = of.get(share)
            cells += [f"{part['winner_pruned']:.1%}", spread(part["held_of_first"])] if part else ["", ""]
        print(f"| {policy} | " + " | ".join(cells) + " |")


def quartiles(values: np.ndarray) -> list[float]:
    """Returns the quartiles: values that are there, because one can be infinity."""
    ordered = np.sort(values)
    return [float(ordered[int(np.ceil(part * (len(ordered) - 1)))]) for part in (0.25, 0.5, 0.75)]


def spread(values: list[float]) -> str:
    """Returns a median and its quartiles; a search that never holds a good configuration counts as infinity."""
    low, middle, high = (f"{value:.2f}".replace("inf", "∞") for value in values)
    return f"{middle} ({low}..{high})"


KEYS = ("total", "held_of_total", "held_of_first")
