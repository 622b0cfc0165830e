"""The hyperparameters of a trial as YAML, as Python and as JSON, without losing a digit of them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from st_hpo.cli.group import UsageProblem
from st_hpo.errors import ConfigurationError
from st_hpo.jsonable import to_jsonable
from st_hpo.records import TrialRecord
from st_hpo.results import SearchResult

# The trainers, the classes of their arguments, and where these are
ARGUMENTS = {
    "embedding": ("sentence_transformers", "SentenceTransformerTrainingArguments"),
    "cross-encoder": ("sentence_transformers.cross_encoder", "CrossEncoderTrainingArguments"),
    "sparse-encoder": ("sentence_transformers.sparse_encoder", "SparseEncoderTrainingArguments"),
    "multi-vector-encoder": ("sentence_transformers.multi_vector_encoder", "MultiVectorEncoderTrainingArguments"),
}
_INDENT = "    "


def chosen_trials(result: SearchResult, number: int | None) -> list[TrialRecord]:
    """Returns the trial of a number, otherwise the best one or the Pareto front.

    Raises:
        ConfigurationError: There is no such trial, or none was completed.
    """
    if number is not None:
        found = [trial for trial in result.trials if trial.number == number]
        if not found:
            numbers = [trial.number for trial in result.trials]
            there = f"its trials are {min(numbers)} to {max(numbers)}" if numbers else "it has no trials"
            raise ConfigurationError(f"The search has no trial {number}: {there}.")
        return found
    if not result.best_trials:
        raise ConfigurationError(f"No trial was completed, so none is the best: {str(result).splitlines()[0]}.")
    return result.best_trials


def as_json(trials: list[TrialRecord], result: SearchResult) -> str:
    """Returns JSON: an object for one trial, a list of them for several."""
    entries = [_entry(trial, result) for trial in trials]
    return json.dumps(to_jsonable(entries if len(entries) > 1 else entries[0]), indent=2, allow_nan=False)


def as_yaml(trials: list[TrialRecord], result: SearchResult) -> str:
    """Returns YAML: the hyperparameters of one trial by their names; a list with the objectives for several."""
    if len(trials) == 1:
        return f"# {_title(trials[0], result)}\n{_yaml(trials[0].hyperparameters)}"
    entries = [_entry(trial, result) for trial in trials]
    return f"# Pareto front: {len(trials)} trials; choose one with --trial\n{_yaml(entries)}"


def as_python(trials: list[TrialRecord], result: SearchResult, trainer: str) -> str:
    """Returns Python code that builds the training arguments, and holds what else was searched.

    Args:
        trials: One trial.
        result: The search.
        trainer: A key of :data:`ARGUMENTS`.
    """
    if len(trials) > 1:
        numbers = ", ".join(str(trial.number) for trial in trials)
        raise UsageProblem(f"The Pareto front has {len(trials)} trials: choose one with --trial ({numbers}).")
    module, name = ARGUMENTS[trainer]
    arguments, parts = _parts(trials[0].hyperparameters, _argument_names(module, name))
    lines = [f"# {_title(trials[0], result)}", f"from {module} import {name}", ""]
    lines += [f"args = {name}(", *(f"{_INDENT}{key}={literal(value)}," for key, value in arguments.items())]
    lines += [f"{_INDENT}# and your own arguments, which were the same in all trials", ")"]
    for variable, (comment, values) in parts.items():
        if values:
            lines += ["", f"# {comment}", f"{variable} = {literal(values, spread=True)}"]
    return "\n".join(lines)


def _parts(values: Mapping[str, Any], known: set[str]) -> tuple[dict[str, Any], dict[str, tuple[str, dict[str, Any]]]]:
    """Sorts values by where they go, as a search does."""
    loss = {name.removeprefix("loss."): value for name, value in values.items() if name.startswith("loss.")}
    model = {name.removeprefix("model."): value for name, value in values.items() if name.startswith("model.")}
    plain = {name: value for name, value in values.items() if not name.startswith(("loss.", "model."))}
    arguments = {name: value for name, value in plain.items() if name in known}
    rest = {name: value for name, value in plain.items() if name not in known}
    return arguments, {
        "loss_values": ("loss = loss_init(model, **loss_values)", loss),
        "model_values": ("model = model_init(**model_values)", model),
        "trial_values": ("No training arguments: model_init or loss_init has read them from its trial", rest),
    }


def _argument_names(module: str, name: str) -> set[str]:
    import dataclasses
    import importlib

    return {field.name for field in dataclasses.fields(getattr(importlib.import_module(module), name)) if field.init}


def literal(value: Any, spread: bool = False) -> str:
    """Returns Python code for a value: numbers, strings, None, lists and dicts of them.

    Args:
        value: The value.
        spread: Whether each item of a dict gets a line of its own.
    """
    if isinstance(value, dict):
        items = [f"{literal(key)}: {literal(item)}" for key, item in value.items()]
        if spread:
            return "{\n" + "".join(f"{_INDENT}{item},\n" for item in items) + "}"
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(literal(item) for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, str):
        return _quoted(value)
    return repr(value)


def _quoted(text: str) -> str:
    shown = repr(text) if _unicode_output() else ascii(text)
    return f'"{shown[1:-1]}"' if shown[0] == "'" and '"' not in shown and "\\'" not in shown else shown


def _yaml(value: Any) -> str:
    import yaml  # type: ignore[import-untyped]

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        """Quotes what another parser of YAML might take for a number, and writes out what is the same object twice."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, data: str) -> Any:
        quoted = _like_a_number(data) or not data.isprintable()  # PyYAML itself loses some kinds of white space
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style='"' if quoted else None)

    Dumper.add_representer(str, text)
    options = {"sort_keys": False, "width": sys.maxsize, "default_flow_style": False}
    dumped: str = yaml.dump(value, Dumper=Dumper, allow_unicode=_unicode_output(), **options)
    return dumped.rstrip("\n")


def _like_a_number(text: str) -> bool:
    """YAML 1.2 reads ``1e-5`` as a number, and YAML 1.1 ``1_000``; Python's own rules cover both."""
    for read in (float, lambda number: int(number, 0)):
        try:
            read(text)
        except ValueError:
            continue
        return True
    return False


def _unicode_output() -> bool:
    return (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"


def _entry(trial: TrialRecord, result: SearchResult) -> dict[str, Any]:
    objectives = dict(zip(result.objective_names, trial.values, strict=False))
    return {
        "trial": trial.number,
        "state": trial.state,
        "objectives": objectives,
        "hyperparameters": trial.hyperparameters,
    }


def _title(trial: TrialRecord, result: SearchResult) -> str:
    found = ", ".join(f"{name} = {value!r}" for name, value in zip(result.objective_names, trial.values, strict=False))
    return " ".join(f"Trial {trial.number} ({trial.state}): {found or 'no objective'}".split())
