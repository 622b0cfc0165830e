"""``hyperparameter_search``: from the arguments of its caller to a search that is checked and ready to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from st_hpo.after_search import AfterSearch
from st_hpo.arguments import ArgumentSnapshot
from st_hpo.best_model import best_model_keeper
from st_hpo.errors import ConfigurationError
from st_hpo.evaluations import as_one_evaluator
from st_hpo.faults import FaultPolicy, StopSignal
from st_hpo.objective import ComputeObjective, resolve_objective
from st_hpo.plan import Plan
from st_hpo.preflight import check_flag, check_search, check_timeout, ranks_of
from st_hpo.ranked import RankedSearch
from st_hpo.recipe import current_parts
from st_hpo.results import SearchResult
from st_hpo.routing import Router
from st_hpo.rung_points import RungPoints, RungRequest
from st_hpo.search import Search
from st_hpo.sharing import shared_work
from st_hpo.space import SearchSpace
from st_hpo.stopping import Limits
from st_hpo.trackers import Tracking, search_group
from st_hpo.warm_start import enqueue_points

if TYPE_CHECKING:
    from transformers.trainer_utils import BestRun, HPSearchBackend

    from st_hpo.backends import SearchBackend


class Searching(AfterSearch):
    """The part of a trainer that searches."""

    def hyperparameter_search(
        self,
        hp_space: SearchSpace | Callable[[Any], Mapping[str, Any]] | None = None,
        compute_objective: ComputeObjective = None,
        n_trials: int | None = None,
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
        budget: float | None = None,
        patience: int | None = None,
        reuse_duplicates: bool = True,
        rungs: Sequence[float] | float | str | None = None,
        rung_scale: str = "fraction",
        trial_evaluator: Any = None,
        on_error: str = "raise",
        max_consecutive_failures: int | None = 5,
        enqueue: Iterable[Mapping[str, Any]] | str | None = None,
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
            n_trials: How many trials to run, at least 1; with ``resume`` how many there are to be in total. By default
                20; with a ``budget`` ten for each of its full trainings, which is more than it pays for.
            direction: ``"minimize"`` or ``"maximize"``, a list with one for each of several objectives. None where the
                metric says it: an evaluator's primary metric through ``greater_is_better``, a loss is minimized.
            backend: ``"optuna"``, ``"ray"``, ``"wandb"``, ``"sigopt"``, or the name that another package has
                registered; a :class:`~st_hpo.backends.SearchBackend`, or a class of one. None takes the first that is
                installed of Optuna, Ray Tune and W&B.
            hp_name: Names a trial's run, from the backend's trial (for Ray and W&B a dict of the values): its folder
                below ``output_dir`` if it saves checkpoints, and its name in trackers. By default ``run-<id>``, with
                what the backend calls the trial. Runs of a W&B sweep are ``trial-<number>`` in any case.
            objective_from: ``"end"``: from an evaluation at the end of the training. ``"best"``: from the best
                evaluation during the training or at its end.
            baseline: Whether to evaluate the untrained model before the first trial. It shows what the search adds,
                and finds a missing metric in seconds. Costs one evaluation.
            default_trial: Whether to train once with this trainer's own arguments before the first trial, to compare
                with. Beside the ``n_trials``; every process that takes part in a shared study does it.
            save_best_model: Whether to keep the best trial's model at ``output_dir/best_model`` while the search runs,
                and that of no other; for a single objective. Trials on machines that do not share ``output_dir`` keep
                the best of each.
            share_work: Whether the trials share the work that comes out the same in each: a text is tokenised once,
                not once in every trial, and processes on one machine take it from each other. No number depends on it.
            verbose: Whether to show the progress bars and log lines of every trial.
            timeout: Seconds after which the search ends, between two steps of the trial that runs then. They begin
                after the baseline.
            budget: After so many full trainings no new trial is begun. A completed trial is one, a pruned or failed
                one is the part of its own training that it has done. In a shared or continued study, its trials of all
                processes count.
            patience: After so many trials in a row that were completed or pruned without a better objective, no new
                trial is begun; for a single objective. In a shared or continued study, its trials of all processes
                count.
            reuse_duplicates: Whether a proposal that equals a completed trial of this search is not trained again, but
                takes over its value. Not where ``model_init`` or ``loss_init`` get the trial, nor with Ray.
            rungs: Where a pruner compares trials, without any evaluation during the training being set up: fractions
                of each trial's own training, from 0.01 to 0.99. None for the pruner's default. ``"evaluations"``:
                whenever the training evaluates, at equal optimizer steps, as transformers does.
            rung_scale: ``"fraction"``, or ``"examples"`` for rungs after equal numbers of training examples.
            trial_evaluator: A cheaper evaluator, or several, for the rungs; see
                :func:`~st_hpo.subsample_evaluator`. The objective stays that of the evaluation at the end. Trials are
                compared by the objective's metric where it gives that, else by its own primary metric.
            on_error: ``"raise"``: what a trial raises ends the search, unless it is out of memory or disk space;
                ``"continue"``: it fails the trial alone.
            max_consecutive_failures: So many failed trials in a row end the search; None for no limit.
            enqueue: The hyperparameters of the first trials, in this order, before the backend proposes: a list of
                dicts of some or all of them, or ``"known"`` for :func:`~st_hpo.known_good_points` of this trainer's
                loss. They count in ``n_trials``. In a study that several processes share, or that is continued, each
                of them is tried once.
            kwargs: ``catch``, exceptions that fail a trial but not the search, and the backend's own arguments. For
                Optuna and Ray ``pruner``: ``"asha"``, ``"hyperband"`` or ``"median"``, or for Optuna any of its own,
                whose steps are per cent of a trial's training (or examples); without one, nothing is pruned. For
                Optuna those of ``optuna.create_study`` (``study_name``, ``storage``, ``sampler``, ``load_if_exists``)
                and of ``Study.optimize`` (``gc_after_trial``, ``callbacks``), and these: ``n_jobs``, how many trials
                run at a time, each in a process of its own, with ``threads_per_worker`` and ``workers_per_gpu``;
                ``resume``, True to go on to ``n_trials`` in total, with ``heartbeat_interval``, the seconds between
                two signs of life of a trial; ``storage_patience``, the seconds for which a storage that is away is
                waited for; ``terminator``, one of Optuna's or True, which ends the search between two trials. For Ray
                those of ``ray.tune.run`` (``resources_per_trial``, ``scheduler``, ``search_alg``, ...); for W&B
                ``project``, ``entity``, ``name``, ``sweep_id``, ``metric``, ``method``, ``early_terminate``; for
                SigOpt ``name``, ``project``, ``conditionals``, ``seed``.

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
            KeyboardInterrupt: Ctrl-C before a trial was completed.
            SystemExit: With the status 143 after SIGTERM, once the search has ended in good order.
            Exception: What a trial raised, unless ``catch`` names it, ``on_error`` is ``"continue"``, or it says that
                memory or a disk is used up. :attr:`last_search` has the trials until then.
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
        asked = RungRequest.of(rungs, rung_scale, as_one_evaluator(trial_evaluator))
        limits = Limits(patience, budget)
        n_trials = limits.trials(n_trials)
        factories = self._factories(parts["loss"])
        objective = resolve_objective(compute_objective, direction, getattr(self, "evaluator", None))
        limits.check(objective)
        snapshot = ArgumentSnapshot(self.args)
        router = Router(snapshot, factories.model_init, factories.loss_init)
        ranks = ranks_of(self.args)

        def check() -> tuple[SearchBackend, Any, RungPoints | None]:
            return check_search(
                backend, hp_space, n_trials, objective, objective_from, self.args, router, kwargs, asked, ranks
            )

        found, space, points = check() if ranks is None else ranks.together("the checks", check)
        enqueue_points(enqueue, found, space, n_trials, router, factories.loss_init, type(self), kwargs)
        runner = self._trial_runner(snapshot, router, factories, objective, verbose)
        runner.best_evaluation = objective_from == "best"
        runner.rungs, runner.rung_evaluator = points, asked.evaluator
        runner.reuses = check_flag("reuse_duplicates", reuse_duplicates)
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
        search.default_trial, search.limits = default_trial, limits
        search.plan = Plan(n_trials, found.name, limits, timeout, found.concurrency(kwargs), points, asked.evaluator)
        search.plan.in_total = found.n_trials_is_total(kwargs)
        self._last_objective, self._last_from_best = objective, objective_from == "best"
        runner.shared = shared_work(share_work, ranks, alone=found.concurrency(kwargs) == 1)
        self._release()
        with runner.shared:
            return search.run()

    def _keep_result(self, result: SearchResult) -> None:
        self.last_search = result
