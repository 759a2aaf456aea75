"""Answers to the exercises of the lesson on ``no_grad``."""

import copy
import io
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from helpers import cache_features, freeze
from tests.tools.exercises import Answers

answers = Answers()
right, wrong = answers.right, answers.wrong

SWITCHES = {
    "eval(): net(x) requires grad": True,
    "no_grad(): net(x) moves the running mean": True,
    "no_grad(): net(x) in a new thread requires grad": True,
    "no_grad(): before gets a gradient": False,
    "requires_grad_(False) on net: before gets a gradient": True,
    "net(x).detach(): net saves for backward": True,
    "inference_mode(): head gets a gradient from features": "raises",
    "inference_mode(): head gets a gradient from features.clone()": True,
}
right("which-switch")(SWITCHES)
right("which-switch")(dict(reversed(SWITCHES.items())))
right("which-switch")({row: value if value == "raises" else torch.tensor(value) for row, value in SWITCHES.items()})
right("which-switch")({row: int(value) if value is True else value for row, value in SWITCHES.items()})
wrong("which-switch", "everything is recorded as before")(
    SWITCHES | {"eval(): net(x) requires grad": False}, "In eval mode no gradients are computed."
)
wrong("which-switch", "recorded, and without an error")(
    SWITCHES | {"eval(): net(x) requires grad": "raises"}, "In eval mode a network cannot be trained."
)
wrong("which-switch", "BatchNorm is in train mode, and moves its statistics")(
    SWITCHES | {"no_grad(): net(x) moves the running mean": False}, "Under no_grad nothing in a network changes."
)
wrong("which-switch", "changes in place under no_grad without an error")(
    SWITCHES | {"no_grad(): net(x) moves the running mean": "raises"}, "Under no_grad a model is read-only."
)
wrong("which-switch", "begins with recording on, wherever it was started")(
    SWITCHES | {"no_grad(): net(x) in a new thread requires grad": False},
    "Whatever is started from a block is in the block.",
)
wrong("which-switch", "A thread may run a network")(
    SWITCHES | {"no_grad(): net(x) in a new thread requires grad": "raises"}, "Autograd belongs to the main thread."
)
wrong("which-switch", "the way back to before is cut")(
    SWITCHES | {"no_grad(): before gets a gradient": True}, "no_grad around a part freezes that part only."
)
wrong("which-switch", "Nothing is wrong here for torch")(
    SWITCHES | {"no_grad(): before gets a gradient": "raises"}, "Torch says so when a graph is cut."
)
wrong("which-switch", "passes the network, to whatever requires grad before it")(
    SWITCHES | {"requires_grad_(False) on net: before gets a gradient": False},
    "A frozen part stops the gradient, as no_grad does.",
)
wrong("which-switch", "backward passes without an error")(
    SWITCHES | {"requires_grad_(False) on net: before gets a gradient": "raises"},
    "Backward raises where it meets a frozen part.",
)
wrong("which-switch", "saved what its gradients would need")(
    SWITCHES | {"net(x).detach(): net saves for backward": False}, "With detach() nothing is recorded."
)
wrong("which-switch", "allowed on any result")(
    SWITCHES | {"net(x).detach(): net saves for backward": "raises"}, "Only leaves can be detached."
)
wrong("which-switch", "an inference tensor cannot be saved")(
    SWITCHES | {"inference_mode(): head gets a gradient from features": True}, "inference_mode is no_grad, only faster."
)
wrong("which-switch", "does not pass in silence")(
    SWITCHES | {"inference_mode(): head gets a gradient from features": False},
    "From inference tensors a head learns nothing.",
)
wrong("which-switch", "is an ordinary tensor")(
    SWITCHES | {"inference_mode(): head gets a gradient from features.clone()": "raises"},
    "What was made under inference_mode is lost for autograd for ever.",
)
wrong("which-switch", "the clone, made outside of the block, can be saved")(
    SWITCHES | {"inference_mode(): head gets a gradient from features.clone()": False},
    "A clone has no history, so nothing can be trained on it.",
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
    trainable = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    backbone.requires_grad_(False).eval()
    output = head(backbone(adapter(x)))
    for parameter in trainable:
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


@wrong("cut-off-adapter", "was not recorded, or was cut off")
def as_it_was(adapter, backbone, head, x):
    """no_grad around a part freezes that part only."""
    hidden = adapter(x)
    with torch.no_grad():
        features = backbone(hidden)
    return head(features)


@wrong("cut-off-adapter", "does not bring the way back")
def flag_set_again(adapter, backbone, head, x):
    """A result that requires grad again is connected again."""
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


@wrong("cut-off-adapter", "1.running_mean is not what it was")
def flags_alone(adapter, backbone, head, x):
    """requires_grad_(False) keeps everything in a module as it is."""
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
    """Parameters that require grad learn, wherever they are used."""
    with torch.no_grad():
        return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "Parameters of the adapter no longer require grad")
