"""The tests that every backend must pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer

from st_hpo.backends import get_backend
from st_hpo.errors import ConfigurationError, NotSupportedError, TooManyFailuresError, UnknownHyperparameterError
from st_hpo.records import COMPLETED, FAILED
from st_hpo.results import SearchResult
from st_hpo.space import Float, SearchSpace
from st_hpo.testing.parts import (
    METRIC,
    SPACE,
    TYPES,
    FailingLoss,
    Probe,
    build_tiny_model,
    make_trainer,
    train_by_hand,
)
from st_hpo.trainer import SentenceTransformerHPOTrainer


class BackendContract:
    """The tests that a backend must pass. Subclass it, and set what differs.

    Attributes:
        backend: The backend's name, or its class.
        arguments: Arguments of its own that every search gets.
        several_objectives: Whether it searches several objectives.
        enqueues: Whether it begins with the points of ``enqueue``.
        native_space: A space in the backend's own format, with the names ``learning_rate`` and
            ``per_device_train_batch_size``, or a function that returns it (as a ``staticmethod``); None where it has
            no format of its own.
    """

    backend: Any = None
    arguments: dict[str, Any] = {}  # noqa: RUF012 (to be replaced, not changed)
    several_objectives = True
    enqueues = True
    native_space: Any = None

    @pytest.fixture(scope="class")
    @classmethod
    def tiny_model(cls, tmp_path_factory: pytest.TempPathFactory) -> str:
        """The folder of the tiny model."""
        return build_tiny_model(tmp_path_factory.mktemp("tiny"))

    @pytest.fixture(scope="class")
    @classmethod
    def searched(
        cls, tiny_model: str, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[tuple[SentenceTransformerHPOTrainer, Any, dict[str, Any]]]:
        """A trainer after a search of five trials, the best run, and its arguments before the search."""
        trainer = make_trainer(tiny_model, tmp_path_factory.mktemp("search"))
        before = trainer.args.to_dict()
        best = trainer.hyperparameter_search(
            SPACE, compute_objective=METRIC, n_trials=5, backend=cls.backend, **cls.arguments
        )
        yield trainer, best, before

    def search(self, trainer: SentenceTransformerHPOTrainer, **changes: Any) -> Any:
        """Runs a short search."""
        options = {"hp_space": SPACE, "compute_objective": METRIC, "n_trials": 3, "backend": self.backend}
        return trainer.hyperparameter_search(**{**options, **self.arguments, **changes})

    def test_five_trials_get_five_proposals_though_every_trial_seeds_everything(self, searched: Any) -> None:
        """``set_seed`` runs in every trial; a backend that draws from a global generator would repeat itself."""
        records = searched[1].run_summary.trials
        assert [record.state for record in records] == [COMPLETED] * 5
        assert [record.number for record in records] == [0, 1, 2, 3, 4]
        assert len({tuple(record.hyperparameters.items()) for record in records}) == 5

    def test_the_best_model_is_kept_and_the_users_own_arguments_are_run(self, tiny_model: str, tmp_path: Path) -> None:
        """The model on disk gives the best objective; ``default`` is the training without any hyperparameter."""
        best = self.search(make_trainer(tiny_model, tmp_path / "out"), save_best_model=True, default_trial=True)
        model = SentenceTransformer(str(tmp_path / "out" / "best_model"), device="cpu")
        assert Probe()(model)["probe_agreement"] == best.objective
        kept = [path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]
        assert "best_model" in kept and not [name for name in kept if name.startswith("run-")]
        default = best.run_summary.default
        assert default.state == COMPLETED and default.hyperparameters == {}
        assert default.metrics[METRIC] == train_by_hand(tiny_model, tmp_path / "hand", {})[METRIC]

    def test_values_come_back_in_their_declared_types_and_within_their_bounds(self, searched: Any) -> None:
        """Also those whose names have dots."""
        for record in searched[1].run_summary.trials:
            assert {name: type(value) for name, value in record.hyperparameters.items()} == TYPES
            assert 1e-4 <= record.hyperparameters["learning_rate"] <= 1e-2
            assert 2 <= record.hyperparameters["per_device_train_batch_size"] <= 6
            assert record.hyperparameters["lr_scheduler_type"] in ("linear", "constant")
            assert record.hyperparameters["weight_decay"] in (0.0, 0.01)
            assert 5.0 <= record.hyperparameters["loss.scale"] <= 50.0

    def test_every_objective_is_that_of_training_by_hand(self, searched: Any, tiny_model: str, tmp_path: Path) -> None:
        """To the last bit, with upstream's own trainer."""
        for record in searched[1].run_summary.trials:
            by_hand = train_by_hand(tiny_model, tmp_path, record.hyperparameters)
            assert record.objective == by_hand[METRIC]
            assert record.metrics[METRIC] == by_hand[METRIC]

    def test_the_best_run_is_the_best_trial(self, searched: Any) -> None:
        """As transformers' ``BestRun``, with the result as its summary."""
        _, best, _ = searched
        result = best.run_summary
        assert isinstance(result, SearchResult)
        assert best.objective == max(record.values[0] for record in result.trials)
        chosen = result.best_trials[0]
        assert best.hyperparameters == chosen.hyperparameters
        assert best.run_id == (chosen.backend_id or str(chosen.number))
        assert result.objective_names == [METRIC] and result.directions == ["maximize"]
        assert result.backend == get_backend(self.backend).name
        assert result.native is not None
        assert result.baseline is not None
        assert SearchResult.from_json(result.to_json()) == result

    def test_one_model_is_alive_in_a_process(self, searched: Any) -> None:
        """At the end of every trial, the trial's own."""
        for record in searched[1].run_summary.trials:
            assert record.metrics["eval_probe_models_alive"] == 1

    def test_the_trainer_is_whole_and_reproduces_the_best_run(self, searched: Any) -> None:
        """Its arguments are what they were; with the best run applied, it trains to the best objective."""
        trainer, best, before = searched
        assert trainer.args.to_dict() == before
        assert trainer.evaluate()[METRIC] == best.run_summary.baseline.objective
        trainer.apply_best_run(best)
        trainer.train()
        assert trainer.evaluate()[METRIC] == best.objective

    def test_a_caught_error_fails_its_trial_and_the_search_goes_on(self, tiny_model: str, tmp_path: Path) -> None:
        """To the full number of trials."""
        (tmp_path / "count").mkdir()
        loss = FailingLoss(tmp_path / "count", {1}, RuntimeError("no such luck"))
        best = self.search(make_trainer(tiny_model, tmp_path, loss_init=loss), n_trials=4, catch=(RuntimeError,))
        records = best.run_summary.trials
        assert sorted(record.state for record in records) == [COMPLETED] * 3 + [FAILED]
        failed = next(record for record in records if record.state == FAILED)
        assert failed.error == "RuntimeError: no such luck" and failed.objective is None

    def test_any_other_error_ends_the_search_and_is_raised_as_it_was(self, tiny_model: str, tmp_path: Path) -> None:
        """The trials until then are in ``last_search``, the failed one included, and the trainer is whole."""
        (tmp_path / "count").mkdir()
        trainer = make_trainer(
            tiny_model, tmp_path, loss_init=FailingLoss(tmp_path / "count", {1}, ZeroDivisionError("of one's own"))
        )
        with pytest.raises(ZeroDivisionError, match="of one's own"):
            self.search(trainer, n_trials=6)
        result = trainer.last_search
        assert result is not None and result.baseline is not None
        records = result.trials
        assert [record.error for record in records if record.state == FAILED].count(
            "ZeroDivisionError: of one's own"
        ) == 1
        assert len(records) < 6
        assert trainer.evaluate()[METRIC] == result.baseline.objective

    def test_an_objective_that_is_nan_fails_its_trial_and_the_search_goes_on(
        self, tiny_model: str, tmp_path: Path
    ) -> None:
        """Without ``catch``: no error has been raised."""
        (tmp_path / "count").mkdir()
        best = self.search(make_trainer(tiny_model, tmp_path, loss_init=FailingLoss(tmp_path / "count", {0}, None)))
        records = best.run_summary.trials
        assert sorted(record.state for record in records) == [COMPLETED] * 2 + [FAILED]
        assert all("NaN" in record.error for record in records if record.state == FAILED)
        assert not math.isnan(best.objective)

    def test_what_needs_too_much_memory_fails_alone_until_nothing_works(self, tiny_model: str, tmp_path: Path) -> None:
        """The search goes on after a failure, and ends after so many in a row, with the cause."""
        (tmp_path / "count").mkdir()
        loss = FailingLoss(tmp_path / "count", set(range(1, 20)), MemoryError("of this batch size"))
        trainer = make_trainer(tiny_model, tmp_path, loss_init=loss)
        with pytest.raises(TooManyFailuresError, match="Out of memory: MemoryError: of this batch size"):
            self.search(trainer, n_trials=12, max_consecutive_failures=3)
        assert trainer.last_search is not None
        states = [record.state for record in trainer.last_search.trials]
        assert states.count(COMPLETED) <= 1 and states.count(FAILED) >= 3 and len(states) < 12

    def test_its_own_format_is_searched_word_for_word(self, tiny_model: str, tmp_path: Path) -> None:
        """As its guide prints it."""
        if self.native_space is None:
            return
        best = self.search(make_trainer(tiny_model, tmp_path), hp_space=self.native_space)
        for record in best.run_summary.trials:
            assert type(record.hyperparameters["learning_rate"]) is float
            assert type(record.hyperparameters["per_device_train_batch_size"]) is int
            assert record.objective == train_by_hand(tiny_model, tmp_path, record.hyperparameters)[METRIC]

    def test_the_default_space_is_for_embedding_models_and_has_no_seed(self, tiny_model: str, tmp_path: Path) -> None:
        """Searching a seed finds luck."""
        best = self.search(make_trainer(tiny_model, tmp_path), hp_space=None, n_trials=2)
        for record in best.run_summary.trials:
            assert set(record.hyperparameters) == {
                "learning_rate",
                "per_device_train_batch_size",
                "num_train_epochs",
                "warmup_steps",
            }

    def test_a_name_that_nothing_uses_is_refused_before_any_model_is_built(
        self, tiny_model: str, tmp_path: Path
    ) -> None:
        """With what was meant."""
        trainer = make_trainer(tiny_model, tmp_path)
        trainer.model_init.path = "/there/is/no/model"
        with pytest.raises(UnknownHyperparameterError, match="learning_rate"):
            self.search(trainer, hp_space=SearchSpace({"learning_rat": Float(1e-5, 1e-4)}))

    def test_several_objectives_give_the_pareto_front(self, tiny_model: str, tmp_path: Path) -> None:
        """Every objective as by hand."""
        if not self.several_objectives:
            return
        runs = self.search(
            make_trainer(tiny_model, tmp_path),
            compute_objective=[METRIC, "eval_probe_size"],
            direction=["maximize", "minimize"],
        )
        result = runs[0].run_summary
        assert [run.objective for run in runs] == [record.objective for record in result.best_trials]
        for record in result.trials:
            by_hand = train_by_hand(tiny_model, tmp_path, record.hyperparameters)
            assert record.objective == [by_hand[METRIC], by_hand["eval_probe_size"]]

    def test_it_begins_with_given_points_or_refuses_them_by_name(self, tiny_model: str, tmp_path: Path) -> None:
        """In their order, value by value in the declared types; what a point leaves open is proposed."""
        first: dict[str, Any] = {"learning_rate": 0.0012345678901234567, "per_device_train_batch_size": 5}
        first.update({"weight_decay": 0.01, "lr_scheduler_type": "constant", "loss.scale": 7})
        second = {"loss.scale": 12.5, "lr_scheduler_type": "linear"}
        trainer = make_trainer(tiny_model, tmp_path)
        path, trainer.model_init.path = trainer.model_init.path, "/there/is/no/model"
        if not self.enqueues:
            with pytest.raises(NotSupportedError, match=f"'{get_backend(self.backend).name}'"):
                self.search(trainer, enqueue=[first, second])
            return
        misspelt, outside = {"learning_rat": 1e-3}, {"loss.scale": 51}
        for wrong, why in ((misspelt, "Did you mean 'learning_rate'"), (outside, "5.0 to 50.0")):
            with pytest.raises(ConfigurationError, match=why):
                self.search(trainer, enqueue=[first, wrong])
        trainer.model_init.path = path
        records = self.search(trainer, enqueue=[first, second]).run_summary.trials
        assert [record.state for record in records] == [COMPLETED] * 3
        assert records[0].hyperparameters == first
        assert second.items() <= records[1].hyperparameters.items()
        for record in records[:2]:
            assert {name: type(value) for name, value in record.hyperparameters.items()} == TYPES
            assert record.objective == train_by_hand(tiny_model, tmp_path, record.hyperparameters)[METRIC]
