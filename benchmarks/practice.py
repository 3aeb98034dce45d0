r"""Practice for a student whose skill is to be drawn out by a weaker teacher (docs/studies.md, weak to strong).

    counterfoil eval puzzles generator=chain_sum count=8000 --to SUMS \
        options.min_terms=2 options.max_terms=2 options.min_digits=1 options.max_digits=2
    counterfoil eval puzzles generator=number_sorting count=4000 --to SORTS options.max_numbers=5 \
        options.min_decimals=0 options.max_decimals=0 options.min_value=0 options.max_value=99
    python benchmarks/practice.py SUMS/questions.jsonl SORTS/questions.jsonl > PRACTICE.jsonl

writes prompts with answers of the same two kinds as the questions, in other words and another form of answer; none has
the numbers of a question, in any order.
"""

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ADD = ["What is {a} plus {b}?", "Add {b} to {a}.", "I have {a} and get {b} more. How many is that?", "{a} + {b} = ?"]
TAKE = ["What is {a} minus {b}?", "Take {b} away from {a}.", "From {a} I go down by {b}. Where am I?", "{a} - {b} = ?"]
UP = ["Put these in order, the smallest first: {a}", "Which comes first? From low to high: {a}", "Order upwards: {a}"]
DOWN = ["Put these in order, the largest first: {a}", "Which comes last? From high to low: {a}", "Order downwards: {a}"]
COUNT = 1500
"""Of each kind."""


def main() -> None:
    """Write sums and orders in turn."""
    asked = {read_numbers(question) for path in sys.argv[1:3] for question in read_questions(Path(path))}
    draw = random.Random(0)
    sums, orders = make_sums(draw), make_orders(draw)
    for _ in range(COUNT):
        for source in (sums, orders):
            numbers, prompt, completion = next(row for row in source if row[0] not in asked)
            row = {
                "prompt": [{"role": "user", "content": prompt}],
                "completion": [{"role": "assistant", "content": f"Answer: {completion}"}],
            }
            print(json.dumps(row))
            asked.add(numbers)


def read_questions(path: Path) -> Iterator[str]:
    """Yield the questions without what they say of the answer's form."""
    for line in path.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)["question"].partition("\n")[0]


def read_numbers(question: str) -> tuple[int, ...]:
    """Return a question's numbers, sorted."""
    return tuple(sorted(int(found) for found in re.findall(r"\d+(?=\D)", question.replace(".0", "") + " ")))


def make_sums(draw: random.Random) -> Iterator[tuple[tuple[int, ...], str, str]]:
    """Yield sums and differences of two numbers below 100."""
    while True:
        a, b, taken = draw.randrange(100), draw.randrange(100), draw.random() < 0.5
        prompt = draw.choice(TAKE if taken else ADD).format(a=a, b=b)
        yield tuple(sorted((a, b))), prompt, str(a - b if taken else a + b)


def make_orders(draw: random.Random) -> Iterator[tuple[tuple[int, ...], str, str]]:
    """Yield three to five numbers below 100 in order."""
    while True:
        numbers, falling = draw.sample(range(100), draw.randint(3, 5)), draw.random() < 0.5
        point = draw.choice(["", ".0"])
        given, ordered = (
            ", ".join(f"{number}{point}" for number in some) for some in (numbers, sorted(numbers, reverse=falling))
        )
        yield tuple(sorted(numbers)), draw.choice(DOWN if falling else UP).format(a=given), ordered


if __name__ == "__main__":
    main()