def all_frozen_but_the_head(adapter, backbone, head, x):
    """What comes before a frozen part has to be frozen as well."""
    adapter.requires_grad_(False)
    backbone.requires_grad_(False).eval()
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "gradient of adapter.weight differs from")
def around_the_backbone(adapter, backbone, head, x):
    """Any gradient that arrives at the adapter will do."""
    backbone.eval()
    hidden = adapter(x)
    with torch.no_grad():
        features = backbone(hidden)
    return head(features + (hidden - hidden.detach()).mean(1, keepdim=True))


@wrong("cut-off-adapter", "backbone.0.weight is another object")
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
    trainable = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    modes = {name: module.training for name, module in backbone.named_modules()}
    backbone.requires_grad_(False).eval()
    features = torch.cat([backbone(batch) for batch in batches])
    for name, module in backbone.named_modules():
        module.training = modes[name]
    for parameter in trainable:
        parameter.requires_grad = True
    return features


@right("head-features")
def filled_in(backbone, batches):
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    with torch.set_grad_enabled(False):
        features = batches[0].new_empty(sum(map(len, batches)), 4)
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
    """Before I froze it, everything required grad."""
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.requires_grad_(False).eval()
    features = torch.cat([backbone(batch) for batch in batches])
    for module, training in modes:
        module.training = training
    backbone.requires_grad_(True)
    return features


@wrong("head-features", "a head learns by its own weights")
def features_that_require_grad(backbone, batches):
    """To train on features, they must require grad."""
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


@right("cut-off-adapter")
def norm_layers_in_eval(adapter, backbone, head, x):
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
    backbone.requires_grad_(False)
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "in all of the backbone")
def if_it_requires_grad(adapter, backbone, head, x):
    """What is frozen is in eval mode."""
    if next(backbone.parameters()).requires_grad:
        backbone.eval().requires_grad_(False)
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "eval() holds the statistics, not the parameters")
def if_it_trains(adapter, backbone, head, x):
    """What is in eval mode is frozen."""
    if backbone.training:
        backbone.eval().requires_grad_(False)
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "neither in train nor in eval mode")
def norm_layers_of_the_first_level(adapter, backbone, head, x):
    """A model has its layers on one level."""
    for layer in backbone.children():
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.eval()
    backbone.requires_grad_(False)
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "is not iterable")
def layer_by_layer(adapter, backbone, head, x):
    """Every network is a Sequential."""
    backbone.requires_grad_(False).eval()
    hidden = adapter(x)
    for layer in backbone:
        hidden = layer(hidden)
    return head(hidden)


@wrong("cut-off-adapter", "gradient of adapter.weight is not what it was before the call")
def backward_of_its_own(adapter, backbone, head, x):
    """The function that computes the output calls backward, too."""
    backbone.requires_grad_(False).eval()
    output = head(backbone(adapter(x)))
    output.sum().backward(retain_graph=True)
    return output


@wrong("cut-off-adapter", "the adapter is in another mode now")
def everything_in_eval(adapter, backbone, head, x):
    """In eval mode nothing is lost: the layers that learn go on learning."""
    for part in (adapter, backbone, head):
        part.eval()
    backbone.requires_grad_(False)
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "not a torch.float64 tensor")
def more_exactly(adapter, backbone, head, x):
    """Gradients need double precision."""
    backbone.requires_grad_(False).eval()
    return head(backbone(adapter(x))).double()


@wrong("cut-off-adapter", "x is not what it was before")
def an_input_that_requires_grad(adapter, backbone, head, x):
    """A gradient comes back only if the input requires grad."""
    backbone.requires_grad_(False).eval()
    return head(backbone(adapter(x.requires_grad_(True))))


@wrong("cut-off-adapter", "adapter.weight has other values than before")
def a_step_by_hand(adapter, backbone, head, x):
    """The function that computes the output moves the weights, too."""
    backbone.requires_grad_(False).eval()
    output = head(backbone(adapter(x)))
    for parameter in [*adapter.parameters(), *head.parameters()]:
        parameter.data = parameter.data - 0.1
    return output


