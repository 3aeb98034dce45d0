"""A question's counterfactual twins: other premises make another option right, and each option is argued in both.

Source: PODA (Wang, Jian and Yang 2025, arXiv 2409.14495) and the authors' pipeline (lalalamdbf/TPReasoner at eb3824c,
PODA/). A model lists a question's premises, says of each option whether they support or contradict it, and concludes;
for a wrong option it writes premises that would make it right; code puts these with the old ones that the old answer
does not hang on; a model writes a passage of them, and the question is answered anew. Differences: (1) a rationale is a
JSON document, of which code makes the text and knows where each option's analysis lies, in place of titles that are
searched for; (2) the original rationale must come to the right answer as well; (3) the derived answer is compared with
the wanted one here, where the released code leaves that to its user; (4) the example for new premises is the question's
own, as in the paper; other steps have none.
"""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, Field, StringConstraints, create_model, model_validator

from counterfoil.records import Answer, Dropped, Group, Message, Prompt, Record, Span, content_id
from decode.engine import Sampling
from decode.steps import Refusal, Steps, ask_for
from eval.judging import show_request
from eval.scorer import Scorer
from synth.recipe import Recipe

__all__ = ["Counterfactual"]

ANALYSE = """{request}

Options:
{options}

Work out which option is right, in three steps. First list the premises: the statements that count, one short sentence each.
Then analyse each option in a sentence or two, and say whether the premises support it, contradict it or have nothing to do
with it, and which premises, by number, these are. Then give the letter of the one option that is right."""
IMAGINE = """Premises can be chosen so that any answer to a question is right. Here is a question.

{question}

Premises that make the answer "{right}" right:
{premises}

Now write premises, of the same kind and length, that make the answer "{wrong}" right, and "{right}" wrong."""
NARRATE = """Write a short passage that states each of these premises and nothing else that matters. Do not draw conclusions.

{premises}"""

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]


WantedT = TypeVar("WantedT", bound=BaseModel)


class _Path(BaseModel):
    """An option's analysis."""

    analysis: Text
    relation: Literal["supported", "contradicted", "unrelated"]
    premises: list[int]


class _Rationale(BaseModel):
    """Premises, a path for each option under its letter, the answer."""

    premises: list[Text]
    options: BaseModel
    answer: str

    @property
    def paths(self) -> dict[str, _Path]:
        return dict(self.options)

    @model_validator(mode="after")
    def check_numbers(self) -> Self:
        """Refuse the number of a premise that there is not."""
        if any(number > len(self.premises) for path in self.paths.values() for number in path.premises):
            raise ValueError(f"there are {len(self.premises)} premises")
        return self


class _Premises(BaseModel):
    premises: list[Text]


class _Passage(BaseModel):
    passage: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1500)]


class _Item(NamedTuple):
    """A question with lettered options."""

    options: dict[str, str]
    answer: str
    """The letter of the right one."""
    context: str
    """What stands in the prompt and is exchanged; empty where a passage comes before the prompt."""


