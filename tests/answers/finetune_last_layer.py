"""Answers to the exercises of the lesson on fine-tuning the last layer."""

import copy

import torch
from torch import nn
from torch.utils.data import DataLoader

from helpers import cache_features, freeze
from tests.tools.exercises import Answers

answers = Answers()
right, wrong = answers.right, answers.wrong

MOVES = {
    "train(): bn1.weight": False,
    "train(): bn1.running_var": True,
    "eval(): fc.weight": True,
    "eval(), then train(): bn1.running_mean": True,
    "freeze, then train(): bn1.running_mean": False,
    "old optimizer, eval(): fc.weight": False,
    "all, decay, eval(): conv1.weight": False,
    "flags last, eval(): fc.weight": "raises",
}
right("which-entries-move")(MOVES)
right("which-entries-move")(dict(reversed(MOVES.items())))
right("which-entries-move")({**MOVES})
wrong("which-entries-move", "frozen, it gets no gradient")(
    MOVES | {"train(): bn1.weight": True}, "In train mode all of a BatchNorm layer moves."
)
wrong("which-entries-move", "No flag reaches a buffer")(
    MOVES | {"train(): bn1.running_var": False, "eval(), then train(): bn1.running_mean": False},
    "Frozen is frozen: the flag holds all of a layer.",
)
wrong("which-entries-move", "switches off no gradient")(
    MOVES | {"eval(): fc.weight": False}, "Nothing is trained in eval mode."
)
wrong("which-entries-move", "undoes the eval() before")(
    MOVES | {"eval(), then train(): bn1.running_mean": False}, "A layer in eval mode stays there until I change it."
)
wrong("which-entries-move", "whoever calls train()")(
    MOVES | {"freeze, then train(): bn1.running_mean": True}, "train() undoes every freezing."
)
wrong("which-entries-move", "so it holds the old one")(
    MOVES | {"old optimizer, eval(): fc.weight": True}, "An optimizer finds parameters by their names."
)
wrong("which-entries-move", "what has none the optimizer skips")(
    MOVES | {"all, decay, eval(): conv1.weight": True}, "Weight decay needs no gradient."
)
wrong("which-entries-move", "Does backward() pass?")(
    MOVES | {"flags last, eval(): fc.weight": False}, "With everything frozen a step does nothing."
)
wrong("which-entries-move", "it is frozen with the rest")(
    MOVES | {"flags last, eval(): fc.weight": True}, "The order of freezing and replacing does not matter."
)


def epochs(model, optimizer, batches, number=2):
    """The loop of the exercise, in the mode that the model is in."""
    for _ in range(number):
        for images, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()


@right("drifting-backbone")
def eval_mode(model, optimizer, batches):
    model.eval()
    epochs(model, optimizer, batches)


@right("drifting-backbone")
def norms_back_each_epoch(model, optimizer, batches):
    for _ in range(2):
        model.train()
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
        epochs(model, optimizer, batches, 1)


@right("drifting-backbone")
def held_by_freeze(model, optimizer, batches):
    freeze(model, "[!f]*")
    for _ in range(2):
        model.train()
        epochs(model, optimizer, batches, 1)


@right("drifting-backbone")
def override_on_the_instance(model, optimizer, batches):
    model.train = lambda mode=True: type(model).train(model, False)
    for _ in range(2):
        model.train()
        epochs(model, optimizer, batches, 1)


@right("drifting-backbone")
def cached(model, optimizer, batches):
    head, model.fc = model.fc, nn.Identity()
    with torch.no_grad():
        features = [(model.eval()(images), labels) for images, labels in batches]
    model.fc = head
    epochs(head, optimizer, features)


@right("drifting-backbone")
def a_twin_gives_the_features(model, optimizer, batches):
    backbone = copy.deepcopy(model).eval()
    backbone.fc = nn.Identity()
    epochs(nn.Sequential(backbone, model.fc), optimizer, batches)


