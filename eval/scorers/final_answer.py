"""Whether what an answer comes to is right: its last statement of an answer, compared as a number or as a text.

Source: the ways in which data sets mark a final answer: `#### 12` (GSM8K, Cobbe et al. 2021, arXiv 2110.14168), `The answer
is 12` (Wei et al. 2022, arXiv 2201.11903), `Answer: B`, a box of LaTeX. Differences: none known.
"""

import re
import unicodedata
from fractions import Fraction

from counterfoil.errors import InputError
from counterfoil.records import Completion, Prompt, Score
from eval.scorer import LocalScorer
from eval.scorers.exact_answer import normalise

__all__ = ["FinalAnswer", "read_final", "same_answer"]

MINUSES = "\u2212\u2012\u2013\ufe63\uff0d"
"""What models and typesetters write for a minus."""
TO_MINUS = str.maketrans(dict.fromkeys(MINUSES, "-"))
BEFORE_SIGN = r"(?<![\w.)\]}])"
"""After a number, a word or a bracket a minus is an operator, or a dash between two."""
SIGNS = (
    (re.compile(rf"{BEFORE_SIGN}[{MINUSES}](?=[$€£]?\.?\d)"), "-"),
    (re.compile(rf"{BEFORE_SIGN}-[$€£](?=\.?\d)"), "-"),
    (re.compile(rf"(=\s*|\bis\s+)[-{MINUSES}]\s+(?=[$€£]?\.?\d)", re.I), r"\1-"),
)
NUMBER = re.compile(
    rf"(?:{BEFORE_SIGN}[-+])?(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?|(?:{BEFORE_SIGN}[-+])?\.\d+"
)
MARKER = re.compile(
    r"^####(?=\s*[-+$€£]?\.?\d)|answer is|answer\W{0,3}:|^\W*(?:final )?answer\W*$|(?P<box>\\boxed\{)", re.I | re.M
)
MATHEMATICS = re.compile(r"[\d<>=^+*/\\≤≥]|(?<![^\W\d_])-|-(?![^\W\d_])")
"""What makes two texts differ that punctuation does not: digits and operators; a hyphen within a word is none."""


class FinalAnswer(LocalScorer):
    """1 where the final answer of a text is `prompt.reference["answer"]`, else 0; a text that comes to none has 0."""

    marked: bool = False
    """Take an answer after a marker alone; false takes the last number, or else the last line, of a text without one."""

    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Compare. Raises InputError where the reference has no answer."""
        wanted = prompt.reference.get("answer")
        if not isinstance(wanted, str | int | float) or isinstance(wanted, bool):
            given, allowed = repr(wanted), "a text or a number"
            raise InputError(f"prompt {prompt.id}: reference.answer", given=given, allowed=allowed, do="Add it.")
        found = read_final(completion.text, marked=self.marked)
        value = float(same_answer(found, str(wanted)))
        return Score(completion_id=completion.id, scorer="final_answer", value=value, detail={"final": found})


def read_final(text: str, *, marked: bool = False) -> str:
    """Return what a text comes to; empty where it comes to nothing."""
    for sign, written in SIGNS:
        text = sign.sub(written, text)
    marks = list(MARKER.finditer(text))
    if marks:
        said = text[marks[-1].end() :]
        if marks[-1]["box"]:
            return _read_box(said)
        return _trim(next((line for line in map(_strip, said.splitlines()) if line), ""))
    if marked:
        return ""
    numbers = NUMBER.findall(text)
    return numbers[-1] if numbers else _trim(next(iter(reversed(text.strip().splitlines())), ""))


def _read_box(said: str) -> str:
    """Return what stands before the brace that closes the box."""
    depth = 1
    for at, mark in enumerate(said):
        depth += (mark == "{") - (mark == "}")
        if depth == 0:
            return said[:at].strip()
    return ""


def _strip(said: str) -> str:
    return said.strip().strip(":*").strip()


def _trim(said: str) -> str:
    """Return the number that a statement begins with or holds alone, or else the statement without its end."""
    said = _strip(said)
    first = NUMBER.match(said.lstrip("$€£( "))
    if first:
        rest = said.lstrip("$€£( ")[first.end() :]
        if re.match(r"$|[%.!?;:)]|\s+[^\W\d]|,\s+[^\W\d]|\s*[(*]", rest):
            return first[0]
    numbers = NUMBER.findall(said)
    if len(numbers) == 1 and not first and not re.search(r"[<>≤≥^\\]", said):
        return numbers[0]
    return re.split(r"[.!?](?:\s|$)", said, maxsplit=1)[0].strip(" *\"'()")


def same_answer(one: str, other: str) -> bool:
    """Say whether two final answers are one: as numbers where both are, else as texts that are not empty.

    Case, articles and punctuation of words do not count; of what holds digits or operators every mark but spaces does.
    """
    numbers = [_number(text) for text in (one, other)]
    if None not in numbers:
        return numbers[0] == numbers[1]
    if MATHEMATICS.search(one) or MATHEMATICS.search(other):
        return _close_up(one) == _close_up(other) != ""
    return bool(normalise(one)) and normalise(one) == normalise(other)


def _close_up(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text.translate(TO_MINUS)).casefold().split())


def _number(text: str) -> Fraction | None:
    found = NUMBER.fullmatch(text.translate(TO_MINUS).strip().strip("$€£%").strip())
    try:
        return Fraction(found[0].replace(",", "")) if found else None
    except (ValueError, ZeroDivisionError):
        return None