@wrong("cut-off-adapter", "1.running_mean is not what it was")
def statistics_reset(adapter, backbone, head, x):
    """Statistics have to be as in a new layer."""
    backbone.requires_grad_(False)
    output = head(backbone(adapter(x)))
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean = torch.zeros_like(module.running_mean)
    return output


@wrong("cut-off-adapter", "1.num_batches_tracked is not what it was")
def no_momentum(adapter, backbone, head, x):
    """The running mean and variance are all that BatchNorm keeps."""
    backbone.requires_grad_(False)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = 0.0
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "backbone.1.track_running_stats is not what it was before")
def no_tracking(adapter, backbone, head, x):
    """The switch for statistics is track_running_stats."""
    backbone.requires_grad_(False)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.track_running_stats = False
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "1.running_mean is not what it was")
def no_statistics(adapter, backbone, head, x):
    """Statistics that are not there cannot move."""
    backbone.requires_grad_(False)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "was not recorded, or was cut off")
def cut_behind(adapter, backbone, head, x):
    """detach() is how a part is kept as it is."""
    backbone.requires_grad_(False).eval()
    return head(backbone(adapter(x)).detach())


@wrong("cut-off-adapter", "adapter.bias has no gradient, though others of the adapter have one")
def bias_cut_off(adapter, backbone, head, x):
    """A bias is a constant."""
    backbone.requires_grad_(False).eval()
    return head(backbone(torch.nn.functional.linear(x, adapter.weight, adapter.bias.detach())))


@wrong("cut-off-adapter", "gradient of adapter.weight differs from")
def larger_gradient(adapter, backbone, head, x):
    """An adapter behind a frozen part needs a larger gradient."""
    backbone.requires_grad_(False).eval()
    hidden = adapter(x)
    hidden.register_hook(lambda gradient: gradient * 3)
    return head(backbone(hidden))


@right("head-features")
@torch.inference_mode(False)
def twin_without_flags(backbone, batches):
    twin = copy.deepcopy(backbone).requires_grad_(False)
    twin.train(False)
    return torch.vstack([twin(batch) for batch in batches])


@wrong("head-features", "module '0' was in eval mode before, and is in train mode now")
def modes_by_kind(backbone, batches):
    """Layers of one kind are in one mode."""
    modes = {type(module): module.training for module in backbone.modules()}
    backbone.eval()
    with torch.no_grad():
        features = torch.cat([backbone(batch) for batch in batches])
    for module in backbone.modules():
        module.training = modes[type(module)]
    return features


@wrong("head-features", "module '0' was in train mode before, and is in eval mode now")
def modes_of_norm_layers(backbone, batches):
    """Only BatchNorm has a mode that matters."""
    modes = [(m, m.training) for m in backbone.modules() if m is backbone or isinstance(m, torch.nn.BatchNorm1d)]
    backbone.eval()
    with torch.no_grad():
        features = torch.cat([backbone(batch) for batch in batches])
    for module, training in modes:
        module.training = training
    return features


@wrong("head-features", "the backbone itself was in train mode before, and is in eval mode now")
def modes_of_the_parts(backbone, batches):
    """The mode of a model is that of its layers."""
    modes = [(module, module.training) for _, module in list(backbone.named_modules())[1:]]
    backbone.eval()
    with torch.no_grad():
        features = torch.cat([backbone(batch) for batch in batches])
    for module, training in modes:
        module.training = training
    return features


@wrong("head-features", "moved: no_grad and inference_mode leave")
def nothing_to_do_in_eval(backbone, batches):
    """A model with training=False is in eval mode, all of it."""
    if backbone.training:
        return each_mode_noted(backbone, batches)
    with torch.no_grad():
        return torch.cat([backbone(batch) for batch in batches])


@wrong("head-features", "same number of dimensions")
def squeezed(backbone, batches):
    """squeeze() takes nothing away from a batch of features."""
    twin = copy.deepcopy(backbone).eval()
    with torch.no_grad():
        return torch.cat([twin(batch).squeeze() for batch in batches])


@wrong("head-features", "must match the existing size")
def four_rows_each(backbone, batches):
    """All batches but the last have the size of the first in the example."""
    twin, features = copy.deepcopy(backbone).eval(), torch.zeros(10, 4)
    with torch.no_grad():
        for number, batch in enumerate(batches):
            features[4 * number : 4 * number + len(batch)] = twin(batch)
    return features


