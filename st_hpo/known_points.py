"""Hyperparameters that are known to be good, for each kind of trainer and loss, with the page that says so.

Pure Python: no torch, no transformers. A value that the source does not give is left out, with one exception: a script
that leaves ``learning_rate`` out trains with 5e-5, the default of transformers' ``TrainingArguments``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from st_hpo.errors import ConfigurationError
from st_hpo.points import fitting_point
from st_hpo.space import SearchSpace

FAMILIES = ("sentence_transformer", "sparse_encoder", "cross_encoder", "multi_vector_encoder")
# What a trainer without a loss trains with (`get_default_loss` of each in sentence-transformers 6.2.0)
DEFAULT_LOSSES = {
    "sentence_transformer": ("CoSENTLoss",),
    "sparse_encoder": ("SpladeLoss", "SparseMultipleNegativesRankingLoss"),
    "cross_encoder": ("BinaryCrossEntropyLoss", "CrossEntropyLoss"),
    "multi_vector_encoder": ("MultiVectorMultipleNegativesRankingLoss",),
}
_REPOSITORY = "https://github.com/huggingface/sentence-transformers/blob/main/"
_PYLATE = "https://github.com/lightonai/pylate/blob/main/"
_HERE = "docs/warm-start.md"


@dataclass(frozen=True, eq=False)
class KnownPoint(Mapping[str, Any]):
    """Hyperparameters that a published recipe trains with; reads like a dict of them.

    Attributes:
        hyperparameters: The values by name, as a search space names them.
        family: The kind of trainer, a package of sentence-transformers: ``"cross_encoder"``.
        losses: The names of the loss classes it is for.
        model: ``"transformer"``, ``"static"`` (:class:`StaticEmbedding`), or ``"tiny"`` (a few million weights).
        source: The address of the page or script that says so.
    """

    hyperparameters: Mapping[str, Any]
    family: str
    losses: tuple[str, ...]
    model: str
    source: str

    def __getitem__(self, name: str) -> Any:
        return self.hyperparameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.hyperparameters)

    def __len__(self) -> int:
        return len(self.hyperparameters)


def _point(
    family: str,
    losses: str,
    source: str,
    rate: float,
    batch: int | None,
    epochs: int,
    warmup: float | None,
    model: str = "transformer",
    **of_loss: float,
) -> KnownPoint:
    values: dict[str, Any] = {"learning_rate": rate, "per_device_train_batch_size": batch, "num_train_epochs": epochs}
    values["warmup_steps"] = warmup
    values.update({f"loss.{name}": value for name, value in of_loss.items()})
    given = {name: value for name, value in values.items() if value is not None}
    return KnownPoint(given, family, tuple(losses.split()), model, source)


_DENSE, _SPARSE, _CROSS, _MULTI = FAMILIES
_DENSE_EXAMPLES = f"{_REPOSITORY}examples/sentence_transformer/training/"
_SPARSE_EXAMPLES = f"{_REPOSITORY}examples/sparse_encoder/training/"
_CROSS_EXAMPLES = f"{_REPOSITORY}examples/cross_encoder/training/"
_MULTI_EXAMPLES = f"{_REPOSITORY}examples/multi_vector_encoder/training/"
_DENSE_MNRL = "MultipleNegativesRankingLoss CachedMultipleNegativesRankingLoss"
_SPLADE = "SpladeLoss SparseMultipleNegativesRankingLoss"

KNOWN_POINTS: tuple[KnownPoint, ...] = (
    _point(_DENSE, _DENSE_MNRL, f"{_REPOSITORY}docs/sentence_transformer/training_overview.md", 2e-5, 16, 1, 0.1),
    _point(_DENSE, "MultipleNegativesRankingLoss", f"{_DENSE_EXAMPLES}nli/training_nli_v2.py", 5e-5, 128, 1, 0.1),
    _point(
        _DENSE,
        "CachedMultipleNegativesRankingLoss",
        f"{_DENSE_EXAMPLES}prompts/training_nq_prompts.py",
        2e-5,
        256,
        1,
        0.1,
    ),
    _point(_DENSE, _DENSE_MNRL, "https://huggingface.co/blog/static-embeddings", 2e-1, 2048, 1, 0.1, "static"),
    _point(_DENSE, "CoSENTLoss", f"{_DENSE_EXAMPLES}matryoshka/matryoshka_sts.py", 5e-5, 16, 4, 0.1),
    _point(_DENSE, "CosineSimilarityLoss", f"{_DENSE_EXAMPLES}sts/training_stsbenchmark.py", 5e-5, 16, 4, 0.1),
    _point(_DENSE, "CoSENTLoss", _HERE, 5e-4, 64, 1, None, "tiny"),
    _point(_DENSE, "MultipleNegativesRankingLoss", _HERE, 3e-4, 64, 1, None, "tiny"),
    _point(_CROSS, "BinaryCrossEntropyLoss", f"{_CROSS_EXAMPLES}rerankers/training_gooaq_bce.py", 2e-5, 64, 1, 0.1),
    _point(
        _CROSS,
        "BinaryCrossEntropyLoss",
        f"{_CROSS_EXAMPLES}ms_marco/training_ms_marco_bce_preprocessed.py",
        2e-5,
        16,
        1,
        0.1,
    ),
    _point(_CROSS, "BinaryCrossEntropyLoss", f"{_CROSS_EXAMPLES}sts/training_stsbenchmark.py", 5e-5, 64, 4, 0.1),
    _point(_CROSS, "CrossEntropyLoss", f"{_CROSS_EXAMPLES}nli/training_nli.py", 5e-5, 64, 1, 0.1),
    _point(_CROSS, "LambdaLoss", f"{_CROSS_EXAMPLES}ms_marco/training_ms_marco_lambda.py", 2e-5, 16, 1, 0.1),
    _point(
        _CROSS,
        "CachedMultipleNegativesRankingLoss",
        f"{_CROSS_EXAMPLES}ms_marco/training_ms_marco_cmnrl.py",
        2e-5,
        32,
        1,
        0.1,
        scale=10.0,
    ),
    _point(
        _SPARSE,
        _SPLADE,
        f"{_SPARSE_EXAMPLES}retrievers/train_splade_gooaq.py",
        2e-5,
        32,
        1,
        None,
        query_regularizer_weight=5e-5,
        document_regularizer_weight=3e-5,
    ),
    _point(
        _SPARSE,
        _SPLADE,
        f"{_SPARSE_EXAMPLES}ms_marco/train_splade_msmarco_mnrl.py",
        2e-5,
        16,
        1,
        0.1,
        query_regularizer_weight=5e-5,
        document_regularizer_weight=1e-3,
    ),
    _point(
        _SPARSE,
        "SpladeLoss SparseMarginMSELoss",
        f"{_SPARSE_EXAMPLES}distillation/train_splade_msmarco_margin_mse.py",
        2e-5,
        16,
        1,
        0.1,
        query_regularizer_weight=0.1,
        document_regularizer_weight=0.08,
    ),
    _point(
        _SPARSE,
        "SpladeLoss SparseCosineSimilarityLoss",
        f"{_SPARSE_EXAMPLES}sts/train_splade_stsbenchmark.py",
        5e-5,
        16,
        1,
        None,
        document_regularizer_weight=3e-3,
    ),
    _point(_SPARSE, "CSRLoss", f"{_SPARSE_EXAMPLES}retrievers/train_csr_nq.py", 4e-5, 64, 1, None, gamma=0.1),
    _point(
        _MULTI,
        "MultiVectorMultipleNegativesRankingLoss",
        f"{_MULTI_EXAMPLES}msmarco/training_contrastive.py",
        3e-5,
        32,
        1,
        0.05,
    ),
    _point(
        _MULTI,
        "CachedMultiVectorMultipleNegativesRankingLoss",
        f"{_MULTI_EXAMPLES}msmarco/training_cached_contrastive.py",
        3e-5,
        256,
        1,
        0.05,
    ),
    _point(
        _MULTI,
        "MultiVectorMultipleNegativesRankingLoss",
        f"{_PYLATE}examples/train/contrastive.py",
        3e-6,
        32,
        1,
        None,
    ),
    # Without its batch size of 4, which goes with the 32 documents of each of its queries
    _point(_MULTI, "MultiVectorDistillKLDivLoss", f"{_MULTI_EXAMPLES}msmarco/training_kd.py", 3e-5, None, 1, 0.05),
    _point(
        _MULTI,
        "MultiVectorDistillKLDivLoss",
        f"{_PYLATE}examples/train/knowledge_distillation.py",
        1e-5,
        16,
        1,
        None,
    ),
)
_INNER = {name for point in KNOWN_POINTS for name in point.losses if "SpladeLoss" in point.losses} - {"SpladeLoss"}


def known_good_points(
    loss: Any = None, *, family: str = "sentence_transformer", space: SearchSpace | None = None
) -> list[KnownPoint]:
    """Returns hyperparameters that published recipes train with, to begin a search with: ``enqueue=``.

    Args:
        loss: The loss: its class, its name, or several names where one wraps another, as ``SpladeLoss`` does. None for
            the one that the trainer takes by default.
        family: The kind of trainer: ``"sentence_transformer"``, ``"sparse_encoder"``, ``"cross_encoder"`` or
            ``"multi_vector_encoder"``.
        space: What of them a search of this space can begin with. A point whose learning rate the space does not allow
            is left out: that is a recipe for another kind of model. So is any other single value, which the search
            then proposes. Nothing is clipped, since the clipped value would be nobody's recipe. None for all of it.

    Returns:
        The points, the most general first, no two the same; empty where nothing is known for the loss.

    Raises:
        ConfigurationError: There is no such family.

    Example::

        trainer.hyperparameter_search(space, enqueue=known_good_points("MultipleNegativesRankingLoss", space=space))
    """
    if family not in FAMILIES:
        raise ConfigurationError(f"`family` must be one of {list(FAMILIES)}, but got {family!r}.")
    names = _loss_names(loss, family)
    if "CSRLoss" in names:
        names = {"CSRLoss"}
    elif inner := names & _INNER:
        names = inner  # of SpladeLoss around it, only what goes with this one
    found = [point for point in KNOWN_POINTS if point.family == family and names & set(point.losses)]
    return found if space is None else usable_points(found, space)


def usable_points(points: list[KnownPoint], space: SearchSpace) -> list[KnownPoint]:
    """Returns what of the points a search of the space can begin with; see :func:`known_good_points`.

    Args:
        points: The points.
        space: The search space.
    """
    found: list[KnownPoint] = []
    for point in points:
        values = dict(point)
        if "warmup_ratio" in space and "warmup_steps" not in space and "warmup_steps" in values:
            values["warmup_ratio"] = values["warmup_steps"]  # its name in transformers 4
        fitting = fitting_point(space, values)
        has_rate = "learning_rate" in fitting if "learning_rate" in space else point.model == "transformer"
        if fitting and has_rate and fitting not in [dict(other) for other in found]:
            found.append(KnownPoint(fitting, point.family, point.losses, point.model, point.source))
    return found


def _loss_names(loss: Any, family: str) -> set[str]:
    if loss is None:
        return set(DEFAULT_LOSSES[family])
    given = [loss] if isinstance(loss, str | type) else loss
    return {item.__name__ if isinstance(item, type) else str(item) for item in given}
