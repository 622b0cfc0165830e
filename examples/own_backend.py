"""A search backend of one's own, in one file: random search over a SearchSpace.

A package makes it known by an entry point in its pyproject.toml, after which ``backend="random"`` finds it::

    [project.entry-points."st_hpo.backends"]
    random = "own_backend:RandomBackend"

Without a package, ``backend=RandomBackend`` does. ``python examples/own_backend.py`` runs it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from st_hpo.backends.base import SearchBackend, caught_exceptions, check_known
from st_hpo.backends.target import SearchTarget
from st_hpo.errors import NotSupportedError, SearchSpaceError
from st_hpo.space import Categorical, Float, Int, SearchSpace


class RandomBackend(SearchBackend):
    """Random search. Its arguments are ``generator_seed`` and ``catch``."""

    name = "random"

    def __init__(self) -> None:
        self._generator: random.Random | None = None
        self._points: list[dict[str, Any]] = []

    @staticmethod
    def is_available() -> bool:
        """Whether what the backend needs is installed; ``pip_package`` names it where that is not its own name."""
        return True

    def open_space(self, hp_space: Any) -> SearchSpace:
        """Takes what the user gave as ``hp_space``. Called once, before any model is loaded."""
        if not isinstance(hp_space, SearchSpace):
            raise SearchSpaceError(f"The backend 'random' searches a SearchSpace, but got {hp_space!r}.")
        return hp_space

    def check(self, space: SearchSpace, n_trials: int, directions: list[str], kwargs: Mapping[str, Any]) -> None:
        """Refuses what cannot work, before any model is loaded."""
        check_known(self.name, kwargs, ["generator_seed", "catch"], "these")
        caught_exceptions(kwargs.get("catch", ()))

    def check_rungs(self, kwargs: Mapping[str, Any]) -> None:
        """Refuses ``rungs`` and ``trial_evaluator``: random search compares nothing during a training."""
        raise NotSupportedError("The backend 'random' prunes nothing. Leave out `rungs` and `trial_evaluator`.")

    def enqueue(self, points: list[dict[str, Any]], space: SearchSpace, kwargs: Mapping[str, Any]) -> list[str]:
        """Takes what the user wants the first trials to have; without this method it is refused."""
        self._points = list(points)
        return []

    def run(self, trainer: SearchTarget, n_trials: int, direction: str | list[str], **kwargs: Any) -> None:
        """Runs the trials. One objective or several make no difference to random search."""
        catch = caught_exceptions(kwargs.get("catch", ()))
        # A generator of its own: every trial seeds those of Python, NumPy and torch
        self._generator = random.Random(kwargs.get("generator_seed"))
        for number in range(n_trials):
            given = self._points[number] if number < len(self._points) else {}
            values = {name: self._draw(dimension) for name, dimension in trainer.hp_space.items()} | given
            trainer.run_trial(number, lambda values=values: values, native=dict(values), catch=catch)

    def _draw(self, dimension: Float | Int | Categorical) -> Any:
        assert self._generator is not None
        if isinstance(dimension, Categorical):
            return self._generator.choice(dimension.choices)
        if dimension.step is not None and not dimension.log:
            count = int((dimension.high - dimension.low) / dimension.step + 1e-9)
            return dimension.low + self._generator.randint(0, count) * dimension.step
        if not dimension.log:
            return self._generator.uniform(dimension.low, dimension.high)
        value = math.exp(self._generator.uniform(math.log(dimension.low), math.log(dimension.high)))
        value = min(max(value, dimension.low), dimension.high)
        return round(value) if isinstance(dimension, Int) else value

    @property
    def native(self) -> Any:
        """What users get as ``result.native``: here, the generator."""
        return self._generator


def main() -> None:
    """Searches three trials of a real training."""
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss

    from st_hpo import SentenceTransformerHPOTrainer

    from embedded import model_path, sts_benchmark

    dev = sts_benchmark("dev", limit=200)
    trainer = SentenceTransformerHPOTrainer(
        args=SentenceTransformerTrainingArguments(
            output_dir="models/own-backend", max_steps=20, save_strategy="no", report_to="none"
        ),
        train_dataset=sts_benchmark("train", limit=1000),
        evaluator=EmbeddingSimilarityEvaluator(dev["sentence1"], dev["sentence2"], dev["score"], name="sts-dev"),
        model_init=lambda: SentenceTransformer(model_path()),
        loss_init=CoSENTLoss,
    )
    space = SearchSpace({"learning_rate": Float(1e-6, 1e-3, log=True), "loss.scale": Float(5.0, 50.0)})
    best = trainer.hyperparameter_search(space, n_trials=3, backend=RandomBackend, generator_seed=1)
    print(best.objective, best.hyperparameters)


if __name__ == "__main__":
    main()
