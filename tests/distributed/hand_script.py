"""Plain upstream training under torchrun, by hand: ``torchrun hand_script.py FOLDER [FOLDER ...]``.

Each folder has its trials.json, and gets hand.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from st_hpo.testing import train_by_hand

import by_hand
import scenarios

torch.set_num_threads(1)
plain = scenarios.arguments


def train(folder: Path, order: dict[str, Any]) -> list[dict[str, float]]:
    if "scenario" not in order:
        path, fixed = (folder / "model.txt").read_text(), order.get("fixed", {})
        return [train_by_hand(path, folder / "hand", {**values, **fixed}) for values in order["trials"]]
    unused = {"ddp_find_unused_parameters": False} if order["scenario"] == "cross_encoder" else {}
    by_hand.arguments = lambda kind, **values: plain(  # type: ignore[attr-defined]
        kind, **{"use_cpu": True, "per_device_train_batch_size": 4, **unused, **values}
    )
    return [by_hand.train_once(order["scenario"], values) for values in order["trials"]]


for name in sys.argv[1:]:
    found = train(Path(name), json.loads((Path(name) / "trials.json").read_text()))
    if os.environ["RANK"] == "0":
        (Path(name) / "hand.json").write_text(json.dumps(found))
dist.destroy_process_group()