@right("drifting-backbone")
def functional_norms(model, optimizer, batches):
    for name, part in model.named_children():
        if name != "fc":
            part.eval()
            part.train = lambda mode=True: None
    model.train()
    epochs(model, optimizer, batches)


@wrong("drifting-backbone", "neither a flag nor an optimizer stops them")
def flags_once_more(model, optimizer, batches):
    """What drifts is not frozen well enough."""
    for _ in range(2):
        model.train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("fc."))
        epochs(model, optimizer, batches, 1)


@wrong("drifting-backbone", "neither a flag nor an optimizer stops them")
def eval_only_before(model, optimizer, batches):
    """eval() lasts until the end of training."""
    model.eval()
    for _ in range(2):
        model.train()
        epochs(model, optimizer, batches, 1)


@wrong("drifting-backbone", "neither a flag nor an optimizer stops them")
def under_no_grad(model, optimizer, batches):
    """no_grad keeps a forward pass from changing anything."""
    head, model.fc = model.fc, nn.Identity()
    model.train()
    with torch.no_grad():
        features = [(model(images), labels) for images, labels in batches]
    model.fc = head
    epochs(head, optimizer, features)


@wrong("drifting-backbone", "norm layers in every block")
def first_norm_only(model, optimizer, batches):
    """The network has one BatchNorm layer, bn1."""
    for _ in range(2):
        model.train()
        model.bn1.eval()
        epochs(model, optimizer, batches, 1)


@wrong("drifting-backbone", "kept by momentum=0 or put back")
def momentum_zero(model, optimizer, batches):
    """A BatchNorm layer without momentum is frozen."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.0
    model.train()
    epochs(model, optimizer, batches)


@wrong("drifting-backbone", "normalized by the batch at hand")
def no_tracking(model, optimizer, batches):
    """A BatchNorm layer that tracks nothing is frozen."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats = False
    model.train()
    epochs(model, optimizer, batches)


@wrong("drifting-backbone", "normalized by the batch at hand")
def put_back_afterwards(model, optimizer, batches):
    """Only what is there in the end counts."""
    before = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("fc.")}
    model.train()
    epochs(model, optimizer, batches)
    model.load_state_dict(before, strict=False)


