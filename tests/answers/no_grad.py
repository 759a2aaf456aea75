"""Answers to the exercises of the lesson on ``no_grad``."""

import copy

import torch
from torch.func import functional_call

from tests.exercises import Answers

answers = Answers()
right, wrong = answers.right, answers.wrong

SWITCHES = {
    "net.eval(): net(x) asks": True,
    "no_grad: net(x) moves the running mean": True,
    "no_grad: head(features) asks": True,
    "no_grad: before learns through net(hidden)": False,
    "net.requires_grad_(False): before learns through net(hidden)": True,
    "net(x).detach(): tensors are kept while net runs": True,
    "inference_mode: head learns from features": "raises",
    "inference_mode: head learns from features.clone()": True,
}
right("which-switch")(SWITCHES)
right("which-switch")(dict(reversed(SWITCHES.items())))
right("which-switch")({row: value if value == "raises" else bool(value) for row, value in SWITCHES.items()})
wrong("which-switch", "all is still recorded")(
    SWITCHES | {"net.eval(): net(x) asks": False}, "In eval mode no gradients are computed."
)
wrong("which-switch", "goes on counting")(
    SWITCHES | {"no_grad: net(x) moves the running mean": False}, "Under no_grad nothing in a network changes."
)
wrong("which-switch", "does not travel on with a result")(
    SWITCHES | {"no_grad: head(features) asks": False},
    "What comes out of no_grad stays cut off, as volatile did.",
)
wrong("which-switch", "the way back to before is cut")(
    SWITCHES | {"no_grad: before learns through net(hidden)": True}, "no_grad around a part freezes that part only."
)
wrong("which-switch", "without an error")(
    SWITCHES | {"no_grad: before learns through net(hidden)": "raises"}, "Torch says so when a graph is cut."
)
wrong("which-switch", "passes the layer, to whatever asks before it")(
    SWITCHES | {"net.requires_grad_(False): before learns through net(hidden)": False},
    "A frozen part stops the gradient, as no_grad does.",
)
wrong("which-switch", "needed the memory meanwhile")(
    SWITCHES | {"net(x).detach(): tensors are kept while net runs": False}, "With detach() nothing is recorded."
)
wrong("which-switch", "an inference tensor cannot be saved")(
    SWITCHES | {"inference_mode: head learns from features": True}, "inference_mode is no_grad, only faster."
)
wrong("which-switch", "does not pass in silence")(
    SWITCHES | {"inference_mode: head learns from features": False}, "From inference tensors a head learns nothing."
)
wrong("which-switch", "is an ordinary tensor")(
    SWITCHES | {"inference_mode: head learns from features.clone()": "raises"},
    "What was made under inference_mode is lost for autograd for ever.",
)


@right("cut-off-adapter")
def flags_and_eval(adapter, backbone, head, x):
    backbone.requires_grad_(False)
    backbone.eval()
    return head(backbone(adapter(x)))


@right("cut-off-adapter")
def other_tensors_in_their_place(adapter, backbone, head, x):
    backbone.eval()
    weights = {name: parameter.detach() for name, parameter in backbone.named_parameters()}
    return head(functional_call(backbone, weights, (adapter(x),)))


@right("cut-off-adapter")
def frozen_twin(adapter, backbone, head, x):
    twin = copy.deepcopy(backbone).eval()
    for parameter in twin.parameters():
        parameter.requires_grad = False
    return head(twin(adapter(x)))


@right("cut-off-adapter")
def flags_back_afterwards(adapter, backbone, head, x):
    asking = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    backbone.requires_grad_(False).eval()
    output = head(backbone(adapter(x)))
    for parameter in asking:
        parameter.requires_grad_(True)
    return output


@right("cut-off-adapter")
def frozen_after_the_run(adapter, backbone, head, x):
    output = head(backbone.eval()(adapter(x)))
    backbone.requires_grad_(False)
    return output


@right("cut-off-adapter")
def statistics_put_back(adapter, backbone, head, x):
    backbone.requires_grad_(False)
    kept = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    output = head(backbone(adapter(x)))
    for name, buffer in backbone.named_buffers():
        buffer.data = kept[name]
    return output


