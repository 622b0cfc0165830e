"""Search policies, replayed over recorded learning curves in many random orders at once (numpy only).

All policies see the same orders, and all arrays begin with the two axes orders and trials. A trial is worth what it
scores at the end of its training; a policy only decides how far each one goes, and in which order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

ASHA, MEDIAN, HYPERBAND, INCUMBENT = "asha", "median", "hyperband", "incumbent"
SCREEN, SCREEN_AGAIN, PAUSE, PAUSE_AGAIN = "screen", "screen, again", "pause", "pause, again"
RULES = (ASHA, MEDIAN, HYPERBAND, INCUMBENT, SCREEN, SCREEN_AGAIN, PAUSE, PAUSE_AGAIN)


@dataclass(frozen=True)
class Policy:
    """How far each trial of a search goes.

    Args:
        rungs: Where trials are evaluated on the way: fractions of their own training, or numbers of examples. Empty
            is no pruning.
        rule: ``asha``: a trial goes on if it is among the best ``keep`` of all that have reached the rung so far,
            itself included, and at least the best of them (Li et al. 2018, without resuming, as in Optuna's
            ``SuccessiveHalvingPruner``). ``median``: it goes on if its best score so far is no worse than the median
            of the completed trials at the rung (Golovin et al. 2017, Optuna's ``MedianPruner``). ``hyperband``:
            ``asha`` in brackets, each of which begins one rung later, chosen with the weights of Optuna's
            ``HyperbandPruner``.
            ``incumbent``: it goes on if it is as good as the best completed trial was at the rung.
            ``screen``: all trials run to the rung first, then the best ``keep`` of them to the next one, and so on;
            those that are left run to the end, best first (successive halving, Jamieson and Talwalkar 2016).
            ``pause``: a trial is paused at each rung, and goes on when it is among the best ``keep`` of it, now or
            later (Li et al. 2018, algorithm 2). With ``again``, a trial that goes on is trained again from its
            beginning, as without any checkpoints.
        keep: The share of trials that go on.
        startup: So many first trials are never pruned (``median``: so many must have completed).
        margin: A trial may be so much worse than what it is compared with and goes on nevertheless.
        lenient: Round the number of trials that go on up, not down.
        parts: The share of the evaluation data at each rung; empty for one and the same at all.
    """

    rungs: tuple[float, ...] = ()
    rule: str = ASHA
    keep: float = 1 / 3
    startup: int = 0
    margin: float = 0.0
    lenient: bool = False
    parts: tuple[float, ...] = ()

    def __str__(self) -> str:
        if not self.rungs:
            return "no pruning"
        rungs = [f"{rung:g}" for rung in self.rungs]
        if self.parts:
            rungs = [f"{rung} on {part:.0%}" for rung, part in zip(rungs, self.parts, strict=True)]
        text = f"{self.rule} at {', '.join(rungs)}"
        if self.rule not in (MEDIAN, INCUMBENT):
            text += f", keep 1/{1 / self.keep:g}" if self.keep <= 0.5 else f", keep {self.keep:g}"
        text += f", startup {self.startup}" if self.startup else ""
        text += f", margin {self.margin:g}" if self.margin else ""
        return text + (", rounded up" if self.lenient else "")


@dataclass
class Curves:
    """What the trials of every order would show: arrays of orders x trials (x rungs).

    Args:
        scores: At each rung of the policy.
        trained: Seconds from the start of the trial to the rung, evaluations left out.
        evaluated: Seconds of the rung's evaluation.
        final: The score at the end.
        whole: Seconds of a whole trial with its evaluation at the end.
        last: Seconds of that evaluation.
    """

    scores: np.ndarray
    trained: np.ndarray
    evaluated: np.ndarray
    final: np.ndarray
    whole: np.ndarray
    last: np.ndarray


@dataclass
class Outcome:
    """What became of each trial of every order.

    Args:
        completed: Whether it was trained to the end.
        ended: When, in seconds since the search began; of completed trials alone.
        total: Seconds of the whole search.
    """

    completed: np.ndarray
    ended: np.ndarray
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))


def allowed(count: np.ndarray, policy: Policy) -> np.ndarray:
    """Returns how many of so many trials may go on: at least one."""
    share = count * policy.keep
    return np.maximum(np.ceil(share - 1e-9) if policy.lenient else np.floor(share + 1e-9), 1)


def run(curves: Curves, policy: Policy, rng: np.random.Generator) -> Outcome:
    """Runs a policy over all orders.

    Args:
        curves: What the trials would show at the policy's rungs.
        policy: The policy.
        rng: Draws the brackets of hyperband.

    Returns:
        What became of the trials.
    """
    if policy.rule in (SCREEN, SCREEN_AGAIN):
        return _screen(curves, policy)
    if policy.rule in (PAUSE, PAUSE_AGAIN):
        return _pause(curves, policy)
    orders, trials, rungs = curves.scores.shape
    reached = np.full((orders, trials, rungs), np.nan)
    completed = np.zeros((orders, trials), dtype=bool)
    cost = np.zeros((orders, trials))
    bracket = np.zeros((orders, trials), dtype=int)
    if policy.rule == HYPERBAND:
        eta, brackets = 1 / policy.keep, rungs
        weights = np.array([np.ceil(brackets * eta**s / (s + 1)) for s in range(brackets - 1, -1, -1)])
        bracket = rng.choice(brackets, size=(orders, trials), p=weights / weights.sum())
    for trial in range(trials):
        alive = np.ones(orders, dtype=bool)
        for rung in range(rungs):
            value = curves.scores[:, trial, rung]
            reached[alive, trial, rung] = value[alive]
            cost[alive, trial] += curves.evaluated[alive, trial, rung]
            pool = reached[:, : trial + 1, rung]
            if policy.rule == MEDIAN:
                goes_on = _above_median(reached, completed, trial, rung, policy)
            elif policy.rule == INCUMBENT:
                goes_on = _near_incumbent(curves, completed, trial, rung, policy)
            else:
                rivals = ~np.isnan(pool) & (bracket[:, : trial + 1] == bracket[:, [trial]])
                better = (rivals & (pool > (value + policy.margin)[:, None])).sum(axis=1)
                goes_on = better < allowed(rivals.sum(axis=1), policy)
                goes_on |= bracket[:, trial] > rung
                goes_on |= trial < policy.startup
            stops = alive & ~goes_on
            cost[stops, trial] += curves.trained[stops, trial, rung]
            alive &= goes_on
        cost[alive, trial] += curves.whole[alive, trial]
        completed[:, trial] = alive
    ended = cost.cumsum(axis=1)
    return Outcome(completed, ended, ended[:, -1])


def _above_median(reached: np.ndarray, completed: np.ndarray, trial: int, rung: int, policy: Policy) -> np.ndarray:
    best = np.nanmax(np.where(np.isnan(reached[:, trial, : rung + 1]), -np.inf, reached[:, trial, : rung + 1]), axis=1)
    done = completed[:, :trial]
    enough = done.sum(axis=1) >= max(policy.startup, 1)
    pool = np.where(done, reached[:, :trial, rung], np.nan)
    median = np.full(len(best), -np.inf)
    if enough.any():
        median[enough] = np.nanmedian(pool[enough], axis=1)
    return best >= median - policy.margin


def _near_incumbent(curves: Curves, completed: np.ndarray, trial: int, rung: int, policy: Policy) -> np.ndarray:
    if trial == 0:
        return np.ones(len(completed), dtype=bool)
    finals = np.where(completed[:, :trial], curves.final[:, :trial], -np.inf)
    incumbent = finals.argmax(axis=1)
    target = curves.scores[np.arange(len(completed)), incumbent, rung]
    enough = completed[:, :trial].sum(axis=1) >= max(policy.startup, 1)
    return ~enough | (curves.scores[:, trial, rung] >= target - policy.margin)


def _screen(curves: Curves, policy: Policy) -> Outcome:
    orders, trials, rungs = curves.scores.shape
    again = policy.rule == SCREEN_AGAIN
    rows = np.arange(orders)[:, None]
    clock, alive, left = np.zeros(orders), np.ones((orders, trials), dtype=bool), trials
    before = np.zeros((orders, trials))
    for rung in range(rungs):
        cost = curves.trained[:, :, rung] - (0 if again else before) + curves.evaluated[:, :, rung]
        clock += np.where(alive, cost, 0).sum(axis=1)
        before = curves.trained[:, :, rung]
        best_first = np.argsort(np.where(alive, -curves.scores[:, :, rung], np.inf), axis=1, kind="stable")
        left = int(allowed(np.array(left), policy))
        alive[rows, best_first[:, left:]] = False
    rest = curves.whole - (0 if again else before)
    last = best_first[:, :left]
    ended = np.full((orders, trials), np.inf)
    ended[rows, last] = clock[:, None] + rest[rows, last].cumsum(axis=1)
    return Outcome(alive, ended, ended[rows[:, 0], last[:, -1]])


def _pause(curves: Curves, policy: Policy) -> Outcome:
    orders, trials, rungs = curves.scores.shape
    clock = np.zeros(orders)
    stage = np.zeros((orders, trials), dtype=int)  # rungs that a trial has seen; one more when it is complete
    ended = np.full((orders, trials), np.inf)
    for trial in range(trials):
        clock += curves.trained[:, trial, 0] + curves.evaluated[:, trial, 0]
        stage[:, trial] = 1
        acted = np.ones(orders, dtype=bool)
        while acted.any():  # promotes, from the last rung down, before the next trial starts
            acted[:] = False
            for rung in reversed(range(rungs)):
                value = np.where(stage > rung, curves.scores[:, :, rung], -np.inf)
                places = np.argsort(np.argsort(-value, axis=1, kind="stable"), axis=1)
                count = np.floor((stage > rung).sum(axis=1) * policy.keep + 1e-9)
                candidates = (stage == rung + 1) & (places < count[:, None])
                rows = np.flatnonzero(candidates.any(axis=1) & ~acted)
                picked = np.where(candidates, value, -np.inf)[rows].argmax(axis=1)
                last = rung + 1 == rungs
                cost = curves.whole if last else curves.trained[:, :, rung + 1] + curves.evaluated[:, :, rung + 1]
                spent = 0 if policy.rule == PAUSE_AGAIN else curves.trained[rows, picked, rung]
                clock[rows] += cost[rows, picked] - spent
                stage[rows, picked] += 1
                if last:
                    ended[rows, picked] = clock[rows]
                acted[rows] = True
    return Outcome(stage > rungs, ended, clock)