@wrong("head-features", "0.weight is another object than before")
def parameters_replaced(backbone, batches):
    """A parameter that is made anew with the same numbers is the same."""
    features = each_mode_noted(backbone, batches)
    for module in backbone.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
    return features


@wrong("head-features", "_forward_hooks is not what it was before")
def hook_left_behind(backbone, batches):
    """A hook ends with the function that made it."""
    rows = []
    backbone.register_forward_hook(lambda module, args, output: rows.append(output))
    each_mode_noted(backbone, batches)
    return torch.cat(rows)


@wrong("head-features", "the gradient of 0.weight is not what it was before the call")
def gradients_cleared(backbone, batches):
    """Before a network runs, its gradients are cleared."""
    backbone.zero_grad()
    return each_mode_noted(backbone, batches)


@wrong("head-features", "the batches require grad now")
def batches_that_require_grad(backbone, batches):
    """A head learns only if the data requires grad."""
    for batch in batches:
        batch.requires_grad_()
    return each_mode_noted(backbone, batches)


MEMORY = torch.empty(100, 4)


@wrong("head-features", "changed in the next")
def memory_used_again(backbone, batches):
    """A slice of a tensor is a tensor of its own."""
    rows = sum(map(len, batches))
    MEMORY[:rows] = each_mode_noted(backbone, batches)
    return MEMORY[:rows]


@wrong("head-features", "leaves torch with another gradient mode")
def recording_on_at_the_end(backbone, batches):
    """Recording was on before, wherever I am called."""
    modes = [(module, module.training) for module in backbone.modules()]
    torch.set_grad_enabled(False)
    features = torch.cat([backbone.eval()(batch) for batch in batches])
    torch.set_grad_enabled(True)
    for module, training in modes:
        module.training = training
    return features


@wrong("head-features", "dropout is on")
def only_norm_layers_in_eval(backbone, batches):
    """BatchNorm is the only layer that has a mode."""
    twin = copy.deepcopy(backbone)
    for module in twin.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
    with torch.no_grad():
        return torch.cat([twin(batch) for batch in batches])


@wrong("head-features", "The statistics of each batch went into")
def only_dropout_in_eval(backbone, batches):
    """On a copy BatchNorm does no harm in train mode."""
    twin = copy.deepcopy(backbone).train()
    twin[3][2].eval()
    with torch.no_grad():
        return torch.cat([twin(batch) for batch in batches])


@wrong("head-features", "with nothing done to it after")
def made_positive(backbone, batches):
    """Features come after an activation."""
    return each_mode_noted(backbone, batches).relu()


@wrong("head-features", "1.running_mean has other values than before")
def statistics_of_a_new_layer(backbone, batches):
    """BatchNorm uses its statistics when they have been reset."""
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.reset_running_stats()
    return each_mode_noted(backbone, batches)


@right("cut-off-adapter")
def frozen_by_helpers(adapter, backbone, head, x):
    freeze(backbone)
    return head(backbone(adapter(x)))


@right("cut-off-adapter")
def held_whatever_train_says(adapter, backbone, head, x):
    backbone.requires_grad_(False).eval()
    backbone.train = lambda mode=True: backbone
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "another nn.BatchNorm1d.train")
def batchnorm_patched(adapter, backbone, head, x):
    """What is meant for one model may be set for the class."""
    torch.nn.BatchNorm1d.train = lambda self, mode=True: torch.nn.Module.train(self, False)
    backbone.train().requires_grad_(False)
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "another nn.functional.batch_norm")
def function_patched(adapter, backbone, head, x):
    """A function of torch may be replaced for a while, and the while has no end."""
    old = torch.nn.functional.batch_norm
    torch.nn.functional.batch_norm = lambda x, mean, var, weight, bias, training, *rest: old(
        x, mean, var, weight, bias, False, *rest
    )
    backbone.requires_grad_(False)
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "backbone.forward is another method than before")
def forward_replaced(adapter, backbone, head, x):
    """A part is kept as it is by a forward of one's own."""
    backbone.requires_grad_(False).eval()
    forward = backbone.forward
    backbone.forward = lambda x: forward(x)
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "a forward hook for all modules")
def hook_for_all(adapter, backbone, head, x):
    """A hook for all modules ends with the function that made it."""
    backbone.requires_grad_(False).eval()
    torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    return head(backbone(adapter(x)))