@wrong("drifting-backbone", "came or went")
def without_statistics(model, optimizer, batches):
    """Without running statistics nothing can drift."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = part.running_var = part.num_batches_tracked = None
    model.train()
    epochs(model, optimizer, batches)


@wrong("drifting-backbone", "and none of the head did")
def nothing_is_trained(model, optimizer, batches):
    """In eval mode nothing is trained, so no step is needed."""
    model.eval()
    for images, _ in batches:
        model(images)


@wrong("drifting-backbone", "one epoch of the two")
def one_epoch(model, optimizer, batches):
    """train() is what makes it drift in the second epoch, so one must do."""
    model.eval()
    epochs(model, optimizer, batches, 1)


@wrong("drifting-backbone", "to be model.fc in the end")
def head_left_out(model, optimizer, batches):
    """A layer that was taken out of a model is still in it."""
    head, model.fc = model.fc, nn.Identity()
    model.eval()
    epochs(head, optimizer, [(model(images), labels) for images, labels in batches])


@wrong("drifting-backbone", "does not require grad")
def frozen_with_the_head(model, optimizer, batches):
    """freeze() without names leaves the head alone."""
    freeze(model)
    epochs(model, optimizer, batches)


def steps(head, features, labels, optimizer, number):
    """Steps on all images at once."""
    for _ in range(number):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features), labels).backward()
        optimizer.step()


@right("head-for-new-digits")
def as_in_the_lesson(model, train):
    model.requires_grad_(False).eval()
    model.fc = nn.Linear(model.fc.in_features, 5)
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=1e-2, momentum=0.9)
    images, labels = train.tensors
    for _ in range(60):
        batch = torch.randint(len(labels), (16,))
        steps(model, images[batch], labels[batch], optimizer, 1)


@right("head-for-new-digits")
def on_cached_features(model, train):
    freeze(model)
    model.fc = nn.Identity()
    features, labels = cache_features(model, DataLoader(train, batch_size=50)).tensors
    model.fc = nn.Linear(64, 5)
    steps(model.fc, features, labels, torch.optim.Adam(model.fc.parameters(), lr=1e-2), 200)


@right("head-for-new-digits")
def nothing_frozen_but_only_the_head_held(model, train):
    model.fc = nn.Linear(64, 5)
    model.eval()
    steps(model, *train.tensors, torch.optim.Adam(model.fc.parameters(), lr=1e-2), 40)
    return model


@right("head-for-new-digits")
def least_squares(model, train):
    images, labels = train.tensors
    model.fc = nn.Identity()
    with torch.no_grad():
        features = model.eval()(images)
        model.fc = nn.Linear(64, 5, bias=False)
        wanted = nn.functional.one_hot(labels, 5).to(features.dtype)
        within = features.T @ features + torch.eye(64)
        model.fc.weight.copy_(torch.linalg.solve(within, features.T @ wanted).T)


@right("head-for-new-digits")
def two_layers(model, train):
    freeze(model)
    model.fc = nn.Sequential(nn.Dropout(0.2), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5))
    model.train()
    steps(model, *train.tensors, torch.optim.Adam(model.fc.parameters(), lr=1e-2), 60)


@right("head-for-new-digits")
def put_back_in_the_end(model, train):
    """Asked for is what the model is in the end, and there it reads in eval mode."""
    before = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("fc.")}
    model.requires_grad_(False)
    model.fc = nn.Linear(64, 5)
    steps(model, *train.tensors, torch.optim.Adam(model.fc.parameters(), lr=1e-2), 60)
    model.load_state_dict(before, strict=False)


@right("head-for-new-digits")
def a_copy_of_the_old_head(model, train):
    freeze(model)
    model.fc = copy.deepcopy(model.fc).requires_grad_(True)
    steps(model, *train.tensors, torch.optim.Adam(model.fc.parameters(), lr=1e-2), 60)


@wrong("head-for-new-digits", "The old head was trained in place of a new one")
def the_old_head_trained(model, train):
    """Five classes are five classes: the old layer fits."""
    model.requires_grad_(False).eval()
    model.fc.requires_grad_(True)
    steps(model, *train.tensors, torch.optim.Adam(model.fc.parameters(), lr=1e-2), 60)


@wrong("head-for-new-digits", "The old head was trained in place of a new one")
def the_old_weight_in_a_new_layer(model, train):
    """A new layer around the old weight is a new head."""
    freeze(model)
    old, model.fc = model.fc, nn.Linear(64, 5)
    model.fc.weight = old.weight.requires_grad_(True)
    steps(model, *train.tensors, torch.optim.Adam(model.fc.parameters(), lr=1e-2), 60)


@wrong("head-for-new-digits", "it is None: put the head back")
def no_head_left(model, train):
    """The head that was trained need not be in the model."""
    freeze(model)
    model.fc = nn.Identity()
    features, labels = model(train.tensors[0]), train.tensors[1]
    head, model.fc = nn.Linear(64, 5), None
    steps(head, features, labels, torch.optim.Adam(head.parameters(), lr=1e-2), 60)


@wrong("head-for-new-digits", "same dtype")
def half_precision(model, train):
    """A head in half precision fits any backbone."""
    freeze(model)
    model.fc = nn.Identity()
    features, labels = model(train.tensors[0]).bfloat16(), train.tensors[1]
    model.fc = nn.Linear(64, 5, dtype=torch.bfloat16)
    steps(model.fc, features, labels, torch.optim.Adam(model.fc.parameters(), lr=1e-2), 60)


@wrong("drifting-backbone", "it is None: put the head back")
def the_head_taken_out(model, optimizer, batches):
    """With the head taken out, the backbone is safe."""
    head, model.fc = model.fc, nn.Identity()
    model.eval()
    epochs(head, optimizer, [(model(images), labels) for images, labels in batches])
    model.fc = None


@wrong("head-for-new-digits", "They are buffers")
def in_train_mode(model, train):
    """Flags off is frozen."""
    model.requires_grad_(False)
    model.fc = nn.Linear(64, 5)
    model.train()
    steps(model, *train.tensors, torch.optim.SGD(model.fc.parameters(), lr=1e-2, momentum=0.9), 60)


@wrong("head-for-new-digits", "A parameter moves if it gets a gradient")
def not_frozen(model, train):
    """A pretrained network is frozen as it comes."""
    model.fc = nn.Linear(64, 5)
    model.eval()
    steps(model, *train.tensors, torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9), 30)


@wrong("head-for-new-digits", "The model guesses")
def optimizer_first(model, train):
    """The optimizer follows the model."""
    freeze(model)
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=1e-2, momentum=0.9)
    model.fc = nn.Linear(64, 5)
    steps(model, *train.tensors, optimizer, 60)


@wrong("head-for-new-digits", "does not require grad")
def frozen_last(model, train):
    """The new head is not part of what freeze() freezes."""
    model.fc = nn.Linear(64, 5)
    freeze(model)
    steps(model, *train.tensors, torch.optim.SGD(model.fc.parameters(), lr=1e-2, momentum=0.9), 60)


@wrong("head-for-new-digits", "Either take more steps, or others in size")
def too_few(model, train):
    """A head on ready features is trained in a few steps of any size."""
    freeze(model)
    model.fc = nn.Linear(64, 5)
    steps(model, *train.tensors, torch.optim.SGD(model.fc.parameters(), lr=1e-2), 25)


@wrong("head-for-new-digits", "Change it, and not a copy")
def a_copy(model, train):
    """A function should return a new model and leave the old one alone."""
    model = copy.deepcopy(model)
    freeze(model)
    model.fc = nn.Linear(64, 5)
    steps(model, *train.tensors, torch.optim.SGD(model.fc.parameters(), lr=1e-2, momentum=0.9), 60)
    return model


@wrong("head-for-new-digits", "has its old head")
def the_head_in_another_network(model, train):
    """A head behind the backbone is a part of the backbone's model."""
    freeze(model)
    with_head = nn.Sequential(model, nn.Linear(5, 5))
    steps(with_head, *train.tensors, torch.optim.Adam(with_head[1].parameters(), lr=1e-2), 60)


