"""Index(Job): a corpus to an index of it in meaning, in which recipes find neighbours.

    corpus -> (items) -> describe, by a model -> embed -> index/: vectors.usearch, entries.jsonl, settings.json

Source: the first step of Cui et al. 2025 (SRA-CL, arXiv 2503.04162): a model describes what a user or an item is about, and a
frozen embedder turns the description into the vector by which neighbours are found. Differences: (1) what is described is any
text; (2) without `describe_as` the text itself is embedded; (3) held-out users never enter the index.
"""

import base64
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from counterfoil.config import dump
from counterfoil.errors import ConfigError, InputError
from counterfoil.inputs import InputPath, ModelName
from counterfoil.job import Job, Run
from counterfoil.jsonl import read_jsonl, write_json
from counterfoil.records import Dropped, Message, Prompt, Record, content_id
from decode.dialogue import converse
from decode.embedder import Embed, Embedder
from decode.embedders.sentence_transformers import SentenceTransformers
from decode.engine import Engine, Sampling, require
from decode.engines.vllm import Vllm
from decode.generate import read_prompts, refuse_none
from decode.speaker import Speaker
from decode.steps import Ask, Refusal, Steps
from eval.judging import show_request
from synth.items import ItemKind, list_items
from synth.retrieval import ENTRIES, SETTINGS, VECTORS, Entry, Pool, VectorIndex

__all__ = ["Index"]

DESCRIBE = {
    "instruction": "Below is a request. In one or two sentences, say what kind of task it is and which skills it needs.",
    "passage": "Below is a passage. In one or two sentences, say what it is about.",
    "history": "Below is what a person did or chose, oldest first. In one or two sentences, say what this person likes.",
    "item": "Below is one item. In one or two sentences, say what it is and whom it is for.",
}
"""What a model is asked for; the text follows."""
BATCH = 1024
"""Entries that are embedded and added at a time."""