@wrong("head-features", "no_grad does not reach a thread")
def in_threads(backbone, batches):
    """Whatever is started from a block is in the block."""
    twin = copy.deepcopy(backbone).eval()
    with torch.no_grad(), ThreadPoolExecutor(2) as pool:
        return torch.cat(list(pool.map(twin, batches)))


@wrong("head-features", "all was recorded")
def in_threads_and_joined_outside(backbone, batches):
    """Whatever is started from a block is in the block, and joined wherever."""
    twin = copy.deepcopy(backbone).eval()
    with torch.no_grad(), ThreadPoolExecutor(2) as pool:
        features = list(pool.map(twin, batches))
    return torch.cat(features)


@wrong("head-features", "was recorded: to cut the result off comes too late")
def detached_in_threads(backbone, batches):
    """With detach() nothing is recorded, in a thread least of all."""
    twin = copy.deepcopy(backbone).eval()
    with ThreadPoolExecutor(2) as pool:
        return torch.cat(list(pool.map(lambda batch: twin(batch).detach(), batches)))


@wrong("head-features", "was recorded: to cut the result off comes too late")
def saved_elsewhere(backbone, batches):
    """What is kept somewhere else is not kept."""
    twin = copy.deepcopy(backbone).eval()
    with torch.autograd.graph.save_on_cpu():
        features = torch.cat([twin(batch) for batch in batches])
    return features.detach()


@right("head-features")
def no_grad_in_each_thread(backbone, batches):
    twin = copy.deepcopy(backbone).eval()
    with ThreadPoolExecutor(2) as pool:
        return torch.cat(list(pool.map(torch.no_grad()(twin), batches)))


@right("head-features")
def cached_by_helpers(backbone, batches):
    twin = copy.deepcopy(backbone).requires_grad_(False)
    return cache_features(twin, [(batch, torch.zeros(len(batch))) for batch in batches]).tensors[0]


@wrong("head-features", "another nn.Dropout.forward")
def dropout_patched(backbone, batches):
    """Dropout is switched off by taking its code away."""
    torch.nn.Dropout.forward = lambda self, x: x
    return each_mode_noted(backbone, batches)


@wrong("head-features", "backbone.forward is another method than before")
def forward_in_eval_mode(backbone, batches):
    """A forward of one's own makes the features the same for ever."""
    forward = backbone.forward

    def in_eval_mode(x):
        training = backbone.training
        backbone.eval()
        with torch.no_grad():
            result = forward(x)
        backbone.train(training)
        return result

    backbone.forward = in_eval_mode
    return torch.cat([backbone(batch) for batch in batches])


@wrong("cut-off-adapter", "the number of hooks on 0.weight is not what it was before")
def gradients_thrown_away(adapter, backbone, head, x):
    """What is thrown away after backward was never there."""
    backbone.eval()
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "modified by an inplace operation")
def statistics_copied_back(adapter, backbone, head, x):
    """Statistics that are put back in place were never moved."""
    backbone.requires_grad_(False)
    kept = [(buffer, buffer.clone()) for buffer in backbone.buffers()]
    output = head(backbone(adapter(x)))
    with torch.no_grad():
        for buffer, values in kept:
            buffer.copy_(values)
    return output


@right("head-features")
def frozen_twin_for_features(backbone, batches):
    twin = copy.deepcopy(backbone)
    freeze(twin)
    return torch.cat([twin(batch) for batch in batches])


@right("head-features")
def decorated_generator(backbone, batches):
    twin = copy.deepcopy(backbone).eval()

    @torch.no_grad()
    def outputs():
        for batch in batches:
            yield twin(batch)

    return torch.cat(list(outputs()))


@wrong("head-features", "too late")
def recorded_inside_no_grad(backbone, batches):
    """The outermost block decides."""
    twin = copy.deepcopy(backbone).eval()
    with torch.no_grad():
        with torch.enable_grad():
            features = [twin(batch) for batch in batches]
        return torch.cat(features)


@wrong("head-features", "another nn.Dropout.p")
def class_attribute(backbone, batches):
    """An attribute of the class is the one that counts."""
    torch.nn.Dropout.p = 0.0
    return each_mode_noted(backbone, batches)


@right("cut-off-adapter")
def one_sequential(adapter, backbone, head, x):
    return torch.nn.Sequential(adapter, backbone.eval().requires_grad_(False), head)(x)


