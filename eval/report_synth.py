"""The section of a synthesis: where prompts and pairs stopped, scores, margins, lengths, judges, repeats, topics, costs.

A block is a heading, a sentence about how to read it, plots and a table; the page's template draws all alike.
"""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from counterfoil.account import Account, Share
from counterfoil.errors import EngineError, InputError
from counterfoil.progress import show_seconds
from counterfoil.records import Group, Pair, Prompt, Triplet
from decode.embedder import Embedder
from eval.overlap import find_overlap, list_texts, read_marks
from eval.report_pairs import Packed, pack_items
from eval.report_plots import Plot, format_number, plot_flow, plot_histogram, to_dict, to_float
from eval.report_topics import map_topics

__all__ = ["read_synthesis"]

MAX_CHARS = 160
"""Of a detail, which may be a model's whole answer."""
MAX_REASONS = 14
"""Drawn in the flow; the table has all."""
MAIN = "main model"
"""Has no name as a role."""
DUPLICATES = ("near_duplicate", "fuzzy_duplicate", "semantic_duplicate")


def read_synthesis(
    folder: Path,
    manifest: dict[str, Any],
    notes: list[str],
    *,
    max_pairs: int,
    max_dialogue_mb: int,
    embedder: Embedder | None,
    sets: Sequence[Path],
) -> dict[str, Any]:
    """Read what the template shows of a synthesis. Raises InputError for an evaluation set that cannot be read."""
    account = Account()
    packed = pack_items(folder, account, max_items=max_pairs, max_dialogue_chars=max_dialogue_mb * 1_000_000)
    account.add_stops(folder)
    _note_what_lacks(folder, account, packed, notes)
    blocks = [
        _show_stops(manifest, account),
        _show_scores(account),
        _show_lengths(account),
        _show_judges(account),
        _show_repeats(manifest, account, _count_overlaps(folder, account, sets)),
        _show_topics(folder, account, embedder),
        _show_costs(manifest, account),
    ]
    return {
        "summary": _summarise(manifest, account),
        "tiles": _list_tiles(manifest, account),
        "blocks": [block for block in blocks if block],
        "made": packed if packed.num_items else None,
    }


def _note_what_lacks(folder: Path, account: Account, packed: Packed, notes: list[str]) -> None:
    name = packed.kind.name
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        notes.append("There is no pairs.jsonl, groups.jsonl or triplets.jsonl: the run made nothing.")
    elif not packed.num_made:
        notes.append(f"{path.name} holds no {name}.")
    notes.extend(
        f"{file}: {num:,} lines left out, which are no such records." for file, num in account.unreadable.items()
    )
    if packed.num_items < packed.num_made:
        held = f"The page holds the first {packed.num_items:,} of {packed.num_made:,} {name}"
        notes.append(f"{held} (max_pairs); {path.name} holds them all.")
    if packed.num_without and account.steps:
        held = f"The page holds the dialogues behind {packed.num_items - packed.num_without:,} of {packed.num_items:,} {name}"
        notes.append(f"{held} (max_dialogue_mb); exchanges.jsonl holds them all.")


def _counts(manifest: dict[str, Any]) -> tuple[dict[str, Any], dict[tuple[str, str], float]]:
    """Return the manifest's counts, and of the dropped ones stage and reason apart, the commonest first."""
    counts = to_dict(manifest.get("counts"))
    dropped = sorted(to_dict(counts.get("dropped")).items(), key=lambda item: (-to_float(item[1]), item[0]))
    split = (key.partition(": ") for key, _ in dropped)
    keys = [(stage, reason or "(no reason)") for stage, _, reason in split]
    return counts, dict(zip(keys, (to_float(num) for _, num in dropped), strict=True))


