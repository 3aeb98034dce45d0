"""What a text comes to, and when two of those are one."""

import pytest

from counterfoil.errors import InputError
from counterfoil.records import Completion, Prompt
from eval.scorers.final_answer import FinalAnswer, read_final, same_answer


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("3 + 4 = 7\n#### 7", "7"),
        ("So the answer is 1,234.50. That is all.", "1,234.50"),
        ("The answer is: -3", "-3"),
        ("First the answer is 2, but no: the answer is 5.", "5"),
        ("Answer: B", "B"),
        ("Answer: **Paris**.", "Paris"),
        ("It is \\boxed{42} then", "42"),
        ("He has 3 and gets 4, so 7", "7"),
        ("The answer is $12 dollars", "12"),
        ("no numbers here\nat last words", "at last words"),
        ("The answer is 1/2", "1/2"),
        ("", ""),
        ("The answer is", ""),
        ("The answer is:\n12", "12"),
        ("**Final Answer:**\n\n12", "12"),
        ("**Answer**: 12", "12"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{7", ""),
        ("The answer is 12.\n#### Step 3: Add 4 and 5", "12"),
        ("The answer is 12 because 5+7=12.", "12"),
        ("The answer is x > 3.", "x > 3"),
        ("The answer is 2x-1", "2x-1"),
        ("The answer is -1, 2", "-1, 2"),
        ("The answer is 1,234 apples, not 12", "1,234"),
        ("The answer is x = 5", "5"),
        ("The answer is 50%", "50"),
        ("The answer is B) a house", "B) a house"),
        ("6 + 1 = 7.0", "7.0"),
        ("She has 7. That is the answer.", "7"),
        ("## Final answer\n7", "7"),
        ("The answer is \u22125.", "-5"),
        ("so we get \u22125", "-5"),
        ("The answer is -$5", "-5"),
        ("The answer is - 5.", "-5"),
        ("x = \u2212 5", "-5"),
        ("Answer: \u22121/2", "-1/2"),
        ("\\boxed{\u22125}", "-5"),
        ("8 \u2212 5", "5"),
        ("from 3-5", "5"),
        ("from 3\u20135", "5"),
        ("in total \u2013 5", "5"),
        ("- 5", "5"),
    ],
)
def test_a_final_answer_is_read(text: str, final: str) -> None:
    assert read_final(text) == final


def test_without_a_marker_there_is_none_if_one_is_wanted() -> None:
    assert read_final("It is 7", marked=True) == ""
    assert read_final("Answer: 7", marked=True) == "7"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("7", "7.0", True), ("1,000", "1000", True), ("$5", "5", True), ("1/2", "0.5", True), ("7", "8", False),
        ("Paris", "the paris", True), ("B", "b", True), ("B", "A", False), ("", "", False), ("1/0", "1/0", True),
        ("seven", "7", False), ("-3", "3", False), ("\u22123", "-3", True), ("\u22123", "3", False),
        ("x\u22121", "x-1", True), ("x > 3", "x < 3", False), ("2x-1", "2x+1", False),
        ("-1, 2", "1, 2", False), ("1,2", "12", False), ("1, 2", "1,2", True), ("12,34", "1234", False),
        ("well-known", "well known", False), ("B)", "b", True), ("\\frac{1}{2}", "\\frac{1}{3}", False),
    ],
)  # fmt: skip
def test_answers_are_compared_as_numbers_or_as_texts(one: str, other: str, same: bool) -> None:
    assert same_answer(one, other) is same


def test_the_scorer_compares_with_the_reference() -> None:
    answer = Completion.make(
        prompt_id="p",
        index=0,
        text="So 4 + 3 = 7. The answer is 7.",
        finish_reason="stop",
        num_prompt_tokens=1,
        num_tokens=1,
    )
    for wanted, value in (("7", 1.0), (7, 1.0), (7.0, 1.0), ("8", 0.0)):
        assert FinalAnswer().score(Prompt.make("Q", reference={"answer": wanted}), answer).value == value
    with pytest.raises(InputError, match=r"reference\.answer"):
        FinalAnswer().score(Prompt.make("Q"), answer)