@right("cut-off-adapter")
def checkpointed(adapter, backbone, head, x):
    backbone.requires_grad_(False).eval()
    return head(checkpoint(backbone, adapter(x), use_reentrant=False))


@right("cut-off-adapter")
def frozen_twin_in_train_mode(adapter, backbone, head, x):
    return head(copy.deepcopy(backbone).requires_grad_(False)(adapter(x)))


@right("cut-off-adapter")
def backward_written_by_hand(adapter, backbone, head, x):
    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden):
            with torch.enable_grad():
                ctx.hidden = hidden.detach().requires_grad_()
                ctx.features = backbone(ctx.hidden)
            return ctx.features.detach()

        @staticmethod
        def backward(ctx, gradient):
            return torch.autograd.grad(ctx.features, ctx.hidden, gradient)[0]

    backbone.eval()
    return head(Through.apply(adapter(x)))


@right("cut-off-adapter")
def parameters_detached_in_place(adapter, backbone, head, x):
    backbone.eval()
    for parameter in backbone.parameters():
        parameter.detach_()
    return head(backbone.forward(adapter(x)))


@right("cut-off-adapter")
def no_tracking_for_a_while(adapter, backbone, head, x):
    backbone.requires_grad_(False)
    norms = [module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    for norm in norms:
        norm.track_running_stats = False
    features = backbone(adapter(x))
    for norm in norms:
        norm.track_running_stats = True
    return head(features)


@right("cut-off-adapter")
def saved_and_loaded(adapter, backbone, head, x):
    file = io.BytesIO()
    torch.save(backbone, file)
    file.seek(0)
    twin = torch.load(file, weights_only=False).eval().requires_grad_(False)
    return head(twin(adapter(x)))


@right("cut-off-adapter")
def frozen_and_its_gradients_cleared(adapter, backbone, head, x):
    backbone.requires_grad_(False).eval()
    backbone.zero_grad()
    return head(backbone(adapter(x)))


@right("cut-off-adapter")
def flags_and_modes_of_this_run_only(adapter, backbone, head, x):
    modes = {module: module.training for module in backbone.modules()}
    flags = {parameter: parameter.requires_grad for parameter in backbone.parameters()}
    backbone.eval().requires_grad_(False)
    try:
        features = backbone(adapter(x))
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, flag in flags.items():
            parameter.requires_grad = flag
    return head(features)


@wrong("cut-off-adapter", "all from the adapter to the head has to be recorded")
def flag_set_again_in_front(adapter, backbone, head, x):
    """A tensor that is detached and requires grad again is connected again."""
    backbone.requires_grad_(False).eval()
    return head(backbone(adapter(x).detach().requires_grad_()))


@wrong("cut-off-adapter", "does not bring the way back")
def flag_of_the_output(adapter, backbone, head, x):
    """backward() needs a result that requires grad, and nothing else."""
    with torch.no_grad():
        output = head(backbone(adapter(x)))
    return output.requires_grad_()


@wrong("cut-off-adapter", "does not bring the way back")
def clone_of_inference_that_requires_grad(adapter, backbone, head, x):
    """A clone is an ordinary tensor, so the gradient passes."""
    with torch.inference_mode():
        features = backbone.eval()(adapter(x))
    return head(features.clone().requires_grad_())


@wrong("cut-off-adapter", "what ran is a copy of it")
def all_copied(adapter, backbone, head, x):
    """On a copy nothing can be left changed."""
    model = copy.deepcopy(torch.nn.Sequential(adapter, backbone, head))
    model[1].requires_grad_(False).eval()
    return model(x)


@wrong("cut-off-adapter", "backbone.0.weight has a gradient too")
def attribute_of_the_module(adapter, backbone, head, x):
    """A module has a flag."""
    backbone.requires_grad = False
    backbone.eval()
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "backbone.0.weight has a gradient too")
def names_detached(adapter, backbone, head, x):
    """A name in a loop is the parameter."""
    backbone.eval()
    for parameter in backbone.parameters():
        parameter = parameter.detach()
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "backbone.0.bias has a gradient too")
def weights_alone(adapter, backbone, head, x):
    """The parameters of a network are its weights."""
    backbone.eval()
    for name, parameter in backbone.named_parameters():
        if "weight" in name:
            parameter.requires_grad = False
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "backbone.1.weight has a gradient too")
def linear_layers_alone(adapter, backbone, head, x):
    """eval() freezes BatchNorm."""
    backbone.eval()
    for module in backbone.modules():
        if isinstance(module, torch.nn.Linear):
            module.requires_grad_(False)
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "gradient of adapter.weight differs from")
def added_times_zero(adapter, backbone, head, x):
    """Any way back to the adapter will do."""
    hidden = adapter(x)
    with torch.no_grad():
        features = backbone.eval()(hidden)
    return head(features + hidden * 0)


