"""Predictions are run again in the lesson's own kernel, and judged: conftest.py adds these cells to those of nbval.

A learner who guesses runs a prediction again, at once or after the lesson's end. Every run must see the same, which is
what the text below says; and a wrong guess that has a sentence must be refused with it.
"""

import ast
from collections.abc import Iterator
from typing import Any


def cell(call: str) -> str:
    """The code of a cell in which a kernel calls one of the functions below."""
    return f"eval({call!r}, __import__('runpy').run_path({__file__!r}))"


def listen() -> None:
    """Keep what each prediction is compared with, from now on."""
    from helpers.lessons.exercises import Lesson  # here, as pytest imports this file and need not wait for torch

    guessed, Lesson.heard = Lesson.guessed, []  # type: ignore[attr-defined]

    def hear(self: Lesson, name: str, guess: Any, seen: Any) -> Any:
        Lesson.heard.append((self, name, guess, seen))  # type: ignore[attr-defined]
        return guessed(self, name, guess, seen)

    Lesson.guessed = hear  # type: ignore[method-assign]


def judge(said: dict[str, str], runs: int) -> None:
    from helpers.lessons.exercises import Lesson

    for fault in faults(list(Lesson.heard), said, runs):  # type: ignore[attr-defined]
        print(fault)


def faults(heard: list[tuple[Any, str, Any, Any]], said: dict[str, str], runs: int) -> Iterator[str]:
    """What is wrong with the predictions of one lesson.

    ``heard`` has of each run the lesson, the name, the guess, and what is so; ``said`` what the text says is so.
    """
    if not heard:
        if said:
            yield f"none was run, or they call another predict; in the text: {', '.join(said)}"
        return
    made = heard[0][0]
    names = list(dict.fromkeys(name for _, name, *_ in heard))
    if not names == list(made.predictions) == list(said):
        yield f"run: {', '.join(names)}; declared: {', '.join(made.predictions)}; in the text: {', '.join(said)}"
        return
    for name in names:
        asked = [(guess, seen) for _, of, guess, seen in heard if of == name]
        if len(asked) != runs or len(set(map(repr, asked))) > 1:
            yield f"{name}: not {runs} times the same: {asked}"
        guess, seen = asked[0]
        beliefs = [(wrong, "not yet", belief) for wrong, belief in made.predictions[name].items()]
        right = ast.literal_eval(said[name])
        for given, standing, sentence in [(guess, "not attempted", ""), (right, "right", ""), *beliefs]:
            told = made.guessed(name, given, seen)
            if told.standing != standing or sentence not in told.sentence or bool(sentence) != bool(told.sentence):
                yield f"{name}: {given!r}, where {seen!r} is so, is told {told.standing!r}. {told.sentence}".strip()
    if silent := [name for name, beliefs in made.predictions.items() if not beliefs]:
        yield f"no sentence for any wrong guess: {', '.join(silent)}"
