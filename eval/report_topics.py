"""What prompts are about: their embeddings on a plane, in groups that are named by the words that set them apart.

Source: principal components and k-means by scikit-learn. Differences: none known.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from decode.embedder import Embedder
from eval.report_plots import Plot, plot_map

if TYPE_CHECKING:
    from counterfoil.records import Prompt

__all__ = ["Topics", "map_topics"]

MAX_PROMPTS = 1_000
"""Drawn and grouped; some seconds of a small embedder's time on two cores."""
MAX_TOPICS = 8
PROMPTS_A_TOPIC = 12


class Topics(NamedTuple):
    """The map, and of each topic its words, how many prompts it has and how many of them led to a pair."""

    plot: Plot
    rows: list[tuple[str, int, int]]


def map_topics(prompts: Sequence["Prompt"], paired: Collection[str], embedder: Embedder) -> Topics | None:
    """Map prompts, an even sample of them where they are many; `paired` are the ids of those that led to pairs.

    Returns None where they are too few to group. Raises EngineError where a library is missing, InputError for no model.
    """
    step = -(-len(prompts) // MAX_PROMPTS) or 1
    sample = prompts[::step]
    num_topics = min(MAX_TOPICS, len(sample) // PROMPTS_A_TOPIC)
    if num_topics < 2:
        return None
    texts = [item.messages[-1]["content"] for item in sample]
    vectors_ND = embedder.open()(texts)
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    plane_N2: list[list[float]] = PCA(2, random_state=0).fit_transform(vectors_ND).tolist()
    labels_N: list[int] = KMeans(num_topics, n_init="auto", random_state=0).fit_predict(vectors_ND).tolist()
    points: list[tuple[str, list[tuple[float, float]]]] = []
    rows: list[tuple[str, int, int]] = []
    for topic, num in Counter(labels_N).most_common():
        members = [at for at, label in enumerate(labels_N) if label == topic]
        name = name_topic([texts[at] for at in members], texts)
        points.append((name, [(plane_N2[at][0], plane_N2[at][1]) for at in members]))
        rows.append((name, num, sum(sample[at].id in paired for at in members)))
    of = f"{len(sample):,} prompts" if step == 1 else f"{len(sample):,} of {len(prompts):,} prompts, each {step}th"
    caption = f"{of}: what is near in meaning is near here, as far as a plane can show it. Groups by k-means."
    return Topics(plot_map("Topics of the prompts", caption, points), rows)


def name_topic(texts: Sequence[str], everything: Sequence[str]) -> str:
    """Name a group by the three words that most of its texts have and most others have not."""
    inside, outside = (_count_texts(part) for part in (texts, everything))
    gain = {word: num / len(texts) - outside[word] / len(everything) for word, num in inside.items()}
    best = sorted(gain, key=lambda word: (-gain[word], word))[:3]
    return ", ".join(best) or "(no words)"


def _count_texts(texts: Sequence[str]) -> Counter[str]:
    return Counter(word for text in texts for word in set(re.findall(r"[^\W\d_]{3,}", text.lower())))