def _summarise(manifest: dict[str, Any], account: Account) -> str:
    counts, dropped = _counts(manifest)
    made = [f"{num} {name}" for num, name in _list_made(manifest, account)]
    words = f"{format_number(counts.get('read'))} prompts became {' and '.join(made)}."
    if dropped:
        stage, reason = next(iter(dropped))
        most = f"{stage}: {reason} ({format_number(dropped[stage, reason])})"
        words += f" {format_number(sum(dropped.values()))} led to none; the commonest reason is {most}."
    return words


def _list_made(manifest: dict[str, Any], account: Account) -> list[tuple[str, str]]:
    """Return how many pairs there are, or of what else a recipe makes."""
    figures = to_dict(manifest.get("figures"))
    others = [
        (format_number(figures[name]), name) for name in ("groups", "triplets", "instructions") if name in figures
    ]
    return others if others and not len(account.pairs) else [(f"{len(account.pairs):,}", "pairs")]


def _list_tiles(manifest: dict[str, Any], account: Account) -> list[tuple[str, str]]:
    """Return numbers and what they are of."""
    tokens = to_dict(manifest.get("tokens"))
    tiles = _list_made(manifest, account)
    if len(account.pairs):
        tiles.append((format_number(_median(account.pairs.margins)), "median margin"))
        if account.pairs.longer_chosen.total:
            tiles.append((format_number(account.pairs.longer_chosen.value, "share"), "chosen is the longer"))
    for role, tally in account.verdicts.items():
        share = format_number(tally.shares["same verdict in both orders"].value, "share")
        tiles.append((share, f"of verdicts by {role or MAIN} hold in both orders"))
    tiles.append((format_number(tokens.get("generated")), "tokens generated"))
    seconds = to_float(manifest.get("seconds"))
    return [*tiles, ("-" if math.isnan(seconds) else show_seconds(seconds), "of time")]


def _block(
    title: str, text: str, *, plots: Sequence[Plot] = (), head: Sequence[str] = (), rows: Any = ()
) -> dict[str, Any]:
    return {"title": title, "text": text, "plots": plots, "head": head, "rows": rows}


def _show_stops(manifest: dict[str, Any], account: Account) -> dict[str, Any]:
    counts, dropped = _counts(manifest)
    kept = to_float(counts.get("kept"))
    ends = [(stage, reason, int(num)) for (stage, reason), num in dropped.items() if num > 0]
    stages = dict.fromkeys(stage for stage, _, _ in ends)
    ends = [end for stage in stages for end in ends if end[0] == stage]
    if len(ends) > MAX_REASONS:
        rest = sum(num for _, _, num in ends[MAX_REASONS:])
        ends = [*ends[:MAX_REASONS], ("others", f"{len(ends) - MAX_REASONS} more reasons", rest)]
    read = to_float(counts.get("read"))
    plots: list[Plot] = []
    if ends and read > 0 and not math.isnan(kept):
        caption = "Prompts from left to right: what goes on, and what stops, by stage and then by reason."
        plots = [plot_flow("The way of the prompts", caption, ("read", int(read)), [("kept", "", int(kept)), *ends])]
    rows = [
        (
            *key,
            dropped.get(key, 0),
            account.refused.get(key, 0),
            "; ".join(text[:MAX_CHARS] for text in account.examples.get(key, [])),
        )
        for key in dict.fromkeys([*dropped, *account.refused])
    ]
    text = (
        "Every prompt that was read is kept or stands here. A prompt may lead to several pairs: a filter refuses single "
        "ones, and a prompt is dropped where none is left."
    )
    head = ("stage", "reason", "prompts", "pairs", "what it said")
    return _block("What stopped, and where", text, plots=plots, head=head, rows=rows)


