"""The trainers: sentence-transformers' own four, with a hyperparameter search that can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.cross_encoder import CrossEncoderTrainer
from sentence_transformers.multi_vector_encoder import MultiVectorEncoderTrainer
from sentence_transformers.sparse_encoder import SparseEncoderTrainer

from st_hpo.construction import RebuildableTrainer, loss_instances
from st_hpo.errors import ConfigurationError
from st_hpo.release import release_memory
from st_hpo.searching import Searching

if TYPE_CHECKING:
    from transformers.trainer_utils import TrainOutput

__all__ = [
    "CrossEncoderHPOTrainer",
    "HPOTrainerMixin",
    "MultiVectorEncoderHPOTrainer",
    "SentenceTransformerHPOTrainer",
    "SparseEncoderHPOTrainer",
]


class HPOTrainerMixin(Searching):
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
