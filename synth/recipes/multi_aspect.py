"""Reviews that say more than one thing: another aspect is added, or what is said of one is turned round, and both by turns.

Source: C3DA (Wang et al. 2022, arXiv 2204.07832) and the authors' code (wangbing1416/C3DA at 64d88ec). One channel adds
an aspect to a sentence and leaves what it says of the old one, another turns the polarity of the old one round; each
goes on from what the other wrote, which makes four kinds of candidates. Those of which a classifier is sure, by the
entropy of what it says, are kept; the sentence is drawn to those of its polarity and away from the others. Differences:
(1) a model that is asked writes them, where the paper tunes a T5; (2) the released code keeps those of the LARGEST
entropy, against the paper: here the smallest; (3) what the classifier says must also be the polarity that was asked
for; (4) its `2 - polarity` exchanges positive with neutral and leaves negative as it is: here positive and negative are
exchanged, and a neutral sentence is refused; (5) the classifier is a language model's probabilities of the polarities'
names, in place of the one that is being trained.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, Field, StringConstraints, create_model

from counterfoil.records import Answer, Completion, Dropped, Group, Message, Prompt, Record, Score, Triplet, content_id
from decode.engine import Sampling
from decode.steps import Refusal, Steps, Weigh, ask_for
from eval.scorer import Scorer
from synth.recipe import Recipe

__all__ = ["MultiAspect"]

Channel = Literal["aspect", "polarity", "aspect, polarity", "polarity, aspect"]
CHANNELS: dict[Channel, Channel | None] = {
    "aspect": None,
    "polarity": None,
    "aspect, polarity": "aspect",
    "polarity, aspect": "polarity",
}
"""Each with the one from whose best it goes on."""

ADD = """Here is a {domain} review:

{text}

Write {count} different versions of it. Each still says something {polarity} about the {aspect}, and says something about the
{other} as well. Keep them as short as the review, and use the words {aspect} and {other}."""
TURN = """Here is a {domain} review:

{text}

Write {count} different versions of it in which the opinion about the {aspect} is {polarity}. Leave all else as it is,
and use the word {aspect}."""
READ = "Review: {text}\nSentiment about the {aspect}:"
"""A text that goes on with a polarity's name. Of 12 reviews SmolLM2-135M reads 12 so, and 6 or 7 as questions in a chat."""
ASK = """Here is a {domain} review:

{text}

Is its opinion about the {aspect} positive, negative or neutral? Reply with one word."""
IMPOSSIBLE = -1e4  # nats; a method may make all words impossible, and minus infinity could not be compared with itself
POLARITIES = ("positive", "negative", "neutral")
OPPOSITES = {"positive": "negative", "negative": "positive"}


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=400)]


class _Reviews(BaseModel):
    reviews: list[Text]


class _Review(NamedTuple):
    """What a prompt is about."""

    text: str
    aspect: str
    polarity: str
    other: str
    """The aspect that is added."""


class _Step(NamedTuple):
    """A way from one review to others."""

    channel: Channel
    polarity: str
    """Which they should have, about the aspect."""
    start: int
    """The number of the first."""


class _Candidate(NamedTuple):
    step: _Step
    completion: Completion
    shares: dict[str, float]
    """The classifier's probabilities."""

    @property
    def certainty(self) -> float:
        """1 less the entropy, as a share of the largest there is."""
        entropy = -sum(share * math.log(share) for share in self.shares.values() if share)
        return 1 - entropy / math.log(len(self.shares))

    def describe(self) -> Score:
        """Return what the classifier said of it."""
        shares = {word: round(share, 6) for word, share in self.shares.items()}
        detail = {"channel": self.step.channel, "polarity": self.step.polarity, "text": self.completion.text}
        value = round(self.certainty, 6)
        return Score(
            completion_id=self.completion.id, scorer="certainty", value=value, detail=detail | {"shares": shares}
        )


