"""Plain upstream training under torchrun, by hand: ``torchrun hand_script.py FOLDER``, with trials.json there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from st_hpo.testing import train_by_hand

torch.set_num_threads(1)
folder = Path(sys.argv[1])
order = json.loads((folder / "trials.json").read_text())
if "scenario" in order:
    import by_hand
    import scenarios

    plain = scenarios.arguments
    unused = {"ddp_find_unused_parameters": False} if order["scenario"] == "cross_encoder" else {}
    by_hand.arguments = lambda kind, **values: plain(  # type: ignore[attr-defined]
        kind, **{"use_cpu": True, "per_device_train_batch_size": 4, **unused, **values}
    )
    found = [by_hand.train_once(order["scenario"], values) for values in order["trials"]]
else:
    path = (folder / "model.txt").read_text()
    found = [train_by_hand(path, folder / "hand", {**values, **order.get("fixed", {})}) for values in order["trials"]]
if os.environ["RANK"] == "0":
    (folder / "hand.json").write_text(json.dumps(found))
dist.destroy_process_group()