class Index(Job):
    """Write an index of a corpus, or bring an earlier one up to it without building it anew."""

    VERB: ClassVar[str] = "synth"

    corpus: InputPath
    """JSONL of prompts: instructions, passages, users' histories as text."""
    column: str = "prompt"
    """The column with the text or the messages; a column `messages` is taken first."""
    items: ItemKind | None = None
    """Index the items of the prompts (synth/items.py) in place of the prompts."""
    heldout: InputPath | None = None
    """JSONL of prompts that are evaluated on: neither they nor others of their users enter the index."""
    user_tag: str = "user"
    """The tag that names whose a prompt is."""
    describe_as: Literal["instruction", "passage", "history", "item"] | None = None
    """What a model is told that the text is, to describe it; None embeds the text as it is."""
    max_new_tokens: int = Field(default=80, ge=1)
    """Cut a description off after this many tokens."""
    model: ModelName = "smollm2"
    """A name, a folder, a GGUF file or a hub id: what describes."""
    engine: Engine = Vllm()
    """What runs the model."""
    embedder: Embedder = SentenceTransformers()
    """What makes vectors."""
    base: InputPath | None = None
    """The folder of an earlier index: what both have is neither described nor embedded again, what the corpus no longer has
    is taken out."""

    def check(self) -> None:
        """Compare what is asked with what the engine gives, and the settings with those of the earlier index."""
        if self.describe_as is not None:
            require(self.engine, {"chat"}, where="engine")
        before = Pool(self.base).settings if self.base is not None else self._settings
        if changed := [key for key, value in self._settings.items() if before.get(key) != value and key != "embedder"]:
            given, allowed = f"made otherwise ({', '.join(changed)})", "an index made by the same models and settings"
            raise ConfigError(f"base: {self.base}", given=given, allowed=allowed, do="Leave `base` out to begin anew.")

    def work(self, run: Run) -> None:
        """Describe all, so that the model is gone before the embedder comes; then embed, add, and take out what is gone."""
        folder = run.folder / "index"
        folder.mkdir(exist_ok=True)
        for name in ("exchanges.jsonl", "dropped.jsonl", f"index/{ENTRIES}"):
            run.open_output(name)
        base = Pool(self.base) if self.base is not None else None
        run.facts["embedder"] = self._settings["identity"]
        run.counts["kept"] = 0
        for entry in self._describe_all(run, base):
            run.write(f"index/{ENTRIES}", entry)
            run.counts["kept"] += 1
        count = run.counts["kept"]
        refuse_none(count, run.dropped, where="corpus")
        path = run.close_output(f"index/{ENTRIES}")
        write_json(folder / SETTINGS, self._settings)
        with run.progress.stage("embed", total=count) as shown:
            run.figures |= {"entries": count} | self._fill(run, path, base, shown.advance)

    def _fill(self, run: Run, path: Path, base: Pool | None, advance: Callable[[int], None]) -> dict[str, int]:
        """Write the vectors of the entries in `path`; return how many came new and how many went."""
        vectors = VectorIndex.load(self.base / VECTORS) if self.base is not None else None
        gone, added = set(base.ids() if base else ()), 0
        entries = (item for item in read_jsonl(path, Entry, where="index") if isinstance(item, Entry))
        while batch := list(islice(entries, BATCH)):
            new = [entry for entry in batch if base is None or entry.id not in base]
            if new:
                found = self._embed_all(run, [entry.description or show_request(entry.prompt) for entry in new])
                vectors = vectors or VectorIndex(found.shape[1])
                vectors.add([entry.id for entry in new], found)
            gone -= {entry.id for entry in batch}
            added += len(new)
            advance(len(batch))
        assert vectors is not None
        vectors.remove(sorted(gone))
        vectors.save(path.with_name(VECTORS))
        return {"added": added, "removed": len(gone)}

    def _describe_all(self, run: Run, base: Pool | None) -> Iterator[Entry]:
        """Yield an entry for each prompt, in their order."""
        prompts = self._read(run)
        if self.describe_as is None:
            yield from (Entry(id=prompt.id, prompt=prompt) for prompt in prompts)
            return

        def make(prompt: Prompt) -> Steps[Sequence[Record]]:
            return self._describe(prompt, base)

        speaker = Speaker(model=self.model, engine=self.engine)
        for outcome in converse(run, {"": speaker}, prompts, make, seed=0, stage="describe"):
            for exchange in outcome.exchanges:
                run.write("exchanges.jsonl", exchange)
                run.tokens["generated"] = run.tokens.get("generated", 0) + exchange.completions[0].num_tokens
            if outcome.dropped is not None:
                run.drop(outcome.dropped)
            yield from (entry for entry in outcome.records if isinstance(entry, Entry))

    def _describe(self, prompt: Prompt, base: Pool | None) -> Steps[Sequence[Record]]:
        assert self.describe_as is not None
        if base is not None and prompt.id in base:
            return [base.entry(prompt.id).model_copy(update={"prompt": prompt})]  # with the tags that it has now
        asked = Message(role="user", content=f"{DESCRIBE[self.describe_as]}\n\n{show_request(prompt)}")
        ((answer,),) = yield [Ask((asked,), Sampling(max_new_tokens=self.max_new_tokens), step="describe")]
        if not answer.text.strip():
            raise Refusal("describe", "empty description")
        return [Entry(id=prompt.id, prompt=prompt, description=answer.text.strip())]

    def _read(self, run: Run) -> Iterator[Prompt]:
        """Yield each prompt, or each item of each, once; those of held-out users are dropped."""
        seen, run.counts["read"] = run.store.open_set("entries"), 0
        ids, users = self._read_heldout()
        for prompt in run.sift(read_prompts(self.corpus, column=self.column, where="corpus")):
            if Prompt.make(prompt.messages).id in ids or prompt.tags.get(self.user_tag) in users:
                run.drop(Dropped(id=prompt.id, stage="index", reason="held out"))
                continue
            found = [prompt] if self.items is None else list_items(prompt, self.items)
            if not found:
                run.drop(Dropped(id=prompt.id, stage="index", reason=f"no {self.items}"))
            for item in found:
                if not show_request(item).strip():
                    run.drop(Dropped(id=item.id, stage="index", reason="no text"))
                elif seen(item.id):
                    yield item
                elif self.items is None:
                    run.drop(Dropped(id=item.id, stage="index", reason="came before"))

    def _read_heldout(self) -> tuple[set[str], set[str]]:
        """Return the ids of held-out prompts, whatever their references, and users. Raises InputError for a broken line."""
        ids, users = set[str](), set[str]()
        for item in read_prompts(self.heldout, column=self.column, where="heldout") if self.heldout else ():
            if isinstance(item, Dropped):
                given, do = f"{item.reason} ({item.detail})", "Mend the line: what is not read is not held out."
                raise InputError(f"heldout: {self.heldout}", given=given, allowed="a prompt a line", do=do)
            ids.add(Prompt.make(item.messages).id)
            users |= {item.tags[self.user_tag]} if self.user_tag in item.tags else set()
        return ids, users

    def _embed_all(self, run: Run, texts: Sequence[str]) -> Any:
        """Return the texts' vectors; each is kept as it lands, so that a run that goes on embeds none twice."""
        import numpy as np

        keys = [content_id(self._settings["identity"], text) for text in texts]
        missing = [at for at, key in enumerate(keys) if not run.store.has("vector", key)]
        if missing:
            found = self._embed([texts[at] for at in missing])
            for at, vector in zip(missing, found, strict=True):
                run.store.put("vector", keys[at], base64.b64encode(vector.astype(np.float16).tobytes()).decode())
        kept = [base64.b64decode(run.store.get("vector", key) or "") for key in keys]
        return np.stack([np.frombuffer(part, dtype=np.float16) for part in kept]).astype(np.float32)

    @cached_property
    def _embed(self) -> Embed:
        return self.embedder.open()

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What decides about vectors: an index holds those of one kind."""
        told = (
            [DESCRIBE[self.describe_as], self.max_new_tokens, self.engine.identify(self.model)]
            if self.describe_as
            else None
        )
        return {"embedder": dump(self.embedder), "identity": self.embedder.identify(), "described": told}