def _show_scores(account: Account) -> dict[str, Any] | None:
    pairs = account.pairs
    plots: list[Plot] = []
    if len(pairs):
        caption = "Score of the chosen answer less that of the rejected one."
        plots.append(plot_histogram("Margins", caption, {"": _finite(pairs.margins)}, "margin"))
        sides = {"chosen": _finite(pairs.score_chosen), "rejected": _finite(pairs.score_rejected)}
        plots.append(plot_histogram("Scores in pairs", "By side; what both have is overlaid.", sides, "score"))
    for scorer, values in list(account.scores.items())[:4]:
        caption = "Of all answers, those in no pair too."
        plots.append(plot_histogram(f"Scores by {scorer}", caption, {"": _finite(values)}, "score", ylabel="answers"))
    rows = [(name, len(values), *_spread(values)) for name, values in account.scores.items()]
    if len(pairs):
        rows = [("margin of a pair", len(pairs), *_spread(pairs.margins)), *rows]
    if not rows:
        return None
    text = "A wide margin is an easy lesson, a narrow one may be the scorer's noise."
    head = ("score", "how many", "lowest", "lower quarter", "median", "upper quarter", "highest")
    return _block("Scores and margins", text, plots=plots, head=head, rows=rows)


def _show_lengths(account: Account) -> dict[str, Any] | None:
    pairs = account.pairs
    if not len(pairs):
        return None
    sides = {"chosen": [*map(float, pairs.words_chosen)], "rejected": [*map(float, pairs.words_rejected)]}
    medians = ", ".join(f"{name} {format_number(_median(values))}" for name, values in sides.items())
    plots = [plot_histogram("Lengths", f"Words an answer; medians: {medians}.", sides, "words")]
    gaps = [one - other for one, other in zip(sides["chosen"], sides["rejected"], strict=True)]
    caption = "Words of the chosen answer less those of the rejected one; to the right of 0 the chosen one is longer."
    plots.append(plot_histogram("Difference of lengths", caption, {"": gaps}, "words"))
    text = (
        f"The chosen answer is the longer one in {_show_share(pairs.longer_chosen)} of the pairs whose lengths differ. "
        "Far from 50%, training teaches length as well; the filter length_gap, or max_length_gap in best_of_n, is against it."
    )
    return _block("Lengths", text, plots=plots)


def _show_judges(account: Account) -> dict[str, Any] | None:
    if not account.verdicts:
        return None
    rows = [
        (name, *(_show_share(tally.shares[name]) for tally in account.verdicts.values()))
        for name in next(iter(account.verdicts.values())).shares
    ]
    compared = ("comparisons", *(f"{tally.total:,}" for tally in account.verdicts.values()))
    text = (
        "Each two answers were shown in both orders, and only what a judge says in both counts. One that reads the answers "
        "is consistent. Where the order decided, one without a bias would take the first as often as the second: 50%. The "
        "longer answer may be better: compare its share with that of a judge whom you trust."
    )
    return _block(
        "Judges: consistency, order and length",
        text,
        head=("", *(role or MAIN for role in account.verdicts)),
        rows=[compared, *rows],
    )


def _count_overlaps(folder: Path, account: Account, sets: Sequence[Path]) -> dict[str, int] | None:
    """Count the pairs that share words with an evaluation set, by what of them does; None where none is given."""
    if not sets:
        return None
    found, known = {"prompt": 0, "chosen": 0, "rejected": 0}, read_marks(sets)
    for pair in account.read(folder / "pairs.jsonl", Pair):
        prompt, sides = list_texts(pair)
        texts = [*(("prompt", text) for text in prompt), *sides]
        shared = {name for name, text in texts if find_overlap(text, known)}
        found |= {name: found[name] + 1 for name in shared}
    return found


