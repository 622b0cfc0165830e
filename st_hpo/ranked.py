"""A search of several ranks (torchrun): rank 0 runs the backend, the others run along."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from transformers.trainer_utils import BestRun

from st_hpo.backends.target import Report
from st_hpo.distributed import Ranks
from st_hpo.errors import RankError
from st_hpo.faults import SIGINT, SearchStopped, describe
from st_hpo.records import Baseline, TrialRecord
from st_hpo.results import SearchResult
from st_hpo.search import Search


class RankedSearch(Search):
    """A search that all ranks make at the same point. Every rank gets the same best run and the same result.

    Args:
        ranks: The ranks.
        args: What :class:`Search` takes.
    """

    def __init__(self, ranks: Ranks, *args: Any) -> None:
        super().__init__(*args)
        self.ranks = self.runner.ranks = ranks
        ranks.stop = self._stop
        self._interrupts = True
        self._show_progress = self._show_progress and ranks.is_main

    def run(self) -> BestRun | list[BestRun]:
        """See :meth:`Search.run`."""
        try:
            return super().run()
        finally:
            with contextlib.suppress(Exception):  # what has ended the search must be seen
                self.ranks.close()

    def _run_baseline(self) -> None:
        if self._with_baseline:
            evaluate = self.runner.settled_baseline
            if self.ranks.is_main:
                found = self.ranks.together("the baseline", lambda: self.backend.run_baseline(self))
            else:
                found = self.ranks.together("the baseline", evaluate)
            baseline, names, directions = self.ranks.share(lambda: [asdict(found[0]), found[1], found[2]])
            self._baseline, self.objective.names, self.objective.directions = Baseline(**baseline), names, directions

    def _settle(self) -> None:
        settle = super()._settle

        def decide() -> list[list[str]]:
            settle()
            return [self.objective.names, self.objective.directions]

        self.objective.names, self.objective.directions = self.ranks.share(decide)

    def _run_backend(self) -> None:
        try:
            if self.ranks.is_main:
                self._lead()
            else:
                self._follow()
        except SearchStopped as exc:
            if exc.reason == SIGINT:
                raise KeyboardInterrupt from None
            raise

    def _lead(self) -> None:
        try:
            super()._run_backend()
        except SearchStopped as exc:
            self._order({"end": "stopped", "why": exc.reason})
            raise
        except BaseException as exc:
            self._order({"end": "failed", "why": describe(exc)})
            raise
        self._order({"end": None})

    def _order(self, order: dict[str, Any]) -> None:
        self.ranks.share(lambda: order)

    def _announce(self, number: int, backend_id: str | None, report: Report | None) -> None:
        reached = None if report is None else getattr(report, "reached", 0)
        self._order({"trial": number, "backend_id": backend_id, "reached": reached})

    def waiting(self) -> None:
        """See :meth:`Search.waiting`; the other ranks wait along, beyond their timeout."""
        self.ranks.still_deciding()

    def _follow(self) -> None:
        """Runs every trial that rank 0 announces, until it announces the end."""
        own: BaseException | None = None
        while True:
            order: Mapping[str, Any] = self.ranks.share()
            if "end" in order:
                break
            record = TrialRecord(order["trial"], backend_id=order["backend_id"])
            self._records[record.number] = record
            try:
                self.runner.run(record, _nothing, report=_report(order["reached"]), stop=self._stop)
            except SearchStopped:
                own = None
            except RankError as exc:
                if exc.fatal:
                    raise
                own = None
            except Exception as exc:
                own = exc
        if order["end"] == "stopped":
            raise SearchStopped(order["why"])
        if order["end"] == "failed":
            raise own or RankError(f"The search has ended on rank 0: {order['why']}")

    def result(self, interrupted: bool = False) -> SearchResult:
        """Returns what has been found so far: on every rank what rank 0 has found, unless one is lost."""
        lost = self.ranks.lost
        own = super().result(interrupted) if self.ranks.is_main or lost else None
        if lost and own is not None:
            return own
        text = self.ranks.share(lambda: own.to_json() if own is not None else "")
        return own or SearchResult.from_json(text)


def _nothing() -> Mapping[str, Any]:
    return {}


class _NoReport:
    """What rank 0 decides, the others learn by another way."""

    def __init__(self, reached: int) -> None:
        self.reached = reached

    def __call__(self, value: float, step: int) -> bool:
        return False


def _report(reached: int | None) -> _NoReport | None:
    return None if reached is None else _NoReport(reached)