@wrong("cut-off-adapter", "leads nowhere")
def as_it_was(adapter, backbone, head, x):
    """no_grad around a part freezes that part only."""
    hidden = adapter(x)
    with torch.no_grad():
        features = backbone(hidden)
    return head(features)


@wrong("cut-off-adapter", "leads nowhere")
def asked_again(adapter, backbone, head, x):
    """A result that asks again is connected again."""
    with torch.no_grad():
        features = backbone(adapter(x))
    return head(features.requires_grad_(True))


@wrong("cut-off-adapter", "is not head(backbone(adapter(x)))")
def adapter_left_out(adapter, backbone, head, x):
    """x has been through the adapter already."""
    backbone.requires_grad_(False).eval()
    return head(backbone(x))


@wrong("cut-off-adapter", "the cut is between the two")
def cut_in_front(adapter, backbone, head, x):
    """detach() before the backbone keeps gradients out of it."""
    return head(backbone(adapter(x).detach()))


@wrong("cut-off-adapter", "eval() holds the statistics, not the parameters")
def eval_alone(adapter, backbone, head, x):
    """eval() freezes."""
    backbone.eval()
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "running_mean and 1.running_var moved")
def flags_alone(adapter, backbone, head, x):
    """requires_grad_(False) holds everything in a module still."""
    backbone.requires_grad_(False)
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "Inference tensors cannot be saved for backward")
def inference(adapter, backbone, head, x):
    """inference_mode is the better no_grad."""
    with torch.inference_mode():
        features = backbone(adapter(x))
    return head(features)


@wrong("cut-off-adapter", "would raise: the head has to run outside")
def all_of_it(adapter, backbone, head, x):
    """Parameters that ask learn, wherever they are used."""
    with torch.no_grad():
        return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "Parameters of the adapter no longer ask")
def all_frozen_but_the_head(adapter, backbone, head, x):
    """What comes before a frozen part has to be frozen as well."""
    adapter.requires_grad_(False)
    backbone.requires_grad_(False).eval()
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "they went around it")
def around_the_backbone(adapter, backbone, head, x):
    """Any gradient that arrives at the adapter will do."""
    backbone.eval()
    hidden = adapter(x)
    with torch.no_grad():
        features = backbone(hidden)
    return head(features + (hidden - hidden.detach()).mean(1, keepdim=True))


@wrong("cut-off-adapter", "leave them where they are")
def buffers_instead(adapter, backbone, head, x):
    """A buffer is a frozen parameter."""
    backbone.eval()
    for module in backbone.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "zeros, not None")
def gradient_times_zero(adapter, backbone, head, x):
    """A gradient of zero is no gradient."""
    backbone.eval()
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: gradient * 0)
    return head(backbone(adapter(x)))


@right("head-features")
def each_mode_noted(backbone, batches):
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    with torch.no_grad():
        features = [backbone(batch) for batch in batches]
    for module, training in modes:
        module.training = training
    return torch.cat(features)


@right("head-features")
@torch.no_grad()
def twin_in_eval_mode(backbone, batches):
    return copy.deepcopy(backbone).eval()(torch.cat(batches))


@right("head-features")
def inference_and_a_clone_outside(backbone, batches):
    training = [module for module in backbone.modules() if module.training]
    with torch.inference_mode():
        features = torch.cat([backbone.eval()(batch) for batch in batches])
    for module in training:
        module.training = True
    return features.clone()


@right("head-features")
def flags_off_and_on(backbone, batches):
    asking = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    modes = {name: module.training for name, module in backbone.named_modules()}
    backbone.requires_grad_(False).eval()
    features = torch.cat([backbone(batch) for batch in batches])
    for name, module in backbone.named_modules():
        module.training = modes[name]
    for parameter in asking:
        parameter.requires_grad = True
    return features