def _show_repeats(manifest: dict[str, Any], account: Account, overlaps: dict[str, int] | None) -> dict[str, Any] | None:
    pairs = account.pairs
    if not len(pairs):
        return None
    names = [str(to_dict(item).get("name", item)) for item in _to_list(to_dict(manifest.get("config")).get("filters"))]
    refused = Counter[str]()
    for (stage, _), num in account.refused.items():
        refused[stage] += num
    several = len(pairs) - len(pairs.prompts)
    rows = [
        ("ties: pairs whose scores are equal", pairs.ties),
        ("pairs whose rejected answer has the higher score", pairs.inverted),
        ("pairs beyond the first of their prompt", several),
        ("duplicates: pairs whose chosen answer came before, but for case and spaces", pairs.repeated_chosen),
        ("texts that are chosen in one pair and rejected in another", pairs.on_both_sides),
        ("chosen answers that were cut off", pairs.cut["chosen"]),
        ("rejected answers that were cut off", pairs.cut["rejected"]),
        *((f"pairs whose {name} shares words with an evaluation set", num) for name, num in (overlaps or {}).items()),
        *((f"refused by the filter {name}", refused[name]) for name in names),
    ]
    missing = []
    if not set(names) & set(DUPLICATES):
        missing.append("near duplicates were not looked for (filters near_duplicate, fuzzy_duplicate)")
    if "overlap" not in names and overlaps is None:
        missing.append("overlap with evaluation sets was not looked for (filter overlap, or `sets` of this page)")
    text = "Counted in the pairs that are kept; below, what each filter refused."
    if missing:
        text += f" What is not known: {'; '.join(missing)}."
    return _block("Ties, duplicates, overlap", text, head=("", "pairs"), rows=rows)


def _show_topics(folder: Path, account: Account, embedder: Embedder | None) -> dict[str, Any] | None:
    if embedder is None:
        return None
    title = "Topics"
    found = [*account.read(folder / "instructions.jsonl", Prompt)] or [*account.read(folder / "prompts.jsonl", Prompt)]
    led, made = account.pairs.prompts, "a pair"
    for name, kind in (("group", Group), ("triplet", Triplet)):
        if not led:
            led, made = {item.source_id for item in account.read(folder / f"{name}s.jsonl", kind)}, f"a {name}"
    try:
        topics = map_topics(found, led, embedder)
    except (EngineError, InputError) as error:
        return _block(title, f"No map: {error.given}. {error.do}")
    if topics is None:
        return _block(title, "No map: too few prompts to group.")
    rows = [
        (f"{at} {name}", num, _show_share(Share(paired, num))) for at, (name, num, paired) in enumerate(topics.rows, 1)
    ]
    text = f"Groups of prompts, each named by the words that set it apart, and how many of them led to {made}."
    return _block(title, text, plots=[topics.plot], head=("topic", "prompts", f"led to {made}"), rows=rows)


def _show_costs(manifest: dict[str, Any], account: Account) -> dict[str, Any] | None:
    if not account.steps:
        return None
    rows = [
        (step, role or MAIN, tally.asked, tally.answers, tally.prompt_tokens, tally.tokens, tally.cut)
        for (step, role), tally in account.steps.items()
    ]
    seconds = to_float(manifest.get("seconds"))
    tokens = sum(tally.tokens for tally in account.steps.values())
    text = f"{show_seconds(seconds)} in all, {tokens / seconds:,.0f} generated tokens a second. " if seconds > 0 else ""
    text += "Answers that were kept from an earlier run are counted here and cost nothing again."
    head = ("step", "model", "requests", "answers", "prompt tokens", "generated tokens", "cut off")
    return _block("Tokens and time", text, head=head, rows=rows)


def _show_share(share: Share) -> str:
    if not share.total:
        return "- (none)"
    low, high = (format_number(end, "share") for end in share.interval)
    return f"{format_number(share.value, 'share')} [{low} to {high}], {share.num:,} of {share.total:,}"


def _spread(values: Sequence[float]) -> tuple[float, ...]:
    found = _finite(values)
    if len(found) < 2:
        return tuple(found * 5) or (math.nan,) * 5
    return (min(found), *statistics.quantiles(found, n=4, method="inclusive"), max(found))


def _median(values: Sequence[float]) -> float:
    found = _finite(values)
    return statistics.median(found) if found else math.nan


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _to_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
