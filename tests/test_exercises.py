"""The checks of the exercises: every right answer passes, every wrong one is refused with the sentence meant for it."""

import contextlib
import importlib
import io
import itertools
import re
from collections import Counter
from functools import cache

import pytest
import torch
from torch import nn

import tests.tools.exercises as key
from helpers.lessons.exercises import Lesson, NotYet, changed, facts, run, table, taken
from tests.tools import lessons, predictions

LESSONS = key.every()
ANSWERS = [
    pytest.param(lesson, number, id=f"{lesson}-{answer.exercise}-{number}")
    for lesson, answers in LESSONS.items()
    for number, answer in enumerate(answers)
]
EXERCISES = [
    (lesson, name) for lesson, answers in LESSONS.items() for name in dict.fromkeys(a.exercise for a in answers)
]


def declared(lesson):
    return importlib.import_module(f"helpers.lessons.exercises.{lesson}").lesson


@cache
def first_told(lesson, number):
    """What an answer is told the first time. The page for those who teach says the same."""
    answer = LESSONS[lesson][number]
    return key.told(lesson, answer.exercise, answer.given)


@pytest.mark.parametrize(("lesson", "number"), ANSWERS)
def test_an_answer_is_told_what_it_shows(lesson, number):
    state, recording = torch.get_rng_state(), torch.is_grad_enabled()
    answer = LESSONS[lesson][number]
    standing, sentence = first_told(lesson, number)
    assert standing == ("right" if answer.told is None else "not yet"), sentence
    assert (answer.told or declared(lesson).exercises[answer.exercise][1]) in sentence
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled() is recording
    assert key.told(lesson, answer.exercise, answer.given) == (standing, sentence), "another verdict the second time"


@pytest.mark.parametrize(("lesson", "exercise"), EXERCISES)
def test_each_exercise_has_enough_answers(lesson, exercise):
    answers = [answer for answer in LESSONS[lesson] if answer.exercise == exercise]
    wrong = [answer for answer in answers if answer.told is not None]
    assert len(wrong) >= 5 and len(answers) - len(wrong) >= 3
    assert all(answer.belief for answer in wrong), "every wrong answer has a belief behind it"
    assert len({answer.told for answer in wrong}) >= 3, "one sentence for everything explains nothing"


class Odd:
    """An answer of no use that fights back."""

    def __eq__(self, other):
        raise KeyError("compared")

    __hash__ = None

    def __call__(self, *args, **kwargs):
        raise ZeroDivisionError("called")


def endless():
    nested = []
    nested.append(nested)
    return nested


def switches_recording_off(*args, **kwargs):
    torch.set_grad_enabled(False)


def moves_to_meta(*args, **kwargs):
    torch.set_default_device("meta")


def makes_double_the_default(*args, **kwargs):
    torch.set_default_dtype(torch.float64)


async def waits(*args, **kwargs):
    pass


def calls_itself(*args, **kwargs):
    return calls_itself(*args, **kwargs)


HOSTILE = {
    "nothing": None,
    "a word": "raises",
    "NaN": float("nan"),
    "a class": Odd,
    "an object": Odd(),
    "a list in itself": endless(),
    "no end": itertools.count(),
    "no parameters": lambda: None,
    "no end returned": lambda *args, **kwargs: itertools.repeat(1),
    "NaN returned": lambda *args, **kwargs: torch.tensor(float("nan")),
    "a class returned": lambda *args, **kwargs: nn.Linear,
    "a recursion": calls_itself,
    "recording off": switches_recording_off,
    "another dtype": makes_double_the_default,
    "another device": moves_to_meta,
    "a coroutine": waits,
    "a module in itself": lambda *args, **kwargs: setattr(args[0], "again", args[0]) if args else None,
    "a dict": {},
}


@pytest.mark.parametrize(("lesson", "exercise"), EXERCISES)
def test_an_answer_of_no_use_gets_a_sentence(lesson, exercise):
    for what, given in HOSTILE.items():
        standing, sentence = key.told(lesson, exercise, given)
        assert standing == "not yet" and len(sentence) > 15, (what, standing, sentence)
        assert torch.is_grad_enabled() and torch.get_default_dtype() is torch.float32, what