@right("head-features")
def filled_in(backbone, batches):
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    with torch.set_grad_enabled(False):
        features = torch.empty(sum(map(len, batches)), 4)
        start = 0
        for batch in batches:
            features[start : start + len(batch)] = backbone(batch)
            start += len(batch)
    for module, training in modes:
        module.train(training)
    return features


@wrong("head-features", "all was recorded")
def eval_alone_for_features(backbone, batches):
    """In eval mode no gradients are computed."""
    backbone.eval()
    return torch.cat([backbone(batch) for batch in batches])


@wrong("head-features", "all was recorded")
def flag_of_the_batch(backbone, batches):
    """One flag on the data is enough, as with volatile."""
    backbone.eval()
    features = []
    for batch in batches:
        batch.requires_grad = False
        features.append(backbone(batch))
    return torch.cat(features)


@wrong("head-features", "comes too late")
def detached_afterwards(backbone, batches):
    """With detach() nothing is recorded."""
    backbone.eval()
    return torch.cat([backbone(batch).detach() for batch in batches])


@wrong("head-features", "leave BatchNorm and dropout as they are in training")
def no_grad_alone(backbone, batches):
    """no_grad is the new eval()."""
    with torch.no_grad():
        return torch.cat([backbone(batch) for batch in batches])


@wrong("head-features", "a clone made inside is an inference tensor too")
def clone_inside(backbone, batches):
    """Any clone is an ordinary tensor."""
    training = backbone.training
    with torch.inference_mode():
        features = torch.cat([backbone.eval()(batch) for batch in batches]).clone()
    backbone.train(training)
    return features


@wrong("head-features", "was not all in eval mode before, and it is now")
def left_in_eval(backbone, batches):
    """eval() ends with the function, as a block does."""
    backbone.eval()
    with torch.no_grad():
        return torch.cat([backbone(batch) for batch in batches])


@wrong("head-features", "was in eval mode before, and it is in train mode now")
def always_train(backbone, batches):
    """After eval() a model goes back to train mode."""
    backbone.eval()
    with torch.no_grad():
        features = torch.cat([backbone(batch) for batch in batches])
    backbone.train()
    return features


@wrong("head-features", "and is in eval mode now: train()")
def mode_of_the_outermost(backbone, batches):
    """The mode of a model is the attribute of the model."""
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        features = torch.cat([backbone(batch) for batch in batches])
    backbone.training = training
    return features


@wrong("head-features", "3.2.p is not what it was before")
def no_more_dropout(backbone, batches):
    """A dropout layer that is not wanted now is not wanted later."""
    was = [(module, module.training) for module in backbone.modules()]
    with torch.no_grad():
        for module in backbone.modules():
            module.training = False
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        features = torch.cat([backbone(batch) for batch in batches])
    for module, training in was:
        module.training = training
    return features


@wrong("head-features", "set a module and all modules in it")
def one_mode_for_all(backbone, batches):
    """The mode of a model is that of all its modules."""
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        features = torch.cat([backbone(batch) for batch in batches])
    backbone.train(training)
    return features


@wrong("head-features", "But the flag of 0.bias was False before")
def all_flags_on(backbone, batches):
    """Before I froze it, everything asked."""
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.requires_grad_(False).eval()
    features = torch.cat([backbone(batch) for batch in batches])
    for module, training in modes:
        module.training = training
    backbone.requires_grad_(True)
    return features


@wrong("head-features", "a head learns by its own weights")
def features_that_ask(backbone, batches):
    """To train on features, they must ask."""
    with torch.no_grad():
        features = copy.deepcopy(backbone).eval()(torch.cat(batches))
    return features.requires_grad_(True)


@wrong("head-features", "not in the order of the batches")
def largest_first(backbone, batches):
    """The order of the features does not matter: a loader shuffles them anyway."""
    twin = copy.deepcopy(backbone).eval()
    with torch.no_grad():
        return torch.cat([twin(batch) for batch in sorted(batches, key=len)])


@wrong("head-features", "for instance with torch.cat")
def a_list(backbone, batches):
    """A list of tensors is as good as a tensor."""
    with torch.no_grad():
        return [copy.deepcopy(backbone).eval()(batch) for batch in batches]
