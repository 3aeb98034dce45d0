"""SemanticDuplicate with the real embedder."""

from collections.abc import Callable

from counterfoil.records import Completion, Dropped, Pair, Prompt
from synth.filter import LocalFilter
from synth.filters.semantic_duplicate import SemanticDuplicate

Alone = Callable[[LocalFilter], Callable[[Pair], Dropped | None]]


def make_pair(prompt: str, chosen: str) -> Pair:
    asked = Prompt.make(prompt)
    sides = [
        Completion.make(
            prompt_id=asked.id, index=at, text=text, finish_reason="stop", num_prompt_tokens=1, num_tokens=1
        )
        for at, text in enumerate((chosen, "Something else."))
    ]
    return Pair.make(asked, sides[0], sides[1], scores=(1.0, 0.0), recipe="test")


def test_what_was_said_in_other_words_is_dropped(alone: Alone) -> None:
    """A paraphrase goes, another subject in the same words stays; what was dropped is not remembered."""
    judge = alone(SemanticDuplicate(similarity=0.8))
    first = make_pair("a", "A man is playing the guitar on the street.")
    again = make_pair("b", "On the street, a man plays a guitar.")
    assert judge(first) is None
    why = judge(again)
    assert why is not None
    assert (why.id, why.stage, why.reason) == (
        again.id,
        "semantic_duplicate",
        "the chosen says what an earlier one said",
    )
    assert why.detail.endswith(first.id)
    assert judge(make_pair("c", "A man is selling a guitar in a shop far from any street market.")) is None
    assert judge(make_pair("d", "Stock markets fell on Monday.")) is None


def test_several_pairs_of_one_prompt_do_not_repeat_it(alone: Alone) -> None:
    judge = alone(SemanticDuplicate(of="prompt", similarity=0.8))
    assert judge(make_pair("How do I boil an egg?", "In water.")) is None
    assert judge(make_pair("How do I boil an egg?", "Stock markets fell.")) is None
    why = judge(make_pair("What is the way to boil an egg?", "With care."))
    assert why is not None
    assert why.reason == "the prompt says what an earlier one said"
    assert judge(make_pair("Who painted the Mona Lisa?", "Leonardo.")) is None