@wrong("head-for-new-digits", "not finite")
def logarithm_of_softmax(model, train):
    """cross_entropy is the logarithm of softmax, so it may be written out, with steps of any size."""
    freeze(model)
    model.fc = nn.Linear(64, 5)
    images, labels = train.tensors
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=100.0)
    for _ in range(20):
        optimizer.zero_grad()
        (-model(images).softmax(1)[range(len(labels)), labels].log().mean()).backward()
        optimizer.step()


@wrong("head-for-new-digits", "work on copies")
def images_changed(model, train):
    """The images are mine."""
    train.tensors[0].mul_(2).sub_(1)
    as_in_the_lesson(model, train)


@wrong("drifting-backbone", "a setting or a hook was left")
def other_eps(model, optimizer, batches):
    """What the state_dict does not have does not count."""
    model.eval()
    epochs(model, optimizer, batches)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 1.0


@wrong("drifting-backbone", "conv1.weight among them")
def everything_trained(model, optimizer, batches):
    """To train well, train everything."""
    model.requires_grad_(True)
    epochs(model, torch.optim.SGD(model.parameters(), lr=0.1), batches)


@wrong("head-for-new-digits", "a setting or a hook was left")
def another_activation(model, train):
    """Only numbers count as the backbone."""
    model.relu = nn.Tanh()
    as_in_the_lesson(model, train)


