"""Results of searches as the report must show them: large, small, failed, hostile."""

from __future__ import annotations

import math
import random
from typing import Any

from st_hpo.confirmation import Confirmation, ConfirmedTrial
from st_hpo.records import Baseline, TrialRecord
from st_hpo.results import SearchResult

OBJECTIVE = "eval_sts-dev_spearman_cosine"
STARTED = 1_790_000_000.0
# Whatever could end an element, run as a script, be taken for mark-up by plotly, or break a file
PAYLOADS = [
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    '"><svg onload=window.hacked=1>',
    "' onmouseover='window.hacked=1",
    '<a href="javascript:window.hacked=1">click</a>',
    "<b>bold</b><br><i>x</i>",
    "<!--<script>window.hacked=1",
    "{{ 7 * 7 }}{% raw %}",
    "%{customdata.hacked} $x^2$",
    "a\u2028b\u2029c\x00d\ud800e\u202ef\ufffe",
    "&lt;script&gt;&amp;",
    "javascript:window.hacked=1",
    "x" * 3000,
    "数据" * 40,
    "]]>`${window.hacked=1}`\\",
    "",
]


def search(
    n: int = 24,
    metrics: int = 3,
    evaluations: int = 6,
    directions: tuple[str, ...] = ("maximize",),
    around: bool = True,
    **fields: Any,
) -> SearchResult:
    """A search like one of a user: log-scaled rates, choices, a conditional hyperparameter, pruned and failed trials.

    Args:
        n: How many trials.
        metrics: How many metrics each evaluation gives.
        evaluations: How many evaluations each trial has.
        directions: One for each objective.
        around: Whether there are a baseline, a default run and a confirmation.
        **fields: What else the result has.
    """
    rng = random.Random(7)
    names = [OBJECTIVE, "eval_sts-dev_runtime_ms", "eval_loss"][: len(directions)]
    trials = []
    clock = STARTED
    for k in range(n):
        rate, batch = 10 ** rng.uniform(-5.5, -2.5), rng.choice([16, 32, 64])
        values: dict[str, Any] = {
            "learning_rate": rate,
            "per_device_train_batch_size": batch,
            "warmup_steps": rng.choice([0, 0.1, 0.2]),
            "loss.name": rng.choice(["CoSENTLoss", "AnglELoss", "CosineSimilarityLoss"]),
            "num_train_epochs": rng.randint(1, 4),
            "bf16": rng.random() < 0.5,
            "prompts": rng.choice([None, {"anchor": "query: "}, {"anchor": "q: ", "positive": "p: "}]),
        }
        if values["loss.name"] != "CosineSimilarityLoss":
            values["loss.scale"] = rng.uniform(5, 50)
        score = 0.86 - 0.03 * (math.log10(rate) + 3.8) ** 2 - 0.0004 * batch + rng.gauss(0, 0.006)
        steps = [
            {
                "step": 100 * (e + 1),
                "epoch": (e + 1) / 3,
                "metrics": {
                    names[0]: score - 0.2 * math.exp(-1.1 * e) + rng.gauss(0, 0.002),
                    "eval_loss": 1.5 * math.exp(-0.5 * e) + rng.random() / 10,
                    **{f"eval_other_{m}": score + m * rng.random() / 50 for m in range(metrics - 2)},
                    "eval_runtime": 1.5,
                },
            }
            for e in range(evaluations)
        ]
        took = rng.uniform(40, 140)
        kind = rng.random()
        record = TrialRecord(k, "completed", score, values, {}, took, {"train": took * 0.8, "evaluate": took * 0.15})
        if len(directions) > 1:
            record.objective = [score, 20 + batch * rng.uniform(0.5, 1.5), 1 - score + rng.random() / 9][
                : len(directions)
            ]
        if k and kind < 0.12:
            record.state, record.objective, record.error = "failed", None, "OutOfMemoryError: CUDA out of memory."
            if kind < 0.03:
                record.error = "ValueError: Input contains NaN.\n  a second line says more <of it>"
            steps = steps[:1]
        elif k and kind < 0.3:
            record.state, record.objective, record.error = "pruned", None, "pruned at step 200"
            steps = steps[:2]
        record.evaluations, record.started = steps, clock
        record.metrics = dict(steps[-1]["metrics"]) if steps else {}
        clock += took * 0.6
        trials.append(record)
    result = SearchResult(trials, names, list(directions), **{"st_hpo_version": "0.2", **fields})
    if around:
        base = [0.6974063496149674, 55.0, 0.9][: len(directions)]
        single = len(directions) == 1
        result.baseline = Baseline(base[0] if single else base, {names[0]: base[0]}, 3.2)
        better = [0.8123456789, 40.0, 0.5][: len(directions)]
        result.default = TrialRecord(0, "completed", better[0] if single else better, {}, {}, 80.0)
        best = sorted(result.completed, key=lambda trial: -trial.values[0])[:3]
        seeds = [1, 2, 3, 4]
        confirmed = [
            ConfirmedTrial(
                trial.number,
                trial.values,
                trial.hyperparameters,
                seeds,
                [[value - 0.01 + rng.gauss(0, 0.003) for value in trial.values] for _ in seeds],
                [{} for _ in seeds],
                [None for _ in seeds],
            )
            for trial in best
        ]
        result.confirmation = Confirmation(names, list(directions), True, confirmed)
        result.space = {
            "learning_rate": "Float(3e-06, 0.003, log=True)",
            "per_device_train_batch_size": "Categorical([16, 32, 64])",
        }
    return result


def all_failed() -> SearchResult:
    """A search without a single completed trial."""
    trials = [TrialRecord(k, "failed", error="RuntimeError: no", seconds=1.0, started=STARTED + k) for k in range(4)]
    return SearchResult(trials, [OBJECTIVE], ["maximize"], baseline=Baseline(0.5, {}, 1.0))


def hostile(payloads: list[str] = PAYLOADS) -> SearchResult:
    """A search in which every text is one that somebody made to do harm."""
    n = max(len(payloads), 8)
    text = [payloads[k % len(payloads)] for k in range(n)]
    names = [text[0], text[1] + "2"]
    trials = []
    for k in range(n):
        values = {name: text[(k + j) % n] if j % 2 else k + j / 7 for j, name in enumerate(dict.fromkeys(text))}
        metrics = {name: k / 3 for name in text}
        steps = [{"step": step, "epoch": 1.0, "metrics": metrics} for step in (1, 2)]
        state = "failed" if k % 5 == 4 else "pruned" if k % 7 == 6 else "completed"
        objective = [math.sin(k), math.cos(2 * k)] if state == "completed" else None
        error = None if state == "completed" else text[k]
        trials.append(
            TrialRecord(k, state, objective, values, metrics, 2.0, {text[k]: 1.0}, error, text[k], STARTED + k, steps)
        )
    confirmed = [ConfirmedTrial(0, [0.0, 1.0], {}, [1, 2], [[0.5, 0.5], None], [{}, {}], [None, text[0]])]
    return SearchResult(
        trials,
        names,
        ["maximize", "minimize"],
        backend=text[2],
        baseline=Baseline([0.1, 0.2], metrics, 1.0),
        default=TrialRecord(0, "failed", error=text[1]),
        confirmation=Confirmation(names, ["maximize", "minimize"], False, confirmed),
        space=dict.fromkeys(text, text[3]),
        st_hpo_version=text[4],
    )
