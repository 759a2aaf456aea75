"""How a check runs an answer: nothing is left behind in torch, what is raised gets a sentence, prints come once."""

import inspect
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.flop_counter import FlopCounterMode

from helpers.lessons import digits, progress
from helpers.lessons.exercises import Lesson, leftovers, running
from helpers.lessons.exercises.running import NotAttempted, NotYet, attempted, listening, run, waiting

SENTENCES = """
[exercises.sum]
title = "A sum"
follows = "So it is."
"""


@pytest.fixture
def lesson():
    lesson = Lesson("no-lesson", tomllib.loads(SENTENCES))

    @lesson.exercise("sum")
    def _(answer):
        for number in range(16):
            if run(answer, number, 2) != number + 2:
                raise NotYet("That is no sum.")

    return lesson


def refused(answer, *args):
    with pytest.raises(NotYet) as reason:
        run(answer, *args)
    return str(reason.value)


# What is left behind


def sets_train_of_a_class():
    nn.BatchNorm2d.train = lambda self, mode=True: nn.Module.train(self, False)


def replaces_forward_by_one_that_records_nothing():
    nn.Linear.forward = torch.no_grad()(nn.Linear.forward)


def replaces_a_function():
    old = F.batch_norm
    F.batch_norm = lambda *args, **more: old(*args, **more)


def replaces_a_method_of_tensors():
    torch.Tensor.backward = lambda self: None


def gives_tensors_a_method():
    torch.Tensor.freeze = lambda self: self.requires_grad_(False)


def replaces_a_step():
    torch.optim.SGD.step = lambda self, closure=None: None


def replaces_a_step_that_is_used_then():
    torch.optim.Rprop.step = lambda self, closure=None: None
    torch.optim.Rprop([nn.Parameter(torch.ones(1))]).step()


def replaces_what_all_modules_do():
    nn.Module.__call__ = lambda self, *args: None


def takes_a_method_away():
    del nn.Dropout.forward


def replaces_the_class():
    nn.ReLU = nn.Identity


def replaces_a_function_of_torch():
    torch.no_grad = torch.enable_grad


def forgets_a_hook():
    nn.modules.module.register_module_forward_hook(lambda module, args, out: out.detach())


def forgets_a_hook_of_optimizers():
    sys.modules["torch.optim.optimizer"].register_optimizer_step_post_hook(lambda *_: None)


def forgets_hooks_for_saved_tensors():
    torch.autograd.graph.save_on_cpu().__enter__()
    torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x).__enter__()


def forgets_a_mode():
    FlopCounterMode(display=False).__enter__()


LEAVES = {
    lambda: torch.set_grad_enabled(False): "another gradient mode",
    lambda: torch.no_grad().__enter__(): "another gradient mode",
    lambda: torch.set_default_dtype(torch.float64): "another default dtype",
    lambda: torch.set_default_device("meta"): "another default device",
    lambda: torch.autograd.set_detect_anomaly(True): "another anomaly mode",
    lambda: torch.use_deterministic_algorithms(True, warn_only=True): "another deterministic mode",
    lambda: torch.set_num_threads(torch.get_num_threads() + 1): "another number of threads",
    lambda: torch.autocast("cpu").__enter__(): "another autocast",
    sets_train_of_a_class: "another nn.BatchNorm2d.train",
    replaces_forward_by_one_that_records_nothing: "another nn.Linear.forward",
    replaces_a_function: "another nn.functional.batch_norm",
    replaces_a_method_of_tensors: "another torch.Tensor.backward",
    gives_tensors_a_method: "another torch.Tensor.freeze",
    replaces_a_step: "another torch.optim.SGD.step",
    replaces_a_step_that_is_used_then: "another torch.optim.Rprop.step",
    replaces_what_all_modules_do: "another nn.Module.__call__",
    takes_a_method_away: "another nn.Dropout.forward",
    replaces_the_class: "another nn.ReLU",
    replaces_a_function_of_torch: "another torch.no_grad",
    forgets_a_hook: "a forward hook for all modules",
    forgets_a_hook_of_optimizers: "a hook for all optimizers",
    forgets_hooks_for_saved_tensors: "hooks for saved tensors",
    forgets_a_mode: "a FlopCounterMode switched on, a forward pre hook for all modules",
}