class MultiAspect(Recipe):
    """Write reviews through both channels and across; keep those that a classifier is sure of."""

    makes: ClassVar[type[Record]] = Triplet

    domain: str = "restaurant"
    """What the reviews are of."""
    aspects: tuple[str, ...] = Field(
        default=("food", "service", "price", "atmosphere", "menu", "wine", "dessert", "portions"), min_length=1
    )
    """Aspects that are added, one that a review does not name."""
    candidates: int = Field(default=3, ge=1)
    """Reviews that are asked for at a time, in each of four steps."""
    keep: int = Field(default=1, ge=1)
    """The surest of each step that are kept."""
    min_certainty: float = Field(default=0.4, ge=0, le=1)
    """1 less the entropy of the polarities, as a share of the largest entropy, at least."""
    writer: str = "writer"
    """Role of the model that writes."""
    classifier: str = "classifier"
    """Role of the model whose probabilities are read."""
    temperature: float = Field(default=0.8, ge=0)
    """Of what is written."""
    min_p: float = Field(default=0.05, ge=0, le=1)
    """Keeps the tail of the distribution out."""
    max_new_tokens: int = Field(default=384, ge=16)
    """Cut what is written at a time off after this many tokens."""

    def asks(self) -> Mapping[str, frozenset[str]]:
        """The writer and the classifier."""
        needs = {self.writer: frozenset({"chat", "schema", "seed"})}
        return needs | {self.classifier: needs.get(self.classifier, frozenset()) | {"text", "given_logprobs"}}

    def make(self, prompt: Prompt, scorer: Scorer) -> Steps[Sequence[Record]]:
        """Go through each channel, and from what is kept of it through the other; set what agrees against what does not."""
        review = self._read(prompt)
        lost: list[Dropped] = []
        kept: dict[Channel, list[_Candidate]] = {}
        for number, (channel, after) in enumerate(CHANNELS.items()):
            polarity = review.polarity if channel == "aspect" else OPPOSITES[review.polarity]
            step = _Step(channel, polarity, number * self.candidates)
            kept[channel] = []
            if after and not kept[after]:
                reason = f"{channel}: nothing to go on from"
                lost.append(Dropped(id=content_id(prompt.id, channel), stage="multi_aspect", reason=reason))
                continue
            source = kept[after][0].completion.text if after else review.text
            seen = {review.text, *(item.completion.text for items in kept.values() for item in items)}
            found = yield from self._write(prompt, review, source, step, lost)
            kept[channel] = self._sift(review, found, seen, lost)
        yield [*(self._classification(review, item) for items in kept.values() for item in items), *lost]
        against = [item for channel, items in kept.items() if channel != "aspect" for item in items]
        if not kept["aspect"] or not against:
            raise Refusal("multi_aspect", f"no review that {'disagrees' if kept['aspect'] else 'agrees'}")
        return [
            Triplet.make(
                review.text, one.completion.text, other.completion.text, prompt_id=prompt.id, recipe="multi_aspect"
            )
            for one in kept["aspect"]
            for other in against
        ]

    def _read(self, prompt: Prompt) -> _Review:
        """Read the reference. Raises Refusal where it does not say what there is to turn round, or nothing can be added."""
        text = prompt.messages[-1]["content"].strip()
        aspect, polarity = (prompt.reference.get(name) for name in ("aspect", "polarity"))
        if not isinstance(aspect, str) or not aspect.strip() or polarity not in POLARITIES:
            raise Refusal(
                "multi_aspect", "the reference has no aspect or no polarity", f"{aspect!r}, {polarity!r}"[:200]
            )
        if not text:
            raise Refusal("multi_aspect", "an empty review")
        if polarity not in OPPOSITES:
            raise Refusal("multi_aspect", "a neutral review has no opposite")
        free = [item for item in self.aspects if not _names(text, item) and not _names(aspect, item)]
        if not free:
            raise Refusal("multi_aspect", "the review names every aspect")
        return _Review(text, aspect.strip(), polarity, self.draw(prompt.id).choice(free))

    def _write(
        self, prompt: Prompt, review: _Review, source: str, step: _Step, lost: list[Dropped]
    ) -> Steps[list[_Candidate]]:
        """Ask for versions of `source`, and for what the classifier says of each, which is kept as a score."""
        asked = (ADD if step.channel.endswith("aspect") else TURN).format(
            domain=self.domain,
            text=source,
            count=self.candidates,
            aspect=review.aspect,
            other=review.other,
            polarity=step.polarity,
        )
        limits = Field(min_length=self.candidates, max_length=self.candidates)
        wanted = create_model("Reviews", __base__=_Reviews, reviews=(list[Text], limits))
        sampling = Sampling(temperature=self.temperature, min_p=self.min_p, max_new_tokens=self.max_new_tokens)
        try:
            (told,) = yield from ask_for(wanted, [_say(asked)], sampling, step=step.channel, role=self.writer)
        except Refusal as refusal:
            key = content_id(prompt.id, step.channel)
            lost.append(Dropped(id=key, stage=refusal.stage, reason=refusal.reason, detail=refusal.detail[:2000]))
            return []
        texts = list(dict.fromkeys(told.reviews))
        shares = yield from self._classify(texts, review.aspect)
        found = [
            _Candidate(step, _complete(prompt, number, text), share)
            for number, (text, share) in enumerate(zip(texts, shares, strict=True), step.start)
        ]
        yield [item.describe() for item in found]
        return found

    def _classify(self, texts: Sequence[str], aspect: str) -> Steps[list[dict[str, float]]]:
        """Return the classifier's probabilities for each text."""
        asked = [READ.format(text=text, aspect=aspect) for text in texts]
        weighed = yield [Weigh(text, f" {word}", "classify", self.classifier) for text in asked for word in POLARITIES]
        sums = [max(sum(found[0].token_logprobs or ()), IMPOSSIBLE) for found in weighed]
        return [_share(sums[at : at + len(POLARITIES)]) for at in range(0, len(sums), len(POLARITIES))]

    def _sift(
        self, review: _Review, found: Sequence[_Candidate], seen: set[str], lost: list[Dropped]
    ) -> list[_Candidate]:
        """Return the surest of those that are what they should be; the others are dropped, each with its reason."""
        kept: list[_Candidate] = []
        for item in sorted(found, key=lambda item: -item.certainty):
            text, polarity = item.completion.text, item.step.polarity
            why = ""
            if text in seen:
                why = "a copy"
            elif _names(review.text, review.aspect) and not _names(text, review.aspect):
                why = "the aspect is gone"
            elif item.step.channel != "polarity" and not _names(text, review.other):
                why = "the new aspect is not there"
            elif max(item.shares, key=item.shares.__getitem__) != polarity:
                why = "the classifier says another polarity"
            elif item.certainty < self.min_certainty:
                why = "the classifier is not sure"
            elif len(kept) == self.keep:
                why = "surer ones are kept"
            if not why:
                kept.append(item)
                continue
            detail = f"certainty {item.certainty:.3f}, {polarity}: {text}"
            reason = f"{item.step.channel}: {why}"
            lost.append(Dropped(id=item.completion.id, stage="multi_aspect", reason=reason, detail=detail))
        return kept

    def _classification(self, review: _Review, item: _Candidate) -> Group:
        """Return a kept review as a question about its aspect, with the right answer and the others."""
        asked = ASK.format(domain=self.domain, text=item.completion.text, aspect=review.aspect)
        answers = [
            Answer(text=word, role="chosen" if word == item.step.polarity else "rejected", score=share)
            for word, share in item.shares.items()
        ]
        return Group.make(_say(asked), answers, reference={"answer": item.step.polarity})


def _say(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def _names(text: str, aspect: str) -> bool:
    return aspect.casefold() in text.casefold()


def _complete(prompt: Prompt, index: int, text: str) -> Completion:
    """Make an answer of one text out of a document of several."""
    return Completion.make(
        prompt_id=prompt.id, index=index, text=text, finish_reason="stop", num_prompt_tokens=0, num_tokens=0
    )


def _share(logits: Sequence[float]) -> dict[str, float]:
    """Return the polarities' probabilities."""
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    return {word: weight / sum(weights) for word, weight in zip(POLARITIES, weights, strict=True)}