class Counterfactual(Recipe):
    """Make other options right, by turns; keep those whose new passage leads a model to them."""

    makes: ClassVar[type[Record]] = Group

    teacher: str = "teacher"
    """Role of the model that analyses the question, imagines premises and writes passages."""
    verifier: str = "verifier"
    """Role of the model that answers the new question, not knowing what the answer should be."""
    max_options: int = Field(default=3, ge=1)
    """Wrong options that are made right, at most; each is a question to itself."""
    max_premises: int = Field(default=8, ge=1)
    """Premises of a question, at most."""
    temperature: float = Field(default=0.75, ge=0)
    """Of all that is written."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Keep the likeliest tokens that hold this share of the probability."""
    max_new_tokens: int = Field(default=1024, ge=16)
    """Cut what is written off after this many tokens."""

    def asks(self) -> Mapping[str, frozenset[str]]:
        """The teacher and the verifier."""
        return dict.fromkeys((self.teacher, self.verifier), frozenset({"chat", "schema", "seed"}))

    def make(self, prompt: Prompt, scorer: Scorer) -> Steps[Sequence[Record]]:
        """Analyse, imagine, narrate, answer anew; a wrong option that comes to nothing is dropped by itself."""
        item = _read(prompt)
        original = yield from self._analyse(prompt, item, prompt.messages, role=self.teacher)
        if original.answer != item.answer:
            raise Refusal("counterfactual", "the original comes to another answer", original.answer)
        made: list[Record] = []
        for letter in [letter for letter in item.options if letter != item.answer][: self.max_options]:
            try:
                twin = yield from self._turn(prompt, item, original, letter)
            except Refusal as refusal:
                key, why = content_id(prompt.id, letter), refusal.detail[:2000]
                made.append(Dropped(id=key, stage=refusal.stage, reason=refusal.reason, detail=why))
            else:
                answers = [_argue(item, original), twin]
                made.append(Group.make(prompt.messages, answers, reference=prompt.reference))
        return made

    def _turn(self, prompt: Prompt, item: _Item, original: _Rationale, letter: str) -> Steps[Answer]:
        """Return the answer to the question in which the option of that letter is right. Raises Refusal where it is not."""
        messages = yield from self._imagine(prompt, item, original, letter)
        twin = yield from self._analyse(prompt, item, messages, role=self.verifier)
        if twin.answer != letter:
            told = f"{twin.answer}, not {letter}: {messages[-1]['content']}"
            raise Refusal("counterfactual", "the new passage leads to another answer", told)
        return _argue(item, twin, messages)

    def _analyse(self, prompt: Prompt, item: _Item, messages: tuple[Message, ...], *, role: str) -> Steps[_Rationale]:
        """Ask for premises, a path for each option and the answer, without a word on what that should be."""
        shown = "\n".join(f"{letter}) {option}" for letter, option in item.options.items())
        request = show_request(prompt.model_copy(update={"messages": messages}))
        numbers = list[Annotated[int, Field(ge=1, le=self.max_premises)]]
        path = create_model("Path", __base__=_Path, premises=(numbers, Field(max_length=self.max_premises)))
        fields: dict[str, Any] = dict.fromkeys(item.options, path)
        letters: Any = Literal[tuple(item.options)]
        wanted = create_model(
            "Rationale",
            __base__=_Rationale,
            premises=(list[Text], Field(min_length=1, max_length=self.max_premises)),
            options=create_model("Options", **fields),
            answer=letters,
        )
        (found,) = yield from self._ask(wanted, ANALYSE.format(request=request, options=shown), "analyse", role)
        return found

    def _imagine(self, prompt: Prompt, item: _Item, original: _Rationale, letter: str) -> Steps[tuple[Message, ...]]:
        """Return the question with a passage in which the option of that letter should be right."""
        known = show_request(prompt)
        asked = IMAGINE.format(
            question=known.replace(item.context, "").strip() if item.context else known,
            right=item.options[item.answer],
            wrong=item.options[letter],
            premises=_number(original.premises),
        )
        wanted = create_model(
            "Premises", __base__=_Premises, premises=(list[Text], Field(min_length=1, max_length=self.max_premises))
        )
        (imagined,) = yield from self._ask(wanted, asked, "imagine", self.teacher)
        combined = _combine(original, item.answer, letter, imagined.premises)
        asked = NARRATE.format(premises=_number(combined))
        (told,) = yield from self._ask(_Passage, asked, "narrate", self.teacher)
        last = prompt.messages[-1]
        old, new = last["content"], told.passage
        content = old.replace(item.context, new) if item.context else f"{new}\n\n{old}"
        return (*prompt.messages[:-1], Message(role=last["role"], content=content))

    def _ask(self, wanted: type[WantedT], asked: str, step: str, role: str) -> Steps[list[WantedT]]:
        sampling = Sampling(temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens)
        return (yield from ask_for(wanted, [(Message(role="user", content=asked),)], sampling, step=step, role=role))


def _read(prompt: Prompt) -> _Item:
    """Read the reference. Raises Refusal where it has no options, no right one, or a context that the prompt has not."""
    options, answer, context = (prompt.reference.get(name) for name in ("options", "answer", "context"))
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise Refusal("counterfactual", "the reference has no list of options", repr(options)[:200])
    lettered = dict(zip(ascii_uppercase, options, strict=False))
    if len(set(options)) < len(options) or len(lettered) < len(options) or answer not in list(lettered):
        raise Refusal("counterfactual", "the reference has no right option", f"{answer!r} of {options}"[:200])
    if len(options) < 3:
        raise Refusal("counterfactual", "no option that is wrong in both", f"{len(options)} options")
    if context and (not isinstance(context, str) or context not in prompt.messages[-1]["content"]):
        raise Refusal("counterfactual", "the context is not in the prompt", repr(context)[:200])
    return _Item(lettered, str(answer), context or "")


def _number(premises: Sequence[str]) -> str:
    return "\n".join(f"{number}. {premise}" for number, premise in enumerate(premises, 1))


def _combine(original: _Rationale, right: str, wrong: str, new: Sequence[str]) -> list[str]:
    """Put new premises after the old ones that the old answer does not hang on and that leave the new one alone.

    An analysis that names no premise hangs on all; an answer that is right because nothing bears on it hangs on the others.
    """
    every = set(range(1, len(original.premises) + 1))
    old, other = original.paths[right], original.paths[wrong]
    kept = every & set(old.premises) or every
    if old.relation != "unrelated":
        kept = every - kept
    if other.relation not in (old.relation, "unrelated"):
        kept = kept - set(other.premises) if other.premises else set()
    return [premise for number, premise in enumerate(original.premises, 1) if number in kept] + list(new)


def _argue(item: _Item, rationale: _Rationale, messages: tuple[Message, ...] | None = None) -> Answer:
    """Write a rationale as a text in which each option's analysis is labelled with its letter."""
    text = f"Premises:\n{_number(rationale.premises)}\n"
    spans: list[Span] = []
    for letter, path in rationale.paths.items():
        text += f"\n{letter}) {item.options[letter]}\n"
        spans.append(Span(start=len(text), stop=len(text) + len(path.analysis), label=letter))
        text += f"{path.analysis}\nIt is {path.relation}{_name_premises(path)}.\n"
    text += f"\nThe answer is {rationale.answer}."
    return Answer(text=text, role="chosen", spans=tuple(spans), final=rationale.answer, prompt=messages)


def _name_premises(path: _Path) -> str:
    """Say which premises an option is supported by or unrelated to, where any are named."""
    if not path.premises:
        return ""
    way = "to" if path.relation == "unrelated" else "by"
    return f" {way} premise{'s' * (len(path.premises) > 1)} {', '.join(map(str, path.premises))}"