@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_and_solution_agree(lesson):
    in_lesson = key.statements(key.notebook(lesson))
    in_solution = key.statements(lessons.solution_of(key.notebook(lesson)))
    assert 3 <= len(in_lesson) <= 5
    assert list(in_lesson) == list(in_solution) == list(declared(lesson).exercises)
    assert set(in_lesson) == {answer.exercise for answer in LESSONS[lesson]}
    said = lessons.said(lessons.read(key.notebook(lesson))["cells"])
    assert list(said) == list(declared(lesson).predictions) != []
    for name, (statement, cell) in in_lesson.items():
        assert statement == in_solution[name][0], f"run 'make save': the statement of {name} differs"
        assert lessons.EFFORT.match(cell) and cell.endswith(f'check("{name}", answer)'), name
        title = declared(lesson).title(name)
        assert statement.startswith(f"### {title}\n") or not declared(lesson).sentences, title
        assert statement.count("<details>") >= 2, f"{name} has a title and hints"


def outputs(path, prefix):
    cells = [
        cell for cell in lessons.read(path)["cells"] if cell["cell_type"] == "code" and cell["id"].startswith(prefix)
    ]
    return {cell["id"]: "\n".join(map(shown, cell["outputs"])).strip() for cell in cells}


def shown(output):
    return output.get("text", "") or output.get("data", {}).get("text/plain", "")


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_is_committed_unanswered_and_its_solution_is_right(lesson):
    made = declared(lesson)
    answers = outputs(key.notebook(lesson), "answer-")
    assert answers == {f"answer-{name}": f"○ not attempted: {made.title(name)}" for name in made.exercises}
    solutions = outputs(lessons.solution_of(key.notebook(lesson)), ("solution-", "second-"))
    assert {f"solution-{name}" for name in made.exercises} <= solutions.keys()
    for id, text in solutions.items():
        assert f"✓ right: {made.title(id.partition('-')[2])}\n" in f"{text}\n", id
    asked = [*made.predictions, *made.exercises]
    (progress,) = outputs(key.notebook(lesson), "progress").values()
    told = f"0 of {len(asked)} right\n○ not attempted: {', '.join(map(made.title, asked))}"
    assert progress.split() == told.split()


FIRST, SECOND = ("first", ..., {"a": True, "b": False}), ("second", [..., ...], [False, False])
SAID = {"first": "[True, False]", "second": "[False, False]"}


def faults(runs, said=SAID, beliefs=({"guess": [True, True], "says": "Both was a belief."},)):
    """What is wrong with the two predictions of a lesson after these runs, as tests.tools.predictions hears them."""
    made = Lesson("sums", {"predictions": {name: {"beliefs": beliefs} for name in SAID}})
    return list(predictions.faults([(made, *run) for run in runs], said, 3))


@pytest.mark.parametrize(
    ("runs", "told"),
    [
        ([FIRST, FIRST, SECOND, SECOND, FIRST, SECOND], []),
        ([], ["none was run"]),
        ([FIRST, FIRST, FIRST], ["run: first; declared: first, second; in the text: first, second"]),
        ([SECOND, FIRST] * 3, ["run: second, first; declared"]),
        ([FIRST, SECOND] * 2 + [FIRST], ["second: not 3 times the same"]),
        ([FIRST, SECOND] * 2 + [("first", ..., {"a": True, "b": True}), SECOND], ["first: not 3 times the same"]),
        ([FIRST, ("second", [..., ...], [False, True])] * 3, ["second: [False, False], where [False, True] is so"]),
        ([FIRST, ("second", [False, False], [False, False])] * 3, ["second: [False, False], where"]),
        ([FIRST, ("second", 1, 2)] * 3, ["second: 1, where", "second: [False, False], where"]),
    ],
)
def test_what_is_wrong_with_a_prediction_is_named(runs, told):
    found = faults(runs)
    assert len(found) == len(told) and all(map(str.startswith, found, told)), found


