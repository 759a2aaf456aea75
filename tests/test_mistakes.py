"""Thirteen mistakes of fine-tuning scripts and five correct ones: with audit before a step and watch around it.

What guardtower and torchtest2 find of them is in docs/compared.md.
"""

import pytest
import torch
from torch import nn

from helpers import audit, freeze, watch

INPUTS = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 4


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, lr=0.1, **options)


def net(norm=None, last=None):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(8, 16), norm or nn.Identity(), nn.ReLU())
    return nn.Sequential(body, last or nn.Linear(16, 4))


class Two(nn.Module):
    """Two layers, of which ``between`` says how one follows the other."""

    def __init__(self, between=lambda self, x: self.a(x)):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.between = nn.Linear(8, 8), nn.Linear(8, 4), between

    def forward(self, x):
        return self.b(self.between(self, x))


def step(model, optimizer):
    nn.functional.cross_entropy(model(INPUTS), LABELS).backward()
    optimizer.step()


# Correct


def all_of_it():
    model = net()
    return model, torch.optim.Adam(model.parameters(), lr=1e-2)


def all_of_it_with_batchnorm():
    model = net(nn.BatchNorm1d(16))
    return model, torch.optim.Adam(model.parameters(), lr=1e-2)


def frozen_by_helpers():
    model = net(nn.BatchNorm1d(16))
    freeze(model, "0.*")
    return model.train(), sgd(model[1].parameters())


def frozen_and_in_eval_mode():
    model = net(nn.BatchNorm1d(16))
    model[0].requires_grad_(False)
    model.train()
    model[0].eval()
    return model, sgd(model[1].parameters())


def frozen_ones_in_the_optimizer():
    model = net()
    model[0].requires_grad_(False)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


# Mistakes, with what tells of them


def statistics_drift():
    model = net(nn.BatchNorm1d(16))
    model[0].requires_grad_(False)
    return model.train(), sgd(model[1].parameters())


def head_replaced_after_the_optimizer():
    model = net()
    optimizer = sgd(model.parameters())
    model[1] = nn.Linear(16, 4)
    return model, optimizer


def unfrozen_after_the_optimizer():
    model = net()
    model[0].requires_grad_(False)
    optimizer = sgd([parameter for parameter in model.parameters() if parameter.requires_grad])
    model[0].requires_grad_(True)
    return model, optimizer


def frozen_with_an_old_gradient():
    model = net()
    optimizer = sgd(model.parameters(), momentum=0.9)
    step(model, optimizer)
    model[0].requires_grad_(False)
    optimizer.zero_grad(set_to_none=False)
    return model, optimizer


def flag_on_a_module():
    model = net()
    model[0].requires_grad = False
    return model, sgd(model.parameters())


def misspelled_flag():
    model = net()
    for parameter in model[0].parameters():
        parameter.require_grad = False
    return model, sgd(model.parameters())


def layers_in_a_list():
    model = Two(lambda self, x: self.layers[0](x))
    model.layers = [model.a]
    del model.a
    return model, sgd(model.parameters())


def dropout_in_a_frozen_part():
    model = net(nn.Dropout(0.5))
    model[0].requires_grad_(False)
    return model.train(), sgd(model[1].parameters())


def detach_in_forward():
    model = Two(lambda self, x: self.a(x).detach())
    return model, sgd(model.parameters())


def no_grad_around_the_middle():
    def between(self, x):
        hidden = self.a(x)
        with torch.no_grad():
            return self.frozen(hidden)

    model = Two(between)
    model.frozen = nn.Linear(8, 8).requires_grad_(False)
    return model, sgd([parameter for parameter in model.parameters() if parameter.requires_grad])


def unused_layer():
    model = Two()
    model.norm = nn.LayerNorm(8)
    return model, sgd(model.parameters())


def edited_in_forward():
    def between(self, x):
        with torch.no_grad():
            self.a.weight.mul_(0.99)
        return self.a(x)

    model = Two(between)
    model.a.requires_grad_(False)
    return model, sgd(model.b.parameters())


def everything_frozen():
    model = net().requires_grad_(False)
    return model, sgd(model.parameters())


CORRECT = [
    all_of_it,
    all_of_it_with_batchnorm,
    frozen_by_helpers,
    frozen_and_in_eval_mode,
    frozen_ones_in_the_optimizer,
]
MISTAKES = {
    statistics_drift: "frozen-part-in-train-mode, watch.unexpected",
    head_replaced_after_the_optimizer: "orphan-in-optimizer, trainable-in-no-optimizer, watch.unmoved",
    unfrozen_after_the_optimizer: "trainable-in-no-optimizer, watch.unmoved",
    frozen_with_an_old_gradient: "stale-grad, watch.unexpected",
    flag_on_a_module: "flag-on-module",
    misspelled_flag: "misspelt-flag",
    layers_in_a_list: "unregistered",
    dropout_in_a_frozen_part: "frozen-part-in-train-mode",
    detach_in_forward: "watch.unmoved",
    no_grad_around_the_middle: "watch.unmoved",
    unused_layer: "watch.unmoved",
    edited_in_forward: "watch.unexpected",
    everything_frozen: "nothing-trainable",
}


def told(make):
    model, optimizer = make()
    rules = list(dict.fromkeys(finding.rule for finding in audit(model, optimizer)))
    if any(parameter.requires_grad for parameter in model.parameters()):
        with watch(model) as seen:
            step(model, optimizer)
        rules += ["watch.unexpected"] * bool(seen.unexpected) + ["watch.unmoved"] * bool(seen.unmoved)
    return ", ".join(rules)


@pytest.mark.parametrize("make", CORRECT)
def test_silent_on_what_is_correct(make):
    assert told(make) == ""


@pytest.mark.parametrize(("make", "expected"), MISTAKES.items())
def test_each_mistake_is_found(make, expected):
    assert told(make) == expected
