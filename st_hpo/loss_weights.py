"""The weights of a loss, which are in no checkpoint of upstream's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

LOSS_FILE = "loss.pt"  # inside of a checkpoint
MODULES_OWN = {*vars(nn.Module()), "_non_persistent_buffers_set"}


def _modules(loss: Any) -> dict[str, nn.Module]:
    if isinstance(loss, Mapping):
        return {f"{name}.": item for name, item in loss.items() if isinstance(item, nn.Module)}
    return {"": loss} if isinstance(loss, nn.Module) else {}


def own_state(loss: Any, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Gives the tensors of a loss, or of a dict of them, that are not the model's, by name."""
    models = {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    for prefix, module in _modules(loss).items():
        for name, tensor in module.state_dict(keep_vars=True).items():
            if isinstance(tensor, torch.Tensor) and id(tensor) not in models:
                yield prefix + name, tensor.detach()


def save_loss(loss: Any, model: nn.Module, file: Path) -> None:
    """Writes the tensors of a loss that are not the model's, if it has any."""
    if own := dict(own_state(loss, model)):
        torch.save(own, file)


def load_loss(loss: Any, model: nn.Module, file: Path) -> None:
    """Gives a loss the tensors that :func:`save_loss` has written; where it wrote none, nothing changes."""
    if not file.is_file():
        return
    stored = torch.load(file, map_location="cpu", weights_only=True)
    for name, tensor in own_state(loss, model):
        if name in stored:
            tensor.copy_(stored[name])


@contextlib.contextmanager
def loss_kept(loss: Any, model: nn.Module) -> Iterator[None]:
    """Gives a loss back what it counts or averages in this block, all but what is changed inside of an attribute.

    Upstream evaluates a loss in its training mode (``BaseTrainer.evaluation_loop``).
    """
    models = {id(module) for module in model.modules()}
    own = [part for root in _modules(loss).values() for part in root.modules() if id(part) not in models]
    there = [(part, name, item) for part in own for name, item in part._buffers.items() if item is not None]
    values = [item.clone() for _, _, item in there]
    attributes = [{key: value for key, value in vars(part).items() if key not in MODULES_OWN} for part in own]
    try:
        yield
    finally:
        for part, before in zip(own, attributes, strict=True):
            for key in [key for key in vars(part) if key not in MODULES_OWN and key not in before]:
                del part.__dict__[key]
            part.__dict__.update(before)
        for (part, name, item), value in zip(there, values, strict=True):
            item.detach().copy_(value)
            part._buffers[name] = item
