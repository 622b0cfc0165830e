"""From the best run of a search to a model: apply it, train it again, confirm it over several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from st_hpo.arguments import ArgumentSnapshot
from st_hpo.confirmation import Confirmation
from st_hpo.confirming import Confirming, HeldOutObjective, check_confirmation
from st_hpo.construction import RebuildableTrainer
from st_hpo.errors import ConfigurationError
from st_hpo.evaluations import as_one_evaluator, held_out_metrics
from st_hpo.factories import Factories
from st_hpo.folders import Saving
from st_hpo.objective import ComputeObjective, Objective, resolve_objective
from st_hpo.preflight import ranks_of
from st_hpo.recipe import ModelCardMemo, TrainerRecipe, current_parts
from st_hpo.records import TrialRecord
from st_hpo.results import SearchResult
from st_hpo.routing import Routed, Router
from st_hpo.trackers import Tracking, search_group
from st_hpo.trial import TrialRunner

if TYPE_CHECKING:
    from transformers.trainer_utils import BestRun


class Retrained(NamedTuple):
    """What :meth:`AfterSearch.retrain_best` returns.

    Attributes:
        model: The trained model.
        metrics: Its evaluation, with the metrics of a ``test_evaluator`` as ``test_<metric>``.
    """

    model: Any
    metrics: dict[str, float]


class AfterSearch(RebuildableTrainer):
    """The part of a trainer that goes on from a search."""

    _last_objective: Objective | None = None
    _last_from_best: bool = False

    def apply_best_run(self, best_run: BestRun | TrialRecord) -> None:
        """Takes over the hyperparameters of a run: ``train()`` then reproduces its objective.

        The training arguments become new ones with the run's values; the values of ``loss.<name>``, ``model.<name>``
        and of what ``model_init`` and ``loss_init`` read from their trial reach them from now on, outside of trials
        and in the trials of a later search that does not search them.

        Args:
            best_run: What :meth:`hyperparameter_search` returned, or any record of its result.

        Raises:
            ConfigurationError: It is a list of runs: choose one of the Pareto front.
        """
        if isinstance(best_run, list):
            raise ConfigurationError(
                f"`apply_best_run` takes one run, but got a list of {len(best_run)}: choose one of the Pareto front."
            )
        hyperparameters = getattr(best_run, "hyperparameters", None)
        if not isinstance(hyperparameters, Mapping):
            raise ConfigurationError(
                f"`apply_best_run` takes what `hyperparameter_search` returned, or a trial's record, but got "
                f"{best_run!r}."
            )
        snapshot = ArgumentSnapshot(self.args)
        loss = current_parts(self, self._given, self._built)["loss"]
        factories = self._factories(loss)
        routed = Router(snapshot, factories.model_init, factories.loss_init).route(hyperparameters, strict=False)
        arguments = snapshot.build(routed.arguments)
        self._release()
        self.args = arguments
        self._applied = Routed(
            {**self._applied.arguments, **routed.arguments},
            {**self._applied.model, **routed.model},
            {**self._applied.loss, **routed.loss},
            {**self._applied.free, **routed.free},
        )

    def retrain_best(
        self,
        best_run: BestRun | TrialRecord | None = None,
        train_dataset: Any = None,
        test_evaluator: Any = None,
    ) -> Retrained:
        """Trains a model with the hyperparameters of a run, as :meth:`apply_best_run` and ``train()``.

        On the data of the search, this gives the run's objective again. The trainer has the model afterwards, and
        keeps the dataset.

        Args:
            best_run: What :meth:`hyperparameter_search` returned, or any record; None for the best run of the last
                search.
            train_dataset: What to train on instead, for example all data where the search had a part of them.
            test_evaluator: An evaluator for the model at the end, on data that the search has not seen.

        Returns:
            The trained model, and the metrics of its evaluation.

        Raises:
            ConfigurationError: There is no run, or several (a Pareto front).
        """
        if best_run is None:
            best_run = self._only_best()
        self.apply_best_run(best_run)
        if train_dataset is not None:
            self.train_dataset = train_dataset
            self._given["train_dataset"] = train_dataset
            self._built.pop("train_dataset", None)
        trainer: Any = self
        trainer.train()
        can_evaluate = trainer.evaluator is not None or trainer.eval_dataset is not None
        metrics = dict(trainer.evaluate()) if can_evaluate else {}
        if test_evaluator is not None:
            metrics.update(held_out_metrics(as_one_evaluator(test_evaluator), trainer))
        return Retrained(trainer.model, metrics)

    def confirm(
        self,
        k: int = 3,
        seeds: Sequence[int] | None = None,
        *,
        result: SearchResult | None = None,
        test_evaluator: Any = None,
        compute_objective: ComputeObjective = None,
        direction: str | list[str] | None = None,
        resume: bool = False,
        verbose: bool = False,
    ) -> Confirmation:
        """Trains the best trials of a search again with several seeds, and ranks them by their means.

        A search takes the highest of many numbers that hold some luck, so the best objective is too good on average.
        By default the seeds are others than that of the search, so that its luck is left out. Every training is one
        trial as the search runs it, with another ``seed``.

        Args:
            k: How many of the best trials; for several objectives those of the Pareto front first.
            seeds: The seeds, the same for all; by default the three that follow the training arguments' own.
            result: The result of the search, by default the last one. Its ``confirmation`` is set.
            test_evaluator: An evaluator on data that the search has not seen, or a list of them. It gives the values
                then: those of its primary metric, under ``test_<metric>``.
            compute_objective: What to compare instead, as in :meth:`hyperparameter_search`; also of the metrics
                ``test_<metric>``.
            direction: Its direction, as there.
            resume: Whether to keep each training's outcome in ``output_dir/confirmation.json``, and not to run again
                what is there already.
            verbose: Whether to show the progress bars and log lines of every training.

        Returns:
            The trials, the best mean first, with means, standard deviations and intervals. What a training raises
            fails its seed alone.

        Raises:
            ConfigurationError: There is no finished trial, or an argument makes no sense.
            KeyboardInterrupt: Ctrl-C; ``resume=True`` goes on from there.
        """
        result = result if result is not None else getattr(self, "last_search", None)
        trials = check_confirmation(result, k, seeds)
        assert result is not None
        ranks = ranks_of(self.args)
        if seeds is None:
            seeds = [self.args.seed + offset for offset in (1, 2, 3)]
        factories = self._factories(current_parts(self, self._given, self._built)["loss"])
        snapshot = ArgumentSnapshot(self.args)
        router = Router(snapshot, factories.model_init, factories.loss_init)
        held_out = None if test_evaluator is None else as_one_evaluator(test_evaluator)
        objective = self._confirmed_objective(result, compute_objective, direction, held_out)
        runner = self._trial_runner(snapshot, router, factories, objective, verbose)
        runner.held_out, runner.ranks = held_out, ranks
        runner.best_evaluation = objective is self._last_objective and self._last_from_best
        runner.saving = Saving(snapshot.output_dir, keeps=False, limit=None)
        runner.tracking = Tracking(search_group(self.args, {}), snapshot.output_dir, verbose)
        self._release()
        confirming = Confirming(runner, trials, list(seeds), held_out is not None, resume)
        try:
            result.confirmation = confirming.run()
        finally:
            if ranks is not None:
                ranks.close()
        return result.confirmation

    def _confirmed_objective(
        self, result: SearchResult, compute_objective: ComputeObjective, direction: Any, held_out: Any
    ) -> Objective:
        if compute_objective is not None:
            return resolve_objective(compute_objective, direction, held_out or getattr(self, "evaluator", None))
        if held_out is not None:
            return HeldOutObjective(held_out, direction)
        last = self._last_objective
        if last is not None and last.names == result.objective_names:
            return last
        return resolve_objective(list(result.objective_names), list(result.directions), None)

    def _only_best(self) -> TrialRecord:
        result: SearchResult | None = getattr(self, "last_search", None)
        best = [] if result is None else result.best_trials
        if len(best) != 1:
            raise ConfigurationError(
                "`retrain_best` needs a run: there is no finished trial of a last search."
                if not best
                else f"`retrain_best` needs one run, but the Pareto front has {len(best)}: choose one of them."
            )
        return best[0]

    def _trial_runner(
        self, snapshot: ArgumentSnapshot, router: Router, factories: Factories, objective: Objective, verbose: bool
    ) -> TrialRunner:
        """Returns what runs trials that are like this trainer's training."""
        trainer: Any = self
        parts = current_parts(self, self._given, self._built)
        parts.pop("loss")
        parts["evaluator"] = trainer.evaluator  # upstream has put a list of evaluators into one
        memo = ModelCardMemo(quiet=not verbose)
        recipe = TrainerRecipe(type(self), trainer._call, parts, self._current_plan(), self, memo)
        recipe.check_callbacks()
        return TrialRunner(
            recipe,
            snapshot,
            router,
            factories,
            objective,
            applied=Routed(model=self._applied.model, loss=self._applied.loss, free=self._applied.free),
            verbose=verbose,
            saving=Saving.of(self.args, snapshot.kwargs),
        )
