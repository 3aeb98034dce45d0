"""Preferences(Job): what policies make of pairs that they did not learn from: which answer they prefer, where both moved.

Of each pair the log-probabilities of chosen and rejected given the prompt (without what ends a turn) are read under the base
model and under every policy: an adapter, or a decoding method. From them:

    reward_accuracy    share of pairs whose chosen gained more on the base than the rejected did (DPO's implicit reward)
    ranking_accuracy   share of pairs whose chosen is the likelier one, per token
    chosen, rejected   log-probability less the base's, in nats: a chosen that falls is displaced likelihood
    fell               share of pairs whose chosen fell

Source: Rafailov et al. 2023 (arXiv 2305.18290) for the implicit reward; Chen et al. 2024 (arXiv 2405.19534) for ranking
accuracy, which is often far below it; Razin et al. 2024 (arXiv 2410.08847) for likelihood displacement. Differences:
ranking is per token, so that a short answer does not win by its length.

Several pairs of one prompt are no independent draws: their mean is one value, and intervals are over prompts.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.inputs import InputPath, ModelName
from counterfoil.job import Job, Run
from counterfoil.jsonl import write_json
from counterfoil.records import Dropped, Group, content_id
from decode.engine import Engine, Given, Session, require
from decode.engines.vllm import Vllm
from decode.generate import ask, refuse_none
from decode.method import Method
from eval.groups import read_groups
from eval.parts import find_adapter, name_method, name_part
from eval.stats import mean_interval, paired_difference

__all__ = ["Preferences"]

BASE = "base"
SIDES = ("chosen", "rejected")


class _Read(NamedTuple):
    """Of one text: the sum of its tokens' log-probabilities in nats, and their number."""

    logprob: float
    num_tokens: int


class Preferences(Job):
    """Read held-out pairs with adapters and methods."""

    VERB: ClassVar[str] = "eval"

    pairs: InputPath
    """JSONL of pairs, in any format that `align` reads; of a group the first chosen and the first rejected answer."""
    adapters: tuple[Path, ...] = ()
    """Folders of adapters, or of runs with an `adapter` in them; each is named by its folder, and those that differ in a
    number at the end (`dpo_0`, `dpo_1`) are seeds of one."""
    methods: dict[str, Method] = {}
    """Decoding methods by a name of yours: the probabilities are then those of decoding with it. Give `threshold: 0`, or what
    the mask rules out weighs as much as the engine says."""
    model: ModelName = "smollm2"
    """A name, a folder, a GGUF file or a hub id."""
    engine: Engine = Vllm()
    """What runs the model."""
    baseline: str | None = None
    """The policy that others are compared with; None is the first one."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals, over prompts."""
    seed: int = 0
    """Of the resampling."""

    def inputs(self) -> dict[str, Path]:
        """Return the pairs and the adapters' weights, those of methods among them."""
        named = {f"adapters[{at}] {name_part(folder)}": folder for at, folder in enumerate(self.adapters)}
        for name, method in self.methods.items():
            named |= {f"methods.{name}.{key}": Path(folder) for key, folder in method.adapters.items()}
        return super().inputs() | {key: find_adapter(item) / "adapter_model.safetensors" for key, item in named.items()}

    def check(self) -> None:
        """Compare what is needed with what the engine gives; raise InputError where two policies bear one name."""
        needs = {"chat", "text", "given_logprobs"} | ({"adapters"} if self.adapters else set())
        require(self.engine, needs.union(*(method.needs for method in self.methods.values())), where="engine")
        names = [BASE, *map(name_part, self.adapters), *self.methods]
        if len(set(names)) < len(names):
            raise InputError("adapters, methods", given=", ".join(names), allowed="a name each", do="Rename one.")
        if len(names) == 1:
            do = "Give adapters=RUN,RUN, or methods."
            raise InputError("adapters, methods", given="none", allowed="one at least", do=do)
        trained, named = (
            {name_method(Path(name)) for name in each} for each in (map(name_part, self.adapters), self.methods)
        )
        if mixed := trained & named | (trained | named) & {BASE}:
            allowed = "names that differ in a number at the end only for seeds of one policy, and none of them `base`"
            raise InputError("adapters, methods", given=", ".join(sorted(mixed)), allowed=allowed, do="Rename one.")
        known = trained | named
        if self.baseline is not None and self.baseline not in known:
            given, allowed = repr(self.baseline), ", ".join(sorted(known))
            raise InputError("baseline", given=given, allowed=allowed, do="Name one of these.")

    def work(self, run: Run) -> None:
        """Read both sides of every pair under each policy, summarise over the pairs that all could read."""
        run.facts["seeds"] = {"seed": self.seed}
        run.open_output("dropped.jsonl")
        run.open_output("preferences.jsonl")
        pairs = {group.id: group for group in _keep_pairs(run, self.pairs)}
        refuse_none(len(pairs), run.dropped, where=f"pairs: {self.pairs}")
        policies: dict[str, dict[str, Any]] = {BASE: {}}
        policies |= {name_part(folder): {"adapter": str(find_adapter(folder))} for folder in self.adapters}
        policies |= {name: {"method": method} for name, method in self.methods.items()}
        found = {name: self._read(run, name, pairs, **policy) for name, policy in policies.items()}
        shared = [key for key in pairs if all(key in rows for rows in found.values())]
        for key in pairs.keys() - set(shared):
            missing = ", ".join(name for name, rows in found.items() if key not in rows)
            run.drop(Dropped(id=key, stage="preferences", reason="not read by all", detail=missing))
        refuse_none(len(shared), run.dropped, where=f"pairs: {self.pairs}")
        values: dict[str, dict[str, dict[str, float]]] = {}
        for name, rows in found.items():
            values[name] = {key: _compare(rows[key], found[BASE][key]) for key in shared}
            for key, row in values[name].items():
                sides = {f"logprob_{side}": round(item.logprob, 5) for side, item in rows[key].items()}
                run.write("preferences.jsonl", {"policy": name, "pair_id": key} | sides | row)
        methods = self._summarise(values, {key: content_id(pairs[key].prompt) for key in shared})
        whole = {"num_pairs": len(shared), "level": self.level, "baseline": self._baseline(methods)}
        write_json(run.folder / "summary.json", whole | {"methods": methods})
        run.figures |= {
            name: {key: row[key]["mean"] for key in ("reward_accuracy", "ranking_accuracy", *SIDES) if key in row}
            for name, row in methods.items()
        }
        run.counts["kept"] = len(shared)

    def _read(
        self,
        run: Run,
        name: str,
        pairs: Mapping[str, Group],
        *,
        adapter: str | None = None,
        method: Method | None = None,
    ) -> dict[str, dict[str, _Read]]:
        """Return of each pair what was read of its sides; of a pair with a side that could not be read, nothing."""
        identity = self.engine.identify(self.model)
        given = [
            Given(f"{key}/{side}", group.prompt, _text(group, side), adapter, method)
            for key, group in pairs.items()
            for side in SIDES
        ]
        keys = {item.id: self.engine.key(item, identity) for item in given}
        missing = [item for item in given if not run.store.has("given", keys[item.id])]
        if missing:
            then = partial(_score, run, missing, keys, name)
            ask(run, self.engine, self.model, list, total=0, stage=name, adapter=adapter, method=method, then=then)
        found: dict[str, dict[str, _Read]] = {}
        for key in pairs:
            texts = {side: run.store.get("given", keys[f"{key}/{side}"]) for side in SIDES}
            if all(texts.values()):
                found[key] = {side: _load(str(text)) for side, text in texts.items()}
        return found

    def _baseline(self, methods: Mapping[str, Any]) -> str:
        return self.baseline or next(name for name in methods if name != BASE)

    def _summarise(
        self, values: Mapping[str, Mapping[str, Mapping[str, float]]], prompts: Mapping[str, str]
    ) -> dict[str, Any]:
        """Average over seeds, then over the pairs of a prompt, then over prompts."""
        seeds: dict[str, list[Mapping[str, Mapping[str, float]]]] = defaultdict(list)
        for name, rows in values.items():
            seeds[BASE if name == BASE else name_method(Path(name))].append(rows)
        together: dict[str, list[str]] = defaultdict(list)
        for key, prompt in prompts.items():
            together[prompt].append(key)

        def column(method: str, figure: str) -> list[float]:
            return [
                _mean([_mean([rows[key][figure] for rows in seeds[method]]) for key in keys])
                for keys in together.values()
            ]

        ways: dict[str, Any] = {"level": self.level, "seed": self.seed}
        methods: dict[str, Any] = {}
        against = self._baseline(seeds)
        for method, rows in seeds.items():
            own = {key: column(method, key) for key in next(iter(rows[0].values()))}
            methods[method] = {key: mean_interval(values, **ways).round() for key, values in own.items()}
            if method not in (BASE, against):
                methods[method]["difference"] = {
                    key: paired_difference(column(against, key), values, **ways).round() for key, values in own.items()
                }
        return methods


