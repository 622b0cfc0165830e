"""The callback of a trial's trainer: what upstream calls a trial, and whether to go on after a step."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from st_hpo.distributed import Ranks
from st_hpo.faults import StopSignal


class AsTrial(TrainerCallback):  # type: ignore[misc]
    """Tells upstream's tracker callbacks that this training is a trial, as transformers' own search does."""

    def __init__(
        self, name: str, hyperparameters: dict[str, Any], stop: StopSignal | None, ranks: Ranks | None
    ) -> None:
        self._name = name
        self._hyperparameters = hyperparameters
        self._stop = stop
        self._ranks = ranks

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.is_hyper_param_search = True
        state.trial_name = self._name
        state.trial_params = self._hyperparameters

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._ranks is not None:
            self._ranks.check_stop(state.global_step)
        elif self._stop is not None:
            self._stop.check()