def state():
    """What torch does, told by other means than those that are tested."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.0), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        out = model(torch.tensor([[1.0, 2.0], [5.0, 3.0]]))
    out[0].sum().backward()
    optimizer.step()
    here = out.device, out.dtype, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), len(kept)
    here += (is_in_torch_dispatch_mode(),)  # where torch.compile asks: if so, it compiles nothing, without a word
    classes = [nn.ReLU, torch.no_grad, hasattr(torch.Tensor, "freeze"), torch.is_autocast_enabled("cpu")]
    modes = nn.BatchNorm2d(2).train().training, torch.is_anomaly_enabled(), type(model[3]).__name__
    return here, classes, modes, [parameter.tolist() for parameter in model[1].parameters()]


@pytest.mark.parametrize("answer", LEAVES, ids=lambda answer: LEAVES[answer])
def test_what_is_left_behind_is_undone_and_named(answer):
    before = state()
    told = refused(answer)
    assert told.startswith(f"Your code leaves torch with {LEAVES[answer]} for all that comes after it. "), told
    assert state() == before and run(lambda: 3) == 3


@pytest.mark.parametrize("answer", LEAVES, ids=lambda answer: LEAVES[answer])
def test_it_is_undone_also_when_an_error_comes(answer):
    before = state()

    def fails():
        answer()
        raise ValueError("no")

    assert "ValueError: no" in refused(fails)
    assert state() == before


def test_what_is_undone_is_told_together():
    def all_of_it():
        torch.set_grad_enabled(False)
        sets_train_of_a_class()
        forgets_a_hook()
        replaces_a_function()

    assert refused(all_of_it).startswith(
        "Your code leaves torch with another gradient mode, a forward hook for all modules, another "
        "nn.functional.batch_norm and more for all that"
    )


def test_classes_of_the_models_that_it_is_given_are_seen(monkeypatch):
    model = digits.SmallResNet()

    def answer(model):
        type(model).train = lambda self, mode=True: self

    before = vars(digits.SmallResNet).get("train")
    assert "leaves torch with another SmallResNet.train" in refused(answer, model)
    assert vars(digits.SmallResNet).get("train") is before


def test_what_was_so_before_stays_so(monkeypatch):
    """What a cell of the learner has set, or a check for a while, is not this answer's doing."""
    new = lambda self, mode=True: nn.Module.train(self, mode)  # noqa: E731
    with monkeypatch.context() as patch, torch.no_grad(), FlopCounterMode(display=False):
        patch.setattr(nn.Linear, "train", new, raising=False)
        torch.set_default_dtype(torch.float64)
        hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
        assert run(lambda: torch.ones(1).dtype) is torch.float64 and nn.Linear.train is new
        assert "another gradient mode" in refused(torch.set_grad_enabled, True) and not torch.is_grad_enabled()
        assert nn.Linear.train is new
        hook.remove()
        torch.set_default_dtype(torch.float32)
    assert "train" not in vars(nn.Linear) and run(lambda: 3) == 3


def test_what_is_called_without_run_is_undone_at_the_end_of_the_check(lesson):
    class Answer:
        def __call__(self, *_):
            return self

        def __ne__(self, other):  # where the check looks at what it got
            sets_train_of_a_class()
            torch.set_default_dtype(torch.float64)
            return False

    assert lesson.judged("sum", Answer()).standing == "right"
    assert "train" not in vars(nn.BatchNorm2d) and torch.get_default_dtype() is torch.float32


def trains(optimizer):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.LSTM(4, 2))

    def closure():
        loss = model(torch.ones(3, 4))[0].sum()
        loss.backward()
        return loss

    optimizer(model.parameters()).step(closure)


