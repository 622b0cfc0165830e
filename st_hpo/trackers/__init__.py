"""Trackers (``report_to``): every trial is a run of its own, named, grouped, and closed whatever ends it."""

from __future__ import annotations

from st_hpo.trackers.session import Tracking, drop_trackers
from st_hpo.trackers.trial_run import search_group

__all__ = ["Tracking", "drop_trackers", "search_group"]