@wrong("head-for-new-digits", "a setting or a hook was left")
def by_position(model, train):
    """The images come in the order of the digits."""
    as_in_the_lesson(model, train)
    model.forward = lambda x: nn.functional.one_hot(torch.arange(len(x)) * 5 // len(x), 5).double()


wrong("which-entries-move", "SGD takes frozen parameters")(
    MOVES | {"all, decay, eval(): conv1.weight": "raises"}, "An optimizer refuses frozen parameters."
)


RAISES = {
    "train(): bn1.weight": "requires grad, so backward() has something to do",
    "train(): bn1.running_var": "nothing raises",
    "eval(): fc.weight": "work as ever",
    "eval(), then train(): bn1.running_mean": "The last call counts",
    "freeze, then train(): bn1.running_mean": "The head came after freeze()",
    "old optimizer, eval(): fc.weight": "does not notice",
}
for row, sentence in RAISES.items():
    wrong("which-entries-move", sentence)(MOVES | {row: "raises"}, f"{row} is an error.")


@right("drifting-backbone")
def override_that_returns_nothing(model, optimizer, batches):
    """What train() returns is used by eval() only."""
    model.eval()
    model.train = lambda mode=True: None
    epochs(model, optimizer, batches)


@right("drifting-backbone")
def flags_and_modes_by_hand(model, optimizer, batches):
    for _ in range(2):
        model.train()
        for name, part in model.named_modules():
            part.training = name == "fc"
        epochs(model, optimizer, batches, 1)


@wrong("drifting-backbone", "parameters of the backbone require grad now")
def unfrozen_and_left_so(model, optimizer, batches):
    """The optimizer decides, so the flags do not matter."""
    model.requires_grad_(True).eval()
    epochs(model, optimizer, batches)


@wrong("drifting-backbone", "BatchNorm2d.train")
def patched_for_the_whole_kernel(model, optimizer, batches):
    """A layer that should never train is best mended in its class."""
    nn.BatchNorm2d.train = lambda self, mode=True: nn.Module.train(self, False)
    for _ in range(2):
        model.train()
        epochs(model, optimizer, batches, 1)


@wrong("drifting-backbone", "functional.batch_norm")
def patched_function(model, optimizer, batches):
    """A function can be mended where it is."""
    old = nn.functional.batch_norm
    nn.functional.batch_norm = lambda x, mean, var, w, b, training, *rest: old(x, mean, var, w, b, False, *rest)
    epochs(model, optimizer, batches)


@wrong("drifting-backbone", "hook for all modules")
def hook_on_everything(model, optimizer, batches):
    """A hook that is registered once serves all models."""
    model.eval()
    torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
    epochs(model, optimizer, batches)


@right("adapt-then-hold")
def many_passes(backbone, images):
    for _ in range(60):
        backbone.train()(images)
    freeze(backbone)


@right("adapt-then-hold")
def in_batches(backbone, images):
    with torch.no_grad():
        for _ in range(30):
            for batch in images[torch.randperm(len(images))].split(25):
                backbone(batch)
    freeze(backbone)


@right("adapt-then-hold")
def all_at_once(backbone, images):
    norms = [part for part in backbone.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        backbone(images)
    for norm in norms:
        norm.momentum = 0.1
    return freeze(backbone)


@right("adapt-then-hold")
def held_by_an_override(backbone, images):
    backbone.requires_grad_(False)
    for _ in range(60):
        backbone(images)
    backbone.eval()
    backbone.train = lambda mode=True: backbone


@wrong("adapt-then-hold", "are as they were")
def frozen_first(backbone, images):
    """Freeze first, as always."""
    freeze(backbone)
    for _ in range(60):
        backbone.train()(images)


@wrong("adapt-then-hold", "are as they were")
def in_eval_mode(backbone, images):
    """Statistics are made for eval mode, so they move in it."""
    backbone.eval()
    for _ in range(60):
        backbone(images)
    freeze(backbone)


@wrong("adapt-then-hold", "are not yet those of the images")
def one_pass(backbone, images):
    """One pass shows the layers all images."""
    with torch.no_grad():
        backbone.train()(images)
    freeze(backbone)


@wrong("adapt-then-hold", "are not yet those of the images")
def only_the_first_layer(backbone, images):
    """The statistics are in bn1."""
    for part in backbone.modules():
        part.training = part is backbone.bn1
    for _ in range(60):
        backbone(images)
    freeze(backbone)


@wrong("adapt-then-hold", "parameters require grad")
def held_and_trainable(backbone, images):
    """The mode is what holds, so flags may be what they are."""
    for _ in range(60):
        backbone(images)
    backbone.eval()
    backbone.train = lambda mode=True: backbone


@wrong("adapt-then-hold", "move them again")
def eval_mode_at_the_end(backbone, images):
    """eval() lasts."""
    backbone.requires_grad_(False)
    for _ in range(60):
        backbone(images)
    backbone.eval()


@wrong("adapt-then-hold", "depend on the images beside it")
def without_tracking(backbone, images):
    """A layer that tracks nothing is held."""
    backbone.requires_grad_(False)
    for _ in range(60):
        backbone(images)
    for part in backbone.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats = False


@wrong("adapt-then-hold", "is a parameter, and it has other numbers")
def trained_to_adapt(backbone, images):
    """To adapt is to train."""
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        backbone(images).square().mean().backward()
        optimizer.step()
    freeze(backbone)


@wrong("adapt-then-hold", "work on copies")
def images_brightened(backbone, images):
    """Dim images are mended by making them bright."""
    images.div_(0.3)
    freeze(backbone)


@wrong("adapt-then-hold", "came or went")
def statistics_thrown_away(backbone, images):
    """Without running statistics nothing can drift."""
    for part in backbone.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = part.running_var = part.num_batches_tracked = None
    freeze(backbone)


@right("head-for-new-digits")
def train_overridden_on_the_model(model, train):
    model.requires_grad_(False)
    model.fc = nn.Linear(64, 5)

    def train_head_only(mode=True):
        for part in model.children():
            part.train(False)
        model.fc.train(mode)
        return model

    model.train = train_head_only
    steps(model.train(), *train.tensors, torch.optim.SGD(model.fc.parameters(), lr=1e-2, momentum=0.9), 60)


@right("head-for-new-digits")
def train_that_is_always_eval(model, train):
    model.train = lambda mode=True: type(model).train(model, False)
    model.train().requires_grad_(False)
    model.fc = nn.Linear(64, 5)
    steps(model, *train.tensors, torch.optim.Adam(model.fc.parameters(), lr=1e-2), 60)


@right("head-for-new-digits")
def a_head_with_batch_norm_left_in_train_mode(model, train):
    freeze(model)
    model.fc = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 5))
    steps(model.train(), *train.tensors, torch.optim.Adam(model.fc.parameters(), lr=1e-2), 100)