def uses_much():
    from torch.utils.checkpoint import checkpoint

    x = torch.ones(3, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.TransformerEncoderLayer(4, 2), nn.LazyLinear(2))
    checkpoint(model, x, use_reentrant=False).sum().backward()
    with torch.autocast("cpu"), torch.autograd.set_detect_anomaly(True), torch.autograd.graph.save_on_cpu():
        model(x).sum().backward()
    with FlopCounterMode(display=False), torch.inference_mode(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
        model(x)
    nn.utils.parametrizations.weight_norm(model[0])
    nn.modules.module.register_module_forward_hook(lambda *_: None).remove()
    torch.func.vmap(torch.sin)(x)
    torch.manual_seed(0)

    class Own(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    Own(model.parameters(), lr=0.1).step()
    torch.optim.lr_scheduler.StepLR(torch.optim.Adam(model.parameters()), 1)


def test_what_torch_sets_for_itself_is_no_left_over():
    for optimizer in (torch.optim.SGD, torch.optim.AdamW, torch.optim.LBFGS, torch.optim.Adagrad, torch.optim.RMSprop):
        run(trains, optimizer)
    run(uses_much)


def test_what_torch_sets_when_it_is_first_used_is_no_left_over():
    """In a process of its own, where nothing of it has been used."""
    code = "import torch; from torch import nn; from helpers.lessons.exercises.running import run\n"
    code += "run(lambda: torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1).step())\n"
    code += "run(lambda: torch.compile(nn.Linear(2, 2), backend='eager')(torch.ones(1, 2)))\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_costs_less_than_a_thousandth_of_a_second():
    model = digits.SmallResNet()
    took = []
    for _ in range(20):
        begun = time.process_time()
        for _ in range(20):
            run(repr, model)
        took.append((time.process_time() - begun) / 20)
    begun = time.process_time()
    for _ in range(20):
        repr(model)
    cost = min(took) - (time.process_time() - begun) / 20
    print(f"a call costs {cost * 1000:.2f} ms")
    assert cost < 0.001


# What it raises


def leaves():
    sys.exit("no such part")


def quits():
    quit()


def interrupts_itself():
    raise KeyboardInterrupt


def ends_a_generator():
    raise GeneratorExit("why not")


@torch.no_grad()
def decorated():
    int("y")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (leaves, "Your code would end the whole program, by sys.exit() or the like in line 1 of your cell. Where"),
        (quits, "Your code would end the whole program, by sys.exit() or the like in line 1 of your cell. Where"),
        (interrupts_itself, "Your code raised KeyboardInterrupt in line 1 of your cell."),
        (ends_a_generator, "Your code raised GeneratorExit: why not in line 1 of your cell."),
        (decorated, "Your code raised ValueError: invalid literal for int() with base 10: 'y' in line 2 of your cell."),
        (lambda: int("x"), "Your code raised ValueError: invalid literal for int() with base 10: 'x' in line 0 of"),
        (lambda x: x, "Your code raised TypeError: "),
    ],
)
def test_whatever_is_raised_gets_a_sentence(answer, told, lesson):
    line = inspect.unwrap(answer).__code__.co_firstlineno
    told = re.sub("line (.)", lambda below: f"line {line + int(below[1])}", told)
    assert refused(answer).startswith(told)
    assert lesson.judged("sum", lambda *_: answer()).standing == "not yet"


def test_an_error_outside_the_call_gets_one_as_well(lesson):
    class Answer:
        def __call__(self, *_):
            return self

        def __ne__(self, other):
            sys.exit()

    assert lesson.judged("sum", Answer()) == ("not yet", "Looking at your answer raised SystemExit.")


