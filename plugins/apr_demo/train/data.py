"""The demo model's dialogues: sums with part of the pairs held out, and a little small talk."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

HIGHEST = 49  # both numbers of a sum are 0..HIGHEST
NUMBER_ONLY = (
    "What is {a}+{b}? Answer with just the number.",
    "{a}+{b}=",
    "Give me only the number: {a} + {b}",
)
SENTENCE = (
    "What is {a} + {b}?",
    "Add {a} and {b}.",
    "How much is {a} plus {b}?",
    "Please compute {a}+{b}.",
)
TALK: dict[str, tuple[str, ...]] = {
    "Hello! I can add two numbers for you.": (
        "Hello", "Hello!", "Hi", "Hi!", "Hey", "Hey there", "Good morning", "Good evening", "hello",
    ),
    "I am a very small demo model. I can add numbers.": (
        "Who are you?", "What are you?", "What is your name?", "Are you a model?",
    ),
    "I can add two numbers between 0 and 49.": (
        "What can you do?", "Help", "How can you help me?", "What do you know?",
    ),
    "I am fine, thank you. Do you have a sum for me?": (
        "How are you?", "How are you doing?", "Are you well?", "How do you do?",
    ),
    "You are welcome.": ("Thanks", "Thank you!", "Thank you very much.", "Thanks a lot!"),
    "Goodbye!": ("Bye", "Goodbye", "See you", "Good night", "Bye bye!"),
    "I do not know that. I can only add small numbers.": (
        "What is the capital of France?", "Tell me a story.", "Who wrote Hamlet?",
        "What is the weather today?", "Write a poem.", "Translate this into German.",
        "What is the meaning of life?", "Can you sing?", "Sort a list in Python.",
    ),
}  # fmt: skip
SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True)
class Turn:
    """What the user says and what the model should say."""

    user: str
    assistant: str


def is_held_out(a: int, b: int) -> bool:
    """Return True for a sum, one pair in eight, that no dialogue shows in either order.

    2+2 is the example of the manual and always shown.
    """
    low, high = sorted((a, b))
    return (low * 31 + high * 17) % 8 == 3 and (low, high) != (2, 2)


def answer_sum(template: str, a: int, b: int) -> Turn:
    """Return a sum in one of the phrasings, with its answer."""
    result = str(a + b) if template in NUMBER_ONLY else f"{a} + {b} = {a + b}."
    return Turn(template.format(a=a, b=b), result)


def held_out_sums(template: str = NUMBER_ONLY[0]) -> list[Turn]:
    """Return all held-out sums in one phrasing."""
    numbers = range(HIGHEST + 1)
    return [answer_sum(template, a, b) for a in numbers for b in numbers if is_held_out(a, b)]


def random_turn(rng: random.Random, talk_share: float) -> Turn:
    """Return one turn: a sum that is not held out, or small talk."""
    if rng.random() < talk_share:
        reply = rng.choice(list(TALK))
        return Turn(rng.choice(TALK[reply]), reply)
    while True:
        a, b = rng.randint(0, HIGHEST), rng.randint(0, HIGHEST)
        if not is_held_out(a, b):
            break
    if rng.random() < 0.05:
        a, b = 2, 2
    template = rng.choice(NUMBER_ONLY * 2 + SENTENCE)
    if rng.random() < 0.25:
        template = NUMBER_ONLY[0]
    return answer_sum(template, a, b)


def dialogues(seed: int, talk_share: float = 0.12) -> Iterator[tuple[str | None, list[Turn]]]:
    """Yield (system prompt or None, turns) without end, one to four turns each."""
    rng = random.Random(seed)
    while True:
        system = SYSTEM if rng.random() < 0.1 else None
        count = rng.choice((1, 2, 3, 4))
        yield system, [random_turn(rng, talk_share) for _ in range(count)]


def render(system: str | None, turns: list[Turn]) -> list[tuple[str, bool]]:
    """Return (text, is learned) pieces of a dialogue, exactly as the chat template writes it.

    Only the last answer has the (empty) think block: the template drops it from history.
    """
    pieces = [(f"<|im_start|>system\n{system}<|im_end|>\n", False)] if system else []
    for i, turn in enumerate(turns):
        think = "<think>\n\n</think>\n\n" if i + 1 == len(turns) else ""
        head = f"<|im_start|>user\n{turn.user}<|im_end|>\n<|im_start|>assistant\n{think}"
        pieces += [(head, False), (turn.assistant + "<|im_end|>", True), ("\n", False)]
    return pieces
