"""The trainers: sentence-transformers' own four, with a hyperparameter search that can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.cross_encoder import CrossEncoderTrainer
from sentence_transformers.multi_vector_encoder import MultiVectorEncoderTrainer
from sentence_transformers.sparse_encoder import SparseEncoderTrainer

from st_hpo.after_search import AfterSearch
from st_hpo.arguments import ArgumentSnapshot
from st_hpo.best_model import best_model_keeper
from st_hpo.construction import RebuildableTrainer, loss_instances
from st_hpo.errors import ConfigurationError
from st_hpo.faults import FaultPolicy, StopSignal
from st_hpo.objective import ComputeObjective, resolve_objective
from st_hpo.preflight import check_search, check_timeout, ranks_of
from st_hpo.ranked import RankedSearch
from st_hpo.recipe import current_parts
from st_hpo.release import release_memory
from st_hpo.results import SearchResult
from st_hpo.routing import Router
from st_hpo.search import Search
from st_hpo.sharing import MAX_BYTES, SharedWork
from st_hpo.space import SearchSpace
from st_hpo.trackers import Tracking, search_group

if TYPE_CHECKING:
    from transformers.trainer_utils import BestRun, HPSearchBackend, TrainOutput

    from st_hpo.backends import SearchBackend

__all__ = [
    "CrossEncoderHPOTrainer",
    "HPOTrainerMixin",
    "MultiVectorEncoderHPOTrainer",
    "SentenceTransformerHPOTrainer",
    "SparseEncoderHPOTrainer",
]


class HPOTrainerMixin(AfterSearch):
    """Gives a sentence-transformers trainer ``loss_init`` and a hyperparameter search with isolated trials.

    Every argument of the upstream trainer works as before; those named here mean more.

    Args:
        loss: A loss, a dict of losses by dataset name, or what ``loss_init`` takes. A search needs the latter.
        data_collator: By default made anew from each new model.
        processing_class: By default that of each new model.
        model_init: Makes a new model: ``model_init()``, ``model_init(trial)``, or with keyword hyperparameters, which
            a search names ``model.<name>``. Called at construction, by ``train()``, and in every trial.
        callbacks: Every trial gets copies of its own, in the state they have when the search starts.
        optimizers: Not together with ``model_init``: an optimizer belongs to one model.
        loss_init: Makes a new loss for a model: ``loss_init(model)``, ``loss_init(model, trial)``, or with keyword
            hyperparameters, which a search names ``loss.<name>``; a loss class; or a dict of these by dataset name.
        kwargs: Whatever else the upstream trainer takes.

    Attributes:
        last_search (SearchResult | None): What the last search found, also if it ended with an error.

    Raises:
        FactoryError: ``model_init`` or ``loss_init`` cannot be called, or returned no model or loss.
        ConfigurationError: Both ``loss`` and ``loss_init``, or both ``optimizers`` and ``model_init``.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        loss: Any = None,
        evaluator: Any = None,
        data_collator: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., Any] | None = None,
        compute_metrics: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: Any = None,
        preprocess_logits_for_metrics: Any = None,
        *,
        loss_init: Callable[..., Any] | Mapping[str, Callable[..., Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        if processing_class is None:
            processing_class = kwargs.pop("tokenizer", None)  # its old name, which upstream still takes
        given = {
            "model": model,
            "args": args,
            "train_dataset": train_dataset,
            "eval_dataset": eval_dataset,
            "loss": loss,
            "evaluator": evaluator,
            "data_collator": data_collator,
            "processing_class": processing_class,
            "model_init": model_init,
            "compute_metrics": compute_metrics,
            "callbacks": callbacks,
            "optimizers": optimizers,
            "optimizer_cls_and_kwargs": optimizer_cls_and_kwargs,
            "preprocess_logits_for_metrics": preprocess_logits_for_metrics,
            **kwargs,
        }
        if self._of_trial is not None:  # a plain trainer, of the parts that a trial has made
            super(RebuildableTrainer, self).__init__(**{**given, **self._of_trial.parts, "model_init": None})
            return
        if loss is not None and loss_init is not None:
            raise ConfigurationError("`loss` and `loss_init` are two spellings of one argument: give one of them.")
        if found := loss_instances(loss_init, "loss_init"):
            where, kind = found[0]
            raise ConfigurationError(
                f"`{where}` is an instance of {kind}, not a function that makes one. Pass loss={kind}(model, ...) for "
                f"training alone, or loss_init=lambda model: {kind}(model, ...) for a search."
            )
        given["loss"] = loss if loss_init is None else loss_init
        self._set_up(given)

    # ---- Training and evaluation, as upstream ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
        **kwargs: Any,
    ) -> TrainOutput:
        """Trains, as upstream's ``train``; with ``model_init``, on a new model, a new loss and all made from them.

        Two calls in a row give the same model. After :meth:`apply_best_run` this reproduces the best objective.

        Args:
            resume_from_checkpoint: See :meth:`transformers.Trainer.train`.
            trial: See :meth:`transformers.Trainer.train`.
            ignore_keys_for_eval: See :meth:`transformers.Trainer.train`.
            kwargs: Whatever else the upstream method takes.
        """
        upstream = super().train  # type: ignore[misc]
        if self._of_trial is not None:
            return upstream(resume_from_checkpoint, trial, ignore_keys_for_eval, **kwargs)
        if self._given["model_init"] is not None:
            self._release()  # the model that is there makes room before the new one is built
            release_memory()
            self._construct()
        before = set(vars(self))
        self.model_init = None  # upstream would build a second model, and keep everything else of the first one
        try:
            return upstream(resume_from_checkpoint, trial, ignore_keys_for_eval, **kwargs)
        finally:
            self.model_init = self._given["model_init"]
            self._upstream_attributes |= set(vars(self)) - before

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluates, as upstream's ``evaluate``; a trial's evaluations are recorded."""
        upstream = super().evaluate  # type: ignore[misc]
        if self._of_trial is None:
            metrics = upstream(eval_dataset, ignore_keys, metric_key_prefix)
        else:
            metrics = self._of_trial.evaluations.evaluate(
                self,
                lambda: upstream(eval_dataset, ignore_keys, metric_key_prefix),
                recorded=eval_dataset is None and metric_key_prefix == "eval",
            )
        return dict(metrics)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Computes the loss, as upstream; under torchrun, a trial's ranks wait for each other before they go on."""
        upstream = super().compute_loss  # type: ignore[misc]
        if self._of_trial is None:
            return upstream(*args, **kwargs)
        return self._of_trial.fenced(lambda: upstream(*args, **kwargs))

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Sets up the model card, as upstream; not in a trial that saves nothing, which writes no card."""
        upstream = super().add_model_card_callback  # type: ignore[misc]
        trial = self._of_trial
        if trial is None:
            upstream(default_args_dict)
        elif trial.writes_card or self.args.save_strategy != "no" or self.args.push_to_hub:
            trial.card_memo.in_full(lambda: upstream(default_args_dict))
        else:
            trial.card_memo.run(self, lambda: upstream(default_args_dict))

    # ---- Search ----

    def hyperparameter_search(
        self,
        hp_space: SearchSpace | Callable[[Any], Mapping[str, Any]] | None = None,
        compute_objective: ComputeObjective = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        backend: str | HPSearchBackend | None = None,
        hp_name: Callable[[Any], str] | None = None,
        *,
        objective_from: str = "end",
        baseline: bool = True,
        default_trial: bool = False,
        save_best_model: bool = False,
        share_work: bool = True,
        verbose: bool = False,
        timeout: float | None = None,
        on_error: str = "raise",
        max_consecutive_failures: int | None = 5,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """Searches hyperparameters. Every objective is the number that training once, by hand, with its values gives.

        The signature is that of :meth:`transformers.Trainer.hyperparameter_search`, and its arguments mean the same.
        The arguments, the datasets and the callbacks of this trainer are not touched; its model is let go of, and
        built again when it is used next.

        Args:
            hp_space: A :class:`~st_hpo.SearchSpace`, for any backend; for Optuna a function of its trial that returns
                a dict; for the others a space in their own format, or a function that returns it for None. A plain
                name is a training argument; ``loss.<name>`` and ``model.<name>`` go to ``loss_init`` and
                ``model_init``. None searches the backend's default, :func:`~st_hpo.default_search_space`.
            compute_objective: A metric key, with or without ``eval_``; a list of keys or a callable that returns a
                list, for several objectives; a callable of the metrics; or None for the evaluator's primary metric
                (``eval_loss`` without an evaluator).
            n_trials: How many trials to run, at least 1.
            direction: ``"minimize"`` or ``"maximize"``, a list with one for each of several objectives. None where the
                metric says it: an evaluator's primary metric through ``greater_is_better``, a loss is minimized.
            backend: ``"optuna"``, ``"ray"``, ``"wandb"``, ``"sigopt"``, or the name that another package has
                registered; a :class:`~st_hpo.backends.SearchBackend`, or a class of one. None takes the first that is
                installed of Optuna, Ray Tune and W&B.
            hp_name: Names a trial's run, from the backend's trial (for Ray and W&B a dict of the values): its folder
                below ``output_dir`` if it saves checkpoints, and its name in trackers. By default ``run-<id>``, with
                what the backend calls the trial.
            objective_from: ``"end"``: from an evaluation at the end of the training. ``"best"``: from the best
                evaluation during the training or at its end.
            baseline: Whether to evaluate the untrained model before the first trial. It shows what the search adds,
                and finds a missing metric in seconds. Costs one evaluation.
            default_trial: Whether to train once with this trainer's own arguments before the first trial, to compare
                with. Beside the ``n_trials``; every process that takes part in a shared study does it.
            save_best_model: Whether to keep the best trial's model at ``output_dir/best_model`` while the search runs,
                and that of no other; for a single objective. Trials on machines that do not share ``output_dir`` keep
                the best of each.
            share_work: Whether the trials of a process share the work that comes out the same in each: a text is
                tokenised once, not once in every trial. No number depends on it.
            verbose: Whether to show the progress bars and log lines of every trial.
            timeout: Seconds after which the search ends, between two steps of the trial that runs then.
            on_error: ``"raise"``: what a trial raises ends the search, unless it is out of memory or disk space;
                ``"continue"``: it fails the trial alone.
            max_consecutive_failures: So many failed trials in a row end the search; None for no limit.
            kwargs: ``catch``, exceptions that fail a trial but not the search, and the backend's own arguments. For
                Optuna those of ``optuna.create_study`` (``study_name``, ``storage``, ``sampler``, ``pruner``,
                ``load_if_exists``) and of ``Study.optimize`` (``gc_after_trial``, ``callbacks``); for Ray those of
                ``ray.tune.run`` (``resources_per_trial``, ``scheduler``, ``search_alg``, ...); for W&B ``project``,
                ``entity``, ``name``, ``sweep_id``, ``metric``, ``method``, ``early_terminate``; for SigOpt ``name``,
                ``project``, ``conditionals``, ``seed``.

        Returns:
            transformers' ``BestRun``, with every value that was set as ``hyperparameters`` and a
            :class:`~st_hpo.SearchResult` as ``run_summary``; for several objectives a list of them, the Pareto front.
            After Ctrl-C, the best of the trials done so far.

        Raises:
            ConfigurationError: Something given is wrong; before any training.
            NotSupportedError: Something that the backend does not do, as several processes with Ray.
            TooManyFailuresError: So many trials have failed in a row that none may work.
            RankError: Another rank has failed, or is gone (torchrun).
            BackendNotInstalledError: The backend's package is missing; the message has the pip command.
            BackendUnavailableError: The backend's server does not answer, or refuses to serve.
            NoFinishedTrialError: No trial gave an objective.
            Exception: What a trial raised, unless ``catch`` names it. :attr:`last_search` has the trials until then.
        """
        parts = current_parts(self, self._given, self._built)
        if parts["train_dataset"] is None:
            raise ConfigurationError("A search trains models, but there is no `train_dataset`.")
        if parts["evaluator"] is None and parts["eval_dataset"] is None:
            raise ConfigurationError(
                "A search needs an objective, but there is neither an `evaluator` nor an `eval_dataset`. Pass one of "
                "them to the trainer."
            )
        faults = FaultPolicy(on_error, max_consecutive_failures)
        check_timeout(timeout)
        factories = self._factories(parts["loss"])
        objective = resolve_objective(compute_objective, direction, getattr(self, "evaluator", None))
        snapshot = ArgumentSnapshot(self.args)
        router = Router(snapshot, factories.model_init, factories.loss_init)
        ranks = ranks_of(self.args)

        def check() -> tuple[SearchBackend, Any]:
            args = self.args
            return check_search(backend, hp_space, n_trials, objective, objective_from, args, router, kwargs, ranks)

        found, space = check() if ranks is None else ranks.together("the checks", check)
        runner = self._trial_runner(snapshot, router, factories, objective, verbose)
        runner.best_evaluation = objective_from == "best"
        runner.pruned_exceptions = found.pruned_exceptions
        runner.tracking = Tracking(search_group(self.args, kwargs), snapshot.output_dir, verbose)
        if hp_name is not None:
            runner.run_name = lambda record, trial: hp_name(trial)
        if save_best_model:
            runner.best_model = best_model_keeper(self.args.output_dir, found.study_id(kwargs), objective)
            runner.recipe.writes_cards = True
        show_progress = not self.args.disable_tqdm
        stop = StopSignal(timeout)
        parameters = (found, runner, space, n_trials, baseline, show_progress, self._keep_result, faults, stop, kwargs)
        search = Search(*parameters) if ranks is None else RankedSearch(ranks, *parameters)
        search.default_trial = default_trial
        self._last_objective = objective
        runner.shared = SharedWork(MAX_BYTES if share_work else 0)
        self._release()
        with runner.shared:
            return search.run()

    def _keep_result(self, result: SearchResult) -> None:
        self.last_search = result


class SentenceTransformerHPOTrainer(HPOTrainerMixin, SentenceTransformerTrainer):  # type: ignore[misc]
    """:class:`~sentence_transformers.SentenceTransformerTrainer` with a search: see :class:`HPOTrainerMixin`."""


class CrossEncoderHPOTrainer(HPOTrainerMixin, CrossEncoderTrainer):  # type: ignore[misc]
    """:class:`~sentence_transformers.cross_encoder.CrossEncoderTrainer` with a search: see
    :class:`HPOTrainerMixin`."""


class SparseEncoderHPOTrainer(HPOTrainerMixin, SparseEncoderTrainer):  # type: ignore[misc]
    """:class:`~sentence_transformers.sparse_encoder.SparseEncoderTrainer` with a search: see
    :class:`HPOTrainerMixin`."""


class MultiVectorEncoderHPOTrainer(HPOTrainerMixin, MultiVectorEncoderTrainer):  # type: ignore[misc]
    """:class:`~sentence_transformers.multi_vector_encoder.MultiVectorEncoderTrainer` with a search: see
    :class:`HPOTrainerMixin`."""
