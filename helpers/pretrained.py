"""torchvision's pretrained weights, or an error that says which file to put where."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.error import URLError

import torch
from torch import nn

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

Model = TypeVar("Model", bound=nn.Module)


def pretrained(builder: Callable[..., Model], weights: "WeightsEnum") -> Model:
    """``builder(weights=weights)``: from the file in torch's cache folder, or fetched once over the network.

    The model comes as torchvision makes it: every parameter trainable, in train mode.

    Raises ``FileNotFoundError`` if the file is neither there nor to be fetched, with its address and its place, and
    ``RuntimeError`` if what is there cannot be read.

    >>> from torchvision.models import ResNet18_Weights, resnet18
    >>> model = pretrained(resnet18, ResNet18_Weights.DEFAULT)  # doctest: +SKIP
    """
    file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    try:
        return builder(weights=weights)
    except (URLError, TimeoutError) as error:
        raise FileNotFoundError(
            f"no weights for {builder.__name__}: {file} is not there, and {weights.url} cannot be reached ({error}). "
            f"Fetch it on a machine with a network and put it there, or set TORCH_HOME to the folder whose "
            f"hub/checkpoints has it."
        ) from error
    except Exception as error:
        if not file.exists():
            raise
        raise RuntimeError(
            f"{file} cannot be loaded into {builder.__name__} ({error}). Delete it, fetch it again."
        ) from error