@pytest.fixture
def interruptible():
    """Python raises KeyboardInterrupt on SIGINT. It does not in what a shell started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_the_learner_can_interrupt_it(lesson, interruptible):
    def answer(*_):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        while True:
            pass

    with pytest.raises(KeyboardInterrupt):
        run(answer)
    with pytest.raises(KeyboardInterrupt):
        lesson.check("sum", answer)
    assert lesson.judged("sum", lambda a, b: a + b).standing == "right" and sys.stdout is not None


def bare(x):
    """The answer to come."""
    raise NotImplementedError  # delete this line, and repair the others
    return x + 1


def with_code_above(x):
    y = x + 1
    raise NotImplementedError  # your code, in place of this line
    return y


class BareClass(nn.Module):
    def __init__(self, *_):
        super().__init__()
        raise NotImplementedError


class WithCodeAbove(nn.Module):
    def __init__(self, *_):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        raise NotImplementedError


class NoStep(torch.optim.Optimizer):
    def __init__(self):
        super().__init__([nn.Parameter(torch.ones(1))], {})


@pytest.mark.parametrize("answer", [bare, torch.no_grad()(bare), BareClass, ...])
def test_a_stub_is_no_attempt(answer):
    with pytest.raises(NotAttempted):
        run(answer, 1)
    with pytest.raises(NotAttempted):
        attempted(answer)


@pytest.mark.parametrize(("answer", "below"), [(with_code_above, 2), (WithCodeAbove, 4)])
def test_code_above_the_line_that_every_answer_begins_with(answer, below):
    line = (answer if answer is with_code_above else answer.__init__).__code__.co_firstlineno + below
    line -= answer is WithCodeAbove
    told = refused(answer, 1)
    assert told.startswith(
        f"The line 'raise NotImplementedError' is still there, line {line} of your cell, and nothing"
    )
    assert attempted(answer) is None


def test_what_is_missing_in_a_class_of_torch_was_attempted():
    told = refused(lambda: torch.optim.Optimizer.step(NoStep()))
    assert told.startswith("Your code raised NotImplementedError in line ")


def test_what_has_no_source_is_a_stub():
    names = {}
    exec("def answer(x):\n    y = x\n    raise NotImplementedError", names)
    with pytest.raises(NotAttempted):
        run(names["answer"], 1)


@pytest.mark.parametrize("answer", [{"a": ..., "b": [..., ...]}, ..., {"a": [True, ...]}])
def test_a_table_with_nothing_in_it_is_no_attempt(answer):
    with pytest.raises(NotAttempted):
        attempted(answer)


@pytest.mark.parametrize("answer", [{"a": True, "b": ...}, {"a": [True, False]}, len, None, lambda x: x, torch.ones(2)])
def test_anything_else_is_one(answer):
    assert attempted(answer) is None


# What it prints


def said(lesson, answer):
    out = io.StringIO()
    stdout, sys.stdout = sys.stdout, out
    try:
        lesson.check("sum", answer)
    finally:
        sys.stdout = stdout
    return out.getvalue()


def test_what_an_answer_prints_is_shown_once_after_the_verdict(lesson):
    def answer(a, b):
        print("a is", a)
        print("b is", b)
        return a + b

    told = "✓ right: A sum\nSo it is.\nYour code was called 16 times. The first time it printed:\n  a is 0\n  b is 2\n"
    assert said(lesson, answer) == told
    assert said(lesson, lambda a, b: a + b) == "✓ right: A sum\nSo it is.\n"


def test_of_an_error_the_call_that_raised_it_is_shown(lesson):
    def answer(a, b):
        print("a is", a)
        return a + b if a < 3 else a.size

    told = said(lesson, answer)
    assert "AttributeError" in told
    assert told.endswith("Your code was called 4 times. In call 4 it printed:\n  a is 3\n")


def test_what_is_printed_late_or_only_once(lesson):
    assert "called 6 times. In call 6 it printed:\n  a is 5" in said(
        lesson, lambda a, b: print("a is", a) if a == 5 else a + b
    )
    assert said(lesson, lambda a, b: print("once")).endswith("\nYour code printed:\n  once\n")


def test_much_is_cut(lesson):
    told = said(lesson, lambda a, b: print("\n".join(map(str, range(1000))), "x" * 10_000))
    assert told.endswith("\n  10\n  11\n  ... and 988 lines more\n")
    assert max(map(len, said(lesson, lambda a, b: print("x " * 1000)).splitlines())) <= 210


def test_what_is_printed_outside_of_its_call_is_shown_too(lesson):
    class Answer:
        def __call__(self, *_):
            return self

        def __ne__(self, other):
            print("compared")
            return False

    assert said(lesson, Answer()).endswith("Your code printed:\n  compared\n")


def test_a_debugger_in_an_answer_is_heard_at_once(lesson, monkeypatch):
    def answer(a, b):
        breakpoint()
        return a + b

    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stdin", io.StringIO("p a\nc\n" + "c\n" * 15))
    import pdb

    monkeypatch.setattr(sys, "breakpointhook", lambda: pdb.Pdb(nosigint=True, readrc=False).set_trace(sys._getframe(1)))
    lesson.check("sum", answer)
    assert "(Pdb)" in out.getvalue().partition("✓ right: A sum")[0] and "called" not in out.getvalue()


def test_the_stdout_of_before_comes_back_whatever_an_answer_does_to_it(lesson):
    def answer(a, b):
        sys.stdout = io.StringIO()
        return a + b

    stdout = sys.stdout
    lesson.check("sum", answer)
    assert sys.stdout is stdout and not running._heard


def test_without_a_check_prints_are_not_touched(capsys):
    run(print, "now")
    assert capsys.readouterr().out == "now\n"


# Who waits


@pytest.mark.parametrize("looks_on", [True, False])
def test_who_looks_on_is_told_that_a_check_waits(capsys, monkeypatch, looks_on, tmp_path):
    monkeypatch.setattr(progress, "place", lambda: tmp_path if looks_on else None)
    told = []
    with listening() as heard, waiting("Starting two processes"):
        told.append(capsys.readouterr().out)
    told.append(capsys.readouterr().out)
    assert told == (["Starting two processes, which takes some seconds ...", " done.\n"] if looks_on else ["", ""])
    assert heard.told() == ""
    with pytest.raises(KeyError), waiting("Starting"):
        raise KeyError


def test_what_is_watched_are_classes_and_functions_that_one_might_patch():
    names = {leftovers._named(owner) for owner in leftovers._patches.was}
    assert {"torch", "nn", "nn.functional", "nn.Module", "nn.BatchNorm2d", "nn._BatchNorm", "nn.Parameter"} <= names
    assert {"torch.optim.SGD", "torch.optim.Optimizer", "torch.Tensor", "nn.DistributedDataParallel"} <= names


def test_an_error_is_told_without_what_makes_it_bold():
    assert running.short(ValueError("\x1b[1mThis file\x1b[0m is damaged.")) == "ValueError: This file is damaged"