@wrong("cut-off-adapter", "1.running_mean is not what it was")
def eval_too_early(adapter, backbone, head, x):
    """eval() is over before the backbone runs."""
    training = backbone.training
    backbone.requires_grad_(False).eval()
    hidden = adapter(x)
    backbone.train(training)
    return head(backbone(hidden))


@wrong("cut-off-adapter", "1.affine is not what it was")
def no_affine(adapter, backbone, head, x):
    """affine is the flag of BatchNorm's parameters."""
    backbone.requires_grad_(False).eval()
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.affine = False
    return head(backbone(adapter(x)))


@wrong("cut-off-adapter", "0.weight is another object than before")
def state_assigned(adapter, backbone, head, x):
    """A state that is put back leaves everything as it was."""
    backbone.requires_grad_(False)
    kept = copy.deepcopy(backbone.state_dict())
    output = head(backbone(adapter(x)))
    backbone.load_state_dict(kept, assign=True)
    return output


@wrong("cut-off-adapter", "not a tuple")
def features_too(adapter, backbone, head, x):
    """More than was wanted does no harm."""
    features = backbone.requires_grad_(False).eval()(adapter(x))
    return head(features), features


@right("head-features")
def row_by_row(backbone, batches):
    twin = copy.deepcopy(backbone).eval()
    with torch.no_grad():
        return torch.stack([twin(row[None])[0] for batch in batches for row in batch])


@right("head-features")
def through_numpy(backbone, batches):
    twin = copy.deepcopy(backbone).eval()
    with torch.inference_mode():
        features = torch.cat([twin(batch) for batch in batches])
    return torch.from_numpy(features.numpy())


@right("head-features")
def joined_outside_of_inference(backbone, batches):
    twin = copy.deepcopy(backbone).eval()
    with torch.inference_mode():
        features = [twin(batch) for batch in batches]
    return torch.cat(features)


@right("head-features")
def deep_copy_of_inference(backbone, batches):
    twin = copy.deepcopy(backbone).eval()
    with torch.inference_mode():
        features = torch.cat([twin(batch) for batch in batches])
    return copy.deepcopy(features)


@right("head-features")
def with_detached_tensors(backbone, batches):
    modes = {name: module.training for name, module in backbone.named_modules()}
    backbone.eval()
    state = {name: value.detach() for name, value in backbone.state_dict().items()}
    features = torch.cat([functional_call(backbone, state, batch) for batch in batches])
    for name, module in backbone.named_modules():
        module.training = modes[name]
    return features


@right("head-features")
@torch.no_grad
def decorated_without_parentheses(backbone, batches):
    return torch.concat(list(map(copy.deepcopy(backbone).eval(), batches)))


@right("head-features")
def mapped_over_rows(backbone, batches):
    twin = copy.deepcopy(backbone).eval()
    with torch.no_grad():
        return torch.func.vmap(lambda row: twin(row[None])[0])(torch.cat(batches))


@right("head-features")
def hooked_and_unhooked(backbone, batches):
    twin, rows = copy.deepcopy(backbone).eval(), []
    handle = twin.register_forward_hook(lambda module, args, output: rows.append(output))
    with torch.no_grad():
        for batch in batches:
            twin(batch)
    handle.remove()
    return torch.cat(rows)


@wrong("head-features", "module '0' was in eval mode before, and is in train mode now")
def modes_put_back_from_the_inside(backbone, batches):
    """In which order modes are put back does not matter."""
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    with torch.no_grad():
        features = torch.cat([backbone(batch) for batch in batches])
    for module, training in reversed(modes):
        module.train(training)
    return features


@wrong("head-features", "is it on at the moment")
def run_when_it_is_read(backbone, batches):
    """What is written in the block runs in the block."""
    twin = copy.deepcopy(backbone).eval()
    with torch.no_grad():
        features = (twin(batch) for batch in batches)
    return torch.cat(list(features))


