"""What concerns GPUs. Skipped where there is none; nobody has run it yet."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from helpers import audit, cache_features, freeze, graph, parameters, saved_tensors, unfreeze, watch

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use"),
]


def net():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
    return nn.Sequential(body, nn.Linear(6, 2)).cuda()


def test_a_frozen_part_on_the_gpu_neither_moves_nor_draws():
    model, x = net(), torch.randn(8, 6, device="cuda")
    freeze(model, "0.*")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    assert audit(model, optimizer) == []
    with watch(model) as seen:
        model(x).sum().backward()
        optimizer.step()
    assert seen.changed == ["1.weight", "1.bias"] and seen.unmoved == []
    assert torch.equal(model[0](x), model[0](x))
    unfreeze(model)
    assert all(module.training for module in model.modules())


def test_counts_are_those_of_the_cpu():
    counted = []
    for device in ("cpu", "cuda"):
        model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)).to(device)
        model[0].requires_grad_(False)
        with saved_tensors(model) as saved:
            output = model(torch.randn(8, 6, device=device))
        drawn = [node["name"] for _, node in graph(output, model).nodes(data=True)]
        counted.append((saved.nbytes, saved.by_module, drawn, str(parameters(model))))
    assert counted[0] == counted[1]


def test_features_are_cached_on_the_cpu():
    model, x = net()[0], torch.randn(8, 6)
    freeze(model)
    state = torch.cuda.get_rng_state()
    features, labels = cache_features(model, [(x, torch.arange(8))]).tensors
    assert features.device.type == labels.device.type == "cpu"
    assert torch.equal(features, model(x.cuda()).cpu())
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_a_held_rnn_has_no_backward_by_cudnn_and_audit_says_so():
    model = nn.Sequential(nn.Linear(6, 6), nn.LSTM(6, 6)).cuda()
    freeze(model, "1.*")
    model.train()
    assert [found.rule for found in audit(model)] == ["off-in-eval-mode"]
    with pytest.raises(RuntimeError, match="cudnn RNN backward can only be called in training mode"):
        model(torch.randn(3, 2, 6, device="cuda"))[0].sum().backward()
    unfreeze(model)
    freeze(model, "1.*", hold=False)
    assert audit(model) == []
    model(torch.randn(3, 2, 6, device="cuda"))[0].sum().backward()
    assert model[0].weight.grad is not None and model[1].weight_ih_l0.grad is None


def test_train_head_by_nccl(tmp_path):
    output = tmp_path / "trained.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    options = ["--backend", "nccl", "--epochs", "5", "--output", str(output)]
    done = subprocess.run([*command, "-m", "helpers.train_head", *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "fc.weight" in torch.load(output, weights_only=True)
