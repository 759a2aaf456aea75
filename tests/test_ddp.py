"""Models in DistributedDataParallel: what audit says of them happens, and the other tools take them."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from helpers import audit, freeze, graph, parameters, saved_tensors, unfreeze, watch
from helpers.lessons.ranks import alone, ranks


def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    freeze(net, "0.*", "1.*")
    return net


@pytest.fixture
def ddp():
    with alone():
        yield DistributedDataParallel(model())


def test_names_begin_with_module_as_in_the_state_dict(ddp):
    optimizer = torch.optim.SGD(ddp.module[2].parameters(), lr=0.1)
    assert [row.name for row in parameters(ddp, optimizer)] == [name for name, _ in ddp.named_parameters()]
    assert parameters(ddp, optimizer).foot == parameters(ddp.module, optimizer).foot
    with watch(ddp.train()) as seen, saved_tensors(ddp) as saved:
        output = ddp(torch.ones(3, 2))
        nodes = [node for _, node in graph(output, ddp).nodes(data=True)]
        output.sum().backward()
        optimizer.step()
    assert seen.changed == ["module.2.weight", "module.2.bias"] and seen.unexpected == []
    assert saved.by_module == {"module.2": 24}
    assert {node["name"] for node in nodes if node["kind"] == "leaf"} == {"module.2.weight", "module.2.bias"}
    assert audit(ddp, optimizer) == []


def test_unfreezing_what_is_wrapped_is_found(ddp):
    assert unfreeze(ddp, "module.0.*") == ["module.0.weight", "module.0.bias"]
    assert [(finding.rule, finding.name) for finding in audit(ddp)] == [
        ("changed-after-wrapping", "module.0.weight"),
        ("changed-after-wrapping", "module.0.bias"),
    ]
    assert freeze(ddp, "module.0.*") == ["module.0.weight", "module.0.bias"] and audit(ddp) == []


def step(ddp, rank):
    ddp.zero_grad()
    ddp(torch.full((3, 2), rank + 1.0)).sum().backward()


def in_a_process():
    """Unfreeze, wrap again, freeze: at each stage the findings and the gradients, at the end the error."""
    rank, told = dist.get_rank(), {}
    ddp = DistributedDataParallel(model())
    step(ddp, rank)
    unfreeze(ddp.module, "0.weight")
    for stage in ("unfrozen", "wrapped again"):
        findings = [finding.name for finding in audit(ddp)]
        step(ddp, rank)
        first, last = ddp.module[0].weight, ddp.module[2].weight
        told[stage] = findings, first.grad.tolist(), last.grad.tolist()
        ddp = DistributedDataParallel(ddp.module)
    ddp.module[2].requires_grad_(False)
    findings = [finding.name for finding in audit(ddp)]
    step(ddp, rank)
    try:
        step(ddp, rank)
    except RuntimeError as error:
        told["frozen"] = findings, str(error), None
    return told


@pytest.fixture(scope="module")
def stages():
    """stage -> for the two processes: the names that audit finds, and the gradients of the first and last weight."""
    one, other = ranks(in_a_process)
    assert one.keys() == other.keys() == {"unfrozen", "wrapped again", "frozen"}
    return {stage: {0: one[stage], 1: other[stage]} for stage in one}


def test_what_was_unfrozen_after_wrapping_trains_unsynchronized_without_an_error(stages):
    (names, first, last), (same_names, other_first, other_last) = stages["unfrozen"][0], stages["unfrozen"][1]
    assert names == same_names == ["module.0.weight"]
    assert first != other_first and last == other_last


def test_wrapped_again_it_is_synchronized(stages):
    (names, first, last), (_, other_first, other_last) = stages["wrapped again"][0], stages["wrapped again"][1]
    assert names == []
    assert first == other_first and last == other_last


def test_what_was_frozen_after_wrapping_is_waited_for_until_the_second_step_raises(stages):
    for names, error, _ in stages["frozen"].values():
        assert names == ["module.2.weight", "module.2.bias"]
        assert "Expected to have finished reduction in the prior iteration" in error
