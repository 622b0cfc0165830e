"""A trial as a run of TensorBoard: a folder of event files. Imports TensorBoard inside its functions."""

from __future__ import annotations

import inspect
import os
import re
from typing import Any

from st_hpo.records import TrialRecord
from st_hpo.trackers.trial_run import TrialRun


class TensorBoardTrialRun(TrialRun):
    """``<folder of the search>/runs/<group>/<name>``, or below TENSORBOARD_LOGGING_DIR."""

    tracker = "TensorBoard"

    def open(self, args: Any, model: Any) -> None:
        """See :meth:`TrialRun.open`."""
        root = os.getenv("TENSORBOARD_LOGGING_DIR")
        root = os.path.join(self.facts.folder, "runs") if root is None else os.path.expanduser(root)
        self._folder = os.path.join(root, _folder_name(self.facts.group), self.facts.name)
        self.callback.tb_writer = _writer(self._folder)

    def begun(self) -> None:
        """See :meth:`TrialRun.begun`: upstream's callback opens another writer for the evaluation at the end."""
        self.callback.logging_dir = self._folder

    def close(self, record: TrialRecord) -> None:
        """See :meth:`TrialRun.close`."""
        writer = self.callback.tb_writer or _writer(self._folder)
        self.callback.tb_writer = None
        try:
            writer.add_text("trial_state", record.state)
            if record.error:
                writer.add_text("trial_error", record.error)
            # In the same folder; that of tensorboardX would overwrite a file there that is as old to the second
            is_torchs = "run_name" in inspect.signature(writer.add_hparams).parameters
            where = {"run_name": "."} if is_torchs else {"name": "hparams"}
            values = {name: _plain(value) for name, value in self.facts.hyperparameters.items()}
            writer.add_hparams(values, self.facts.final(record), **where)
        finally:
            writer.close()


def _folder_name(group: str) -> str:
    """Returns the group as the name of a folder, which leads to no other one."""
    name = re.sub(r"[^\w.\- ]", "_", group)
    return name.replace(".", "_") if name in (".", "..") else name


def _writer(folder: str) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        from tensorboardX import SummaryWriter
    return SummaryWriter(log_dir=folder)


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