@wrong("head-features", "nor what runs after its block")
def mapped_later(backbone, batches):
    """map() runs where it stands."""
    twin = copy.deepcopy(backbone).eval()
    with torch.no_grad():
        features = map(twin, batches)
    return torch.cat(list(features)).detach()


@wrong("head-features", "all was recorded")
def on_a_line_of_its_own(backbone, batches):
    """no_grad() switches recording off from here on."""
    twin = copy.deepcopy(backbone).eval()
    torch.no_grad()
    return torch.cat([twin(batch) for batch in batches])


@wrong("head-features", "all was recorded")
def copies_of_the_parameters_detached(backbone, batches):
    """detach() changes the tensor that it is called on."""
    twin = copy.deepcopy(backbone).eval()
    for parameter in twin.parameters():
        parameter.detach()
    return torch.cat([twin(batch) for batch in batches])


@wrong("head-features", "module '0' was in train mode before, and is in eval mode now")
def shallow_copy(backbone, batches):
    """copy.copy() copies a model."""
    twin = copy.copy(backbone).eval()
    with torch.no_grad():
        return torch.cat([twin(batch) for batch in batches])


@wrong("head-features", "change requires_grad flags of leaf variables")
def flag_of_the_result(backbone, batches):
    """The flag of a result can be turned off."""
    twin = copy.deepcopy(backbone).eval()
    return torch.cat([twin(batch) for batch in batches]).requires_grad_(False)


@wrong("head-features", "are torch.float32")
def made_of_numbers(backbone, batches):
    """Numbers of Python carry their dtype."""
    twin = copy.deepcopy(backbone).eval()
    with torch.no_grad():
        return torch.tensor([row for batch in batches for row in twin(batch).tolist()])


@wrong("head-features", "are torch.float32")
def filled_into_zeros(backbone, batches):
    """Features are float32."""
    twin, start = copy.deepcopy(backbone).eval(), 0
    features = torch.zeros(sum(map(len, batches)), 4)
    with torch.no_grad():
        for batch in batches:
            features[start : start + len(batch)] = twin(batch)
            start += len(batch)
    return features


@wrong("head-features", "are torch.float64")
def in_double_precision(backbone, batches):
    """More digits are better."""
    twin = copy.deepcopy(backbone).double().eval()
    with torch.no_grad():
        return torch.cat([twin(batch.double()) for batch in batches])


@wrong("head-features", "should be (10, 4), a row for each row")
def a_mean_for_each_batch(backbone, batches):
    """Features of a batch are one row."""
    twin = copy.deepcopy(backbone).eval()
    with torch.no_grad():
        return torch.stack([twin(batch).mean(0) for batch in batches])


@wrong("head-features", "dropout is on")
def state_put_back(backbone, batches):
    """What BatchNorm has moved is put back, and that is all that train mode does."""
    kept = copy.deepcopy(backbone.state_dict())
    with torch.no_grad():
        features = torch.cat([backbone(batch) for batch in batches])
    backbone.load_state_dict(kept)
    return features


@wrong("head-features", "was not all in eval mode before, and it is now")
def modes_in_the_state(backbone, batches):
    """The mode is in the state_dict."""
    kept = copy.deepcopy(backbone.state_dict())
    features = torch.no_grad()(lambda: torch.cat([backbone.eval()(batch) for batch in batches]))()
    backbone.load_state_dict(kept)
    return features


@wrong("head-features", "batches are others than before")
def batches_used_up(backbone, batches):
    """A list that was given is mine."""
    twin, features = copy.deepcopy(backbone).eval(), []
    with torch.no_grad():
        while batches:
            features.append(twin(batches.pop(0)))
    return torch.cat(features)


@wrong("head-features", "backbone.train is another method than before")
def frozen_for_good(backbone, batches):
    """A backbone that is only read may be frozen for good."""
    freeze(backbone)
    return torch.cat([backbone(batch) for batch in batches])


@wrong("head-features", "with nothing done to it after")
def normalized(backbone, batches):
    """Features should have mean 0."""
    features = each_mode_noted(backbone, batches)
    return features - features.mean(0)


@wrong("head-features", "these are inference tensors")
def enabled_inside_inference(backbone, batches):
    """enable_grad undoes inference_mode."""
    twin = copy.deepcopy(backbone).eval()
    with torch.inference_mode(), torch.enable_grad():
        return torch.cat([twin(batch) for batch in batches])


wrong("which-switch", 'takes True, False or "raises"')(
    {row: str(value) for row, value in SWITCHES.items()}, "A table holds words."
)