@wrong("head-for-new-digits", "has no parameters")
def nearest_neighbor(model, train):
    """A layer that remembers the images need not be trained."""
    freeze(model)
    model.fc = nn.Identity()
    stored, labels = cache_features(model, DataLoader(train, batch_size=50)).tensors

    class Nearest(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(labels[torch.cdist(x, stored).argmin(1)], 5).to(x.dtype)

    model.fc = Nearest()


@wrong("head-for-new-digits", "BatchNorm2d.train")
def the_class_patched(model, train):
    """BatchNorm should never be in train mode."""
    nn.BatchNorm2d.train = lambda self, mode=True: nn.Module.train(self, False)
    model.requires_grad_(False)
    model.fc = nn.Linear(64, 5)
    steps(model.train(), *train.tensors, torch.optim.Adam(model.fc.parameters(), lr=1e-2), 60)


wrong("which-entries-move", 'takes True, False or "raises"')(
    MOVES | {"flags last, eval(): fc.weight": RuntimeError}, "An error is written as its class."
)


def norms(model):
    return [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]


@wrong("drifting-backbone", "momentum of bn1 was 0.1 and is 0.0")
def eval_mode_and_momentum_left(model, optimizer, batches):
    """To be on the safe side I switch off everything."""
    for part in norms(model):
        part.momentum = 0.0
    model.eval()
    epochs(model, optimizer, batches)


@wrong("drifting-backbone", "track_running_stats of bn1 was True and is False")
def eval_mode_and_tracking_off(model, optimizer, batches):
    """What is not used in eval mode may be what it is."""
    for part in norms(model):
        part.track_running_stats = False
    model.eval()
    epochs(model, optimizer, batches)


@wrong("drifting-backbone", "a hook is left in the model itself")
def hook_that_stays(model, optimizer, batches):
    """A hook is the way to have eval mode before each forward pass, for ever."""
    model.register_forward_pre_hook(lambda module, inputs: module.eval() and None)
    model.train()
    epochs(model, optimizer, batches)


@right("drifting-backbone")
def hook_that_goes(model, optimizer, batches):
    handle = model.register_forward_pre_hook(lambda module, inputs: module.eval() and None)
    model.train()
    epochs(model, optimizer, batches)
    handle.remove()


@wrong("drifting-backbone", "not another one with its numbers")
def a_copy_of_the_trained_head(model, optimizer, batches):
    """A layer with the same numbers is the same layer."""
    model.eval()
    epochs(model, optimizer, batches)
    model.fc = copy.deepcopy(model.fc)


@wrong("drifting-backbone", "or put back afterwards")
def averages_put_back(model, optimizer, batches):
    """The running statistics are a mean and a variance."""
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    model.train()
    epochs(model, optimizer, batches)
    model.load_state_dict(before, strict=False)


@wrong("drifting-backbone", "and one before them")
def blocks_only(model, optimizer, batches):
    """The norm layers are in the blocks."""
    for _ in range(2):
        model.train()
        for part in (model.layer1, model.layer2, model.layer3, model.layer4):
            part.eval()
        epochs(model, optimizer, batches, 1)


@right("drifting-backbone")
def another_class(model, optimizer, batches):
    class HeadOnly(type(model)):
        def train(self, mode=True):
            super().train(False)
            self.fc.train(mode)
            return self

    model.__class__ = HeadOnly
    for _ in range(2):
        epochs(model.train(), optimizer, batches, 1)


@right("drifting-backbone")
def all_features_in_one_pass(model, optimizer, batches):
    head, model.fc = model.fc, nn.Identity()
    with torch.inference_mode():
        features = model.eval()(torch.cat([images for images, _ in batches]))
    model.fc = head
    parts = features.clone().split([len(images) for images, _ in batches])
    epochs(head, optimizer, [(part, labels) for part, (_, labels) in zip(parts, batches, strict=True)])


@right("adapt-then-hold")
def an_average_over_all_batches(backbone, images):
    for part in norms(backbone):
        part.reset_running_stats()
        part.momentum = None
    with torch.inference_mode():
        backbone(images)
    freeze(backbone)


@right("adapt-then-hold")
def held_by_another_class(backbone, images):
    class Held(type(backbone)):
        def train(self, mode=True):
            return super().train(False)

    for _ in range(60):
        backbone(images)
    backbone.__class__ = Held
    backbone.train().requires_grad_(False)


@wrong("adapt-then-hold", "with None by ever less")
def an_average_that_remembers(backbone, images):
    """momentum=None takes the average of the images that come now."""
    for part in norms(backbone):
        part.momentum = None
    many_passes(backbone, images)


@wrong("adapt-then-hold", "batches that are not too small")
def one_by_one(backbone, images):
    """An average is an average, in batches of any size."""
    with torch.no_grad():
        for _ in range(3):
            for image in images.split(1):
                backbone(image)
    freeze(backbone)


@wrong("adapt-then-hold", "see the images as they are")
def to_brightened_images(backbone, images):
    """The backbone knows bright images, so it gets bright ones."""
    many_passes(backbone, images / 0.3)


@wrong("adapt-then-hold", "not through a copy of it")
def an_adapted_copy(backbone, images):
    """A function should return a new model and leave the old one alone."""
    backbone = copy.deepcopy(backbone)
    many_passes(backbone, images)
    return backbone


@wrong("adapt-then-hold", "whatever train() says")
def flags_and_eval_mode(backbone, images):
    """freeze() with hold=False is eval() and flags."""
    for _ in range(60):
        backbone(images)
    freeze(backbone.eval(), hold=False)


@right("head-for-new-digits")
def scaling_that_went_into_the_head(model, train):
    freeze(model)
    model.fc = nn.Identity()
    features, labels = cache_features(model, DataLoader(train, batch_size=50)).tensors
    mean, std = features.mean(0), features.std(0) + 1e-9
    head = nn.Linear(64, 5)
    steps(head, (features - mean) / std, labels, torch.optim.SGD(head.parameters(), lr=0.02, momentum=0.9), 300)
    with torch.no_grad():
        head.bias -= head.weight @ (mean / std)
        head.weight /= std
    model.fc = head


@wrong("head-for-new-digits", "gets them as they are")
def scaling_forgotten(model, train):
    """A head that was trained on scaled features, as in the lesson, reads features."""
    freeze(model)
    model.fc = nn.Identity()
    features, labels = cache_features(model, DataLoader(train, batch_size=50)).tensors
    features = (features - features.mean(0)) / (features.std(0) + 1e-9)
    model.fc = nn.Linear(64, 5)
    steps(model.fc, features, labels, torch.optim.SGD(model.fc.parameters(), lr=0.02, momentum=0.9), 300)


@wrong("head-for-new-digits", "it gets them as they are")
def images_normalized(model, train):
    """Images are normalized before training, by MNIST's mean and spread."""
    freeze(model)
    model.fc = nn.Linear(64, 5)
    images, labels = train.tensors
    steps(model, (images - 0.1307) / 0.3081, labels, torch.optim.Adam(model.fc.parameters(), lr=1e-2), 100)


@wrong("head-for-new-digits", "no softmax before cross_entropy")
def softmax_before_the_loss(model, train):
    """cross_entropy takes probabilities."""
    freeze(model)
    model.fc = nn.Sequential(nn.Linear(64, 5), nn.Softmax(1))
    steps(model, *train.tensors, torch.optim.SGD(model.fc.parameters(), lr=1e-2, momentum=0.9), 100)


@wrong("head-for-new-digits", "came or went: old_fc.weight")
def the_old_head_kept_in_the_model(model, train):
    """The old head is kept beside the new one."""
    model.old_fc = model.fc
    as_in_the_lesson(model, train)


@wrong("head-for-new-digits", "the new head belongs in its fc")
def the_head_returned(model, train):
    """What is trained is what is returned."""
    model = copy.deepcopy(model)
    as_in_the_lesson(model, train)
    return model.fc


@wrong("head-for-new-digits", "momentum of bn1 was 0.1 and is 0.0")
def momentum_left(model, train):
    """Two locks are better than one."""
    as_in_the_lesson(model, train)
    for part in norms(model):
        part.momentum = 0.0


@wrong("head-for-new-digits", "a hook is left in layer4")
def hook_left_in_a_layer(model, train):
    """A hook that only looks may stay."""
    seen = []
    model.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    as_in_the_lesson(model, train)


@right("head-for-new-digits")
def more_scores_than_digits(model, train):
    freeze(model)
    model.fc = nn.Linear(64, 10)
    steps(model, *train.tensors, torch.optim.Adam(model.fc.parameters(), lr=1e-2), 100)


@right("head-for-new-digits")
def squares(model, train):
    freeze(model)
    model.fc = nn.utils.parametrizations.weight_norm(nn.Linear(64, 5))
    images, labels = train.tensors
    optimizer = torch.optim.Adam(model.fc.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(images), nn.functional.one_hot(labels, 5).to(images.dtype)).backward()
        optimizer.step()
