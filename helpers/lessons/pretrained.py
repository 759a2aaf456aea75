"""torchvision's pretrained weights, or an error that says which file to put where."""

import hashlib
import re
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

    The model comes as torchvision makes it: every parameter trainable, in train mode. torchvision compares the hash in
    the file's name only when it fetches, and would run code that a pickle names; here a file already there is compared
    too, and must hold nothing but weights.

    Raises ``FileNotFoundError`` if the file is neither there nor to be fetched, with its address and its place, and
    ``RuntimeError`` if what is there is damaged or cannot be read.

    >>> from torchvision.models import ResNet18_Weights, resnet18
    >>> model = pretrained(resnet18, ResNet18_Weights.DEFAULT)  # doctest: +SKIP
    """
    file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    try:
        if file.exists():
            _compare(file)
        weights.get_state_dict(check_hash=True, weights_only=True)
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


def _compare(file: Path) -> None:
    """The name carries the first digits of the SHA-256: https://docs.pytorch.org/docs/stable/hub.html"""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    named = re.search(r"-([0-9a-f]{8,})\.", file.name)
    if named and not digest.startswith(named[1]):
        raise ValueError(f"damaged: its SHA-256 begins with {digest[: len(named[1])]}")