def _keep_pairs(run: Run, path: Path) -> Iterator[Group]:
    """Yield each pair once; what has not both sides is dropped."""
    seen: set[str] = set()
    for group in run.sift(read_groups(path)):
        roles = {item.role for item in group.answers}
        reason = "duplicate pair" if group.id in seen else None if {*SIDES} <= roles else "no chosen or no rejected"
        if reason:
            run.drop(Dropped(id=group.id, stage="preferences", reason=reason))
            continue
        seen.add(group.id)
        yield group


def _text(group: Group, side: str) -> str:
    return next(item.text for item in group.answers if item.role == side)


def _compare(own: Mapping[str, _Read], base: Mapping[str, _Read]) -> dict[str, float]:
    """Return a pair's figures; the base model's are its ranking alone."""
    per_token = [own[side].logprob / max(own[side].num_tokens, 1) for side in SIDES]
    ranking = {"ranking_accuracy": float(per_token[0] > per_token[1])}
    if own is base:
        return ranking
    chosen, rejected = (round(own[side].logprob - base[side].logprob, 5) for side in SIDES)
    moved = {"chosen": chosen, "rejected": rejected, "fell": float(chosen < 0)}
    return ranking | {"reward_accuracy": float(chosen > rejected)} | moved


def _score(run: Run, given: Sequence[Given], keys: Mapping[str, str], name: str, session: Session) -> None:
    with run.progress.stage(name, total=len(given)) as shown:
        for result in session.logprobs(given):
            if result.failure is None:
                run.store.put("given", keys[result.id], f"{sum(result.token_logprobs)!r} {len(result.token_logprobs)}")
            shown.advance()


def _load(text: str) -> _Read:
    logprob, num_tokens = text.split()
    return _Read(float(logprob), int(num_tokens))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
