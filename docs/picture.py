"""The picture of the README: which entries of a "frozen" ResNet-18 moved. ``python docs/picture.py`` draws it again."""

import sys
from pathlib import Path

import torch
from matplotlib import __version__, ft2font
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import nn
from torchvision.models import resnet18

from helpers import freeze, watch

PICTURE = Path(__file__).with_name("frozen.png")
MOVED, STILL = "#D55E00", "#9DB8C9"


def frozen_by_flags(model: nn.Module) -> None:
    model.requires_grad_(False)


def moved(how) -> tuple[list[str], list[str]]:
    """All entries of the state_dict, and those that changed when only a new head is trained for three steps."""
    torch.manual_seed(0)
    model = resnet18()
    how(model)
    model.fc = nn.Linear(512, 100)
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1)
    with watch(model.train()) as seen:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 3, 64, 64)).sum().backward()
            optimizer.step()
    return list(model.state_dict()), seen.changed


def picture() -> Figure:
    figure, panels = plt.subplots(2, 1, figsize=(8, 3), sharex=True, layout="constrained")
    recipes = {"Frozen by requires_grad_(False)": frozen_by_flags, "Frozen by helpers.freeze()": freeze}
    for ax, (recipe, how) in zip(panels, recipes.items(), strict=True):
        names, changed = moved(how)
        heights = [1 if name in changed else 0.35 for name in names]  # so that it does not depend on color alone
        ax.bar(range(len(names)), heights, color=[MOVED if name in changed else STILL for name in names])
        ax.set_title(f"{recipe}: {len(changed)} of {len(names)} entries moved", loc="left", size=11)
        ax.set(ylim=(0, 1), yticks=[])
        ax.margins(x=0.01)
        ax.spines[:].set_visible(False)
    parts = [name.partition(".")[0] for name in names]
    parts = ["stem" if part in ("conv1", "bn1") else part for part in parts]  # too short for labels of their own
    starts = [parts.index(part) for part in dict.fromkeys(parts)]
    panels[-1].set_xticks([start - 0.5 for start in starts], dict.fromkeys(parts), ha="left", size=9)
    figure.supxlabel(
        "ResNet-18's state_dict after 3 steps of training a new fc: high and orange = moved, low and blue = still",
        size=9,
    )
    return figure


def save(path: Path = PICTURE) -> None:
    drawn_by = f"Matplotlib {__version__}, FreeType {ft2font.__freetype_version__}"
    picture().savefig(path, dpi=150, metadata={"Software": drawn_by})


if __name__ == "__main__":
    save(*map(Path, sys.argv[1:]))