def test_what_the_text_says_of_a_prediction_must_be_so():
    (found,) = faults([FIRST, SECOND] * 3, SAID | {"second": "[True, False]"})
    assert found.startswith("second: [True, False], where [False, False] is so, is told 'not yet'."), found
    (found,) = faults([FIRST, ("second", ..., [True, True])] * 3, SAID | {"second": "[True, True]"})
    assert found.startswith("second: [True, True], where [True, True] is so, is told 'not yet'. You said"), found
    (found,) = faults([FIRST, SECOND] * 3, {"first": "[True, False]"})
    assert found == "run: first, second; declared: first, second; in the text: first"


def test_a_notebook_without_predictions_has_none_to_judge():
    assert list(predictions.faults([], {}, 1)) == []


def test_a_prediction_without_a_sentence_is_named():
    assert faults([FIRST, SECOND] * 3, beliefs=()) == ["no sentence for any wrong guess: first, second"]


def said(name, call, *args):
    """How ``name`` stands after ``call(*args)``, and the sentence, as one line."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        call(*args)
    first, _, sentence = printed.getvalue().partition("\n")
    return first.removesuffix(f": {name}")[2:], " ".join(sentence.split())


@pytest.fixture
def lesson():
    beliefs = [{"guess": [True, True], "says": "Both was a belief."}]
    predictions = {"guess": {"beliefs": beliefs, "otherwise": "Look at the first."}}
    made = Lesson("sums", {"predictions": predictions, "exercises": {"sum": {"follows": "So it is."}}})

    @made.exercise("sum")
    def _(answer):
        if run(answer, 1, 2) != 3:
            raise NotYet("1 and 2 make 3.")

    return made


@pytest.mark.parametrize(
    ("guess", "standing", "sentence"),
    [
        (..., "not attempted", ""),
        ([..., ...], "not attempted", ""),
        ([True, ...], "not yet", "A part of it is still to fill in."),
        ([True, False], "right", ""),
        ((True, False), "right", ""),
        ((1, 0), "right", ""),
        ((0, 0), "not yet", "You said [0, 0], the run says [True, False]. Look at the first."),
        ((1, 2), "not yet", "A guess here is [True or False, True or False]; yours is [1, 2]."),
        (list(torch.tensor([True, False])), "right", ""),
        ({"a": True, "b": False}, "not yet", "A guess here is [True or False, True or False]; yours is a dict."),
        ([True, True], "not yet", "You said [True, True], the run says [True, False]. Both was a belief."),
        ([False, False], "not yet", "You said [False, False], the run says [True, False]. Look at the first."),
        (True, "not yet", "A guess here is [True or False, True or False]; yours is True."),
        (
            ["True", "False"],
            "not yet",
            "A guess here is [True or False, True or False]; yours is ['True', 'False'].",
        ),
        ({True, False}, "not yet", "A guess here is [True or False, True or False]; yours is a set."),
        (endless(), "not yet", "A guess here is [True or False, True or False]; yours is a list."),
    ],
)
def test_a_guess(lesson, guess, standing, sentence):
    assert said("guess", lesson.predict, "guess", guess, [True, False]) == (standing, sentence)


def test_progress_counts_how_everything_stands_last(lesson):
    def progress():
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            lesson.progress()
        return printed.getvalue()

    assert progress() == "0 of 2 right\n○ not attempted: guess, sum\n"
    said("", lesson.check, "sum", lambda a, b: a * b)
    assert progress() == "0 of 2 right\n✗ not yet: sum\n○ not attempted: guess\n"
    said("", lesson.check, "sum", lambda a, b: a + b)
    said("", lesson.predict, "guess", [True, False], [True, False])
    assert progress() == "2 of 2 right\n"


def test_a_name_that_is_not_there(lesson):
    with pytest.raises(ValueError, match="there is no 'summ' in this lesson; nearest: sum"):
        lesson.check("summ", None)


def answer_with_a_slip(a, b):
    return a.size + b


def test_an_error_is_told_with_its_line(lesson):
    line = answer_with_a_slip.__code__.co_firstlineno + 1
    told = f"Your code raised AttributeError: 'int' object has no attribute 'size' in line {line} of your cell."
    assert said("sum", lesson.check, "sum", answer_with_a_slip) == ("not yet", told)


def test_a_check_works_wherever_it_is_called(lesson):
    with torch.inference_mode():
        standing, _ = said(
            "sum",
            lesson.check,
            "sum",
            lambda a, b: (torch.ones(1, requires_grad=True) * (a + b)).sum().backward() or a + b,
        )
    assert standing == "right"


def test_a_module_without_forward_was_attempted(lesson):
    standing, sentence = said("sum", lesson.check, "sum", nn.Module())
    assert standing == "not yet" and "NotImplementedError: Module" in sentence


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ([True, 1], "Keep the table the dict that it was, with its rows; yours is a list."),
        ({"a": True}, "Keep the rows of the table as they were; yours is without 'n'."),
        ({"a": True, "n": 1, "m": 1}, "Keep the rows of the table as they were; yours is with 'm'."),
        ({"a": True, "n": ...}, "Still to fill in: 'n'."),
        ({"a": "True", "n": 1}, "Row 'a' takes True or False; yours is 'True'."),
        ({"a": True, "n": True}, "Row 'n' takes a number; yours is True."),
        ({"a": False, "n": 2}, "Right in 0 of 2 rows. 'n': Both belong to it."),
        ({"a": True, "n": 3}, "Right in 1 of 2 rows. 'n': Look again."),
    ],
)
def test_a_table(answer, sentence):
    with pytest.raises(NotYet, match=f"^{re.escape(sentence)}$"):
        table(answer, {"a": True, "n": 1}, {("n", 2): "Both belong to it."})
    table({"a": True, "n": 1}, {"a": True, "n": 1}, {})
    table({"a": 1, "n": 1}, {"a": True, "n": 1}, {})  # 1 is True where that can be meant


def test_a_table_says_where_raises_may_stand():
    with pytest.raises(NotYet, match=r"Row 'a' takes True, False or \"raises\" \(quotes only there\); yours is 3."):
        table({"a": 3, "b": True}, {"a": True, "b": "raises"}, {})


def test_an_answer_with_other_arguments(lesson):
    _, sentence = said("sum", lesson.check, "sum", lambda a: a)
    assert "takes 1 positional argument but 2 were given" in sentence
    assert sentence.endswith("Keep the arguments that the cell began with.")


def test_what_is_taken_has_an_end():
    assert taken(iter("ab"), "letters") == ["a", "b"]
    with pytest.raises(NotYet, match="Expected letters, got a count that does not end"):
        taken(itertools.count(), "letters")
    with pytest.raises(NotYet, match="Expected letters, got an int"):
        taken(3, "letters")


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_page_for_those_who_teach_is_the_one_made_now(lesson):
    assert key.sections()[lesson] == key.section(lesson, first_told), "run 'make save'"


def test_the_page_for_those_who_teach_begins_as_it_is_written():
    assert key.PAGE.read_text("utf-8") == key.HEAD + "".join(key.sections().values()), "run 'make save'"


def test_helpers_do_not_import_the_exercises():
    import subprocess
    import sys

    code = "import helpers, sys; print([name for name in sys.modules if 'exercises' in name])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_no_exercise_is_there_twice():
    names = Counter(name for lesson in LESSONS for name in declared(lesson).exercises)
    assert max(names.values()) == 1


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(12.0).reshape(3, 4)[:, 1],
        torch.ones(1).expand(3),
        torch.arange(12.0).reshape(3, 4).t(),
        torch.tensor([1.0, float("nan")]),
        torch.ones(2, dtype=torch.bfloat16),
        torch.tensor(3),
        torch.tensor([True, False]),
        torch.empty(0),
    ],
)
def test_what_only_reads_a_module_changes_none_of_its_facts_whatever_is_in_it(value):
    module = nn.Module()
    module.register_buffer("value", value)
    before = facts(module)
    assert changed(module, before) == ""
    module.value = torch.cat([value.reshape(-1), value.new_ones(1)])
    assert changed(module, before) == "numbers"
