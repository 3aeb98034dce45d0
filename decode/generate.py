"""Generate(Job): prompts in, completions out; and the one way in which every job asks an engine and keeps the answers."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

from counterfoil.errors import ConfigError, InputError, RunError
from counterfoil.inputs import InputPath, ModelName
from counterfoil.job import Job, Run
from counterfoil.jsonl import read_lines
from counterfoil.records import Completion, Dropped, Message, Prompt, content_id
from decode.answers import Answers
from decode.engine import Engine, Request, Sampling, Session, require
from decode.engines.vllm import Vllm
from decode.method import Method

__all__ = ["Generate", "ask", "draw_seed", "read_prompts", "refuse_none"]


def draw_seed(seed: int, prompt_id: str) -> int:
    """Derive a prompt's seed, so that two prompts never share their noise and order never matters."""
    return int(content_id(seed, prompt_id)[:7], 16)


def ask(
    run: Run,
    engine: Engine,
    model: str,
    requests: Callable[[], Iterable[Request]],
    *,
    total: int | None,
    stage: str = "generate",
    adapter: str | None = None,
    method: Method | None = None,
    then: Callable[[Session], None] | None = None,
) -> Callable[[Request], tuple[Completion, ...] | Dropped]:
    """Answer every request that has no kept answer, keeping each answer as it lands; return what reads an answer.

    The engine is opened only if something is left to ask, or there is a `then`, which gets the open session afterwards.
    `adapter` and `method` are the requests', where they have them. `requests` is called once and read lazily. What is
    returned gives a request's answer, or why there is none.
    """
    identity = run.facts["model"] = engine.identify(model)
    unanswered = _Unanswered(run, engine, identity, requests())
    first = next(unanswered.todo, None)
    if first is None and then is None:
        return partial(_read_answer, run, engine, identity)
    methods = [method] if method else []
    with engine.open(model, adapters=[adapter] if adapter else [], methods=methods) as session:
        if first is not None:
            _keep_answers(run, session, chain([first], unanswered.todo), unanswered, stage=stage, total=total)
        if then is not None:
            then(session)
    return partial(_read_answer, run, engine, identity)


def _keep_answers(
    run: Run, session: Session, todo: Iterable[Request], unanswered: "_Unanswered", *, stage: str, total: int | None
) -> None:
    started, generated, already = time.monotonic(), 0, unanswered.skipped
    answered, failure, answers = False, None, Answers(run.store)
    with run.progress.stage(stage, total=total, already=already) as shown:
        for result in session.complete(todo):
            key = unanswered.keys.pop(result.id)
            if result.failure is None:
                answers.keep(key, result.completions)
                generated += sum(item.num_tokens for item in result.completions)
                answered = True
            else:
                run.store.put("failure", key, result.failure)
                failure = failure or result.failure
            rate = generated / max(time.monotonic() - started, 1e-9)
            shown.advance(1 + unanswered.skipped - already, **{"tokens/s": round(rate)})
            already = unanswered.skipped
    if failure and not answered and not unanswered.skipped:
        given = f"no request was answered; the first failed with: {failure}"
        do = "Mend what it names and run again: all are asked again."
        raise RunError(f"{stage}: {run.folder}", given=given, allowed="at least one answer", do=do)


class _Unanswered:
    """The requests without an answer yet, how many were skipped, and the keys of those handed out."""

    def __init__(self, run: Run, engine: Engine, identity: str, requests: Iterable[Request]) -> None:
        self.skipped = 0
        self.keys: dict[str, str] = {}
        self.todo = self._filter(run, engine, identity, requests)

    def _filter(self, run: Run, engine: Engine, identity: str, requests: Iterable[Request]) -> Iterator[Request]:
        answers = Answers(run.store)
        for request in requests:
            key = engine.key(request, identity)
            if answers.has(key):
                self.skipped += 1
            else:
                self.keys[request.id] = key
                yield request


def _read_answer(run: Run, engine: Engine, identity: str, request: Request) -> tuple[Completion, ...] | Dropped:
    key = engine.key(request, identity)
    kept = Answers(run.store).find(key, prompt_id=request.id)
    if kept is None:
        reason = run.store.get("failure", key) or "never answered"
        return Dropped(id=request.id, stage="generate", reason="request failed", detail=reason)
    return kept


def refuse_none(num_prompts: int, dropped: Mapping[str, int], *, where: str) -> None:
    """Raise InputError where no prompt is left: an empty result could be taken for a whole one."""
    if num_prompts == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none came"
        given = f"no prompt ({reasons})"
        raise InputError(where, given=given, allowed="at least one prompt", do="Check the rows and the column's name.")


def read_prompts(
    path: InputPath,
    *,
    column: str,
    where: str,
    negative: Literal["unread", "may", "must"] = "unread",
    asked: bool = False,
) -> Iterator[Prompt | Dropped]:
    """Read prompts from JSONL: Prompt records, or rows whose `column` is a text or a list of messages.

    `negative` says whether the column of that name is read as well, and whether a row without it is dropped. Where a model is
    `asked`, a row is dropped that asks nothing: its last message is the assistant's, or empty.
    """
    for row in read_lines(path, where=where):
        if isinstance(row, Dropped):
            yield row
            continue
        value = row.get("messages") or row.get(column)
        if value is None and not {"messages", column} & row.keys():
            yield _drop_row(row, f"no column {column!r}", f"columns: {sorted(row)}")
        elif not value or not isinstance(value, str | list):
            yield _drop_row(row, "empty prompt")
        elif negative != "unread" and not isinstance(row.get("negative"), str | list | None):
            yield _drop_row(row, "negative is neither a text nor messages")
        elif negative == "must" and row.get("negative") is None:
            yield _drop_row(row, "no column 'negative'", f"columns: {sorted(row)}")
        else:
            try:
                more = {key: row.get(key) or None for key in ("reference", "tags")}
                prompt = Prompt.make(value, **more, negative=None if negative == "unread" else row.get("negative"))
                prompt.model_dump_json()  # half of a surrogate pair is JSON, but no text that could be written again
                json.dumps(more, allow_nan=False)  # nor is NaN
            except (ValueError, TypeError) as error:
                yield _drop_row(row, "not a prompt", str(error))
            else:
                fault = _find_fault(prompt.messages[-1]) if asked else ""
                yield _drop_row(row, fault, "the last message") if fault else prompt


def _find_fault(last: Message) -> str:
    """Say why a last message asks nothing: a template would show it, and a model go on from it, all the same."""
    return "answered already" if last["role"] == "assistant" else "" if last["content"].strip() else "empty prompt"


def _drop_row(row: dict[str, Any], reason: str, detail: str = "") -> Dropped:
    return Dropped(id=content_id(row), stage="read", reason=reason, detail=detail[:200])


class Generate(Job):
    """Answer the prompts of a file."""

    VERB: ClassVar[str] = "decode"

    prompts: InputPath
    """JSONL with a column of texts or message lists."""
    column: str = "prompt"
    """The column that holds the prompt."""
    chat: bool = True
    """False goes on from a text as it stands, without the model's chat template."""
    model: ModelName = "smollm2"
    """A name, a folder, a GGUF file or a hub id."""
    engine: Engine = Vllm()
    """What runs the model."""
    sampling: Sampling = Sampling()
    """How tokens are drawn."""
    adapter: InputPath | None = None
    """Folder of a PEFT adapter."""
    method: Method | None = None
    """How the next token is chosen; one with two prompts takes the other one from the column `negative`."""

    def check(self) -> None:
        """Compare what is needed with what the engine gives."""
        sampling, needs = self.sampling, {"chat" if self.chat else "text", "n"}
        also = {"adapters": self.adapter, "stop": sampling.stop, "beams": sampling.num_beams > 1}
        needs |= {need for need, there in also.items() if there}
        require(self.engine, needs | (self.method.needs if self.method else set()), where="engine")
        two_prompts = self.method is not None and "two_prompts" in self.method.needs  # a row that lacks one fails alone
        adapter = str(self.adapter) if self.adapter else None
        asked = Request("", "", sampling, adapter, self.method, "" if two_prompts else None)
        if fault := asked.find_fault(self.engine.gives):
            allowed = "a method with all that it needs, and a sampling that it has a use for"
            do = "Change the method's fields, the sampling or the adapter."
            raise ConfigError("method" if self.method else "sampling", given=fault, allowed=allowed, do=do)
        if self.method is None:
            return
        for key, folder in self.method.adapters.items():
            if not (Path(folder) / "adapter_config.json").is_file():
                allowed = "the folder of a PEFT adapter, with adapter_config.json"
                raise InputError(f"method.{key}", given=repr(folder), allowed=allowed, do="Check the path.")

    def inputs(self) -> dict[str, Path]:
        """Return the paths that the job reads, those of the method among them."""
        found = super().inputs()
        if self.method is None:
            return found
        second = self.method.second_model
        folders = self.method.adapters | ({"amateur": second} if second and Path(second).exists() else {})
        return found | {f"method.{key}": Path(folder) for key, folder in folders.items()}

    def work(self, run: Run) -> None:
        """Answer every prompt once; completions come in the order of the prompts."""
        reasons = Counter(f"{item.stage}: {item.reason}" if isinstance(item, Dropped) else "" for item in self._read())
        total = reasons.pop("", 0)
        refuse_none(total, reasons, where=f"prompts: {self.prompts}")
        adapter = str(self.adapter) if self.adapter else None
        requests = map(self._request, self._unique())
        read = ask(run, self.engine, self.model, lambda: requests, total=total, adapter=adapter, method=self.method)
        run.open_output("completions.jsonl")
        run.open_output("dropped.jsonl")
        seen: set[str] = set()
        for item in run.sift(self._read()):
            if item.id in seen:
                run.drop(Dropped(id=item.id, stage="read", reason="duplicate prompt"))
                continue
            seen.add(item.id)
            answer = read(self._request(item))
            if isinstance(answer, Dropped):
                run.drop(answer)
                continue
            run.counts["kept"] = run.counts.get("kept", 0) + 1
            for completion in answer:
                run.write("completions.jsonl", completion)
                run.tokens["generated"] = run.tokens.get("generated", 0) + completion.num_tokens
        run.figures["answered"] = run.counts.get("kept", 0)

    def _read(self) -> Iterator[Prompt | Dropped]:
        negative: Literal["unread", "may", "must"] = "unread"
        if self.method is not None and "two_prompts" in self.method.needs:
            alone = self.method.find_fault(temperature=0, n=1, has_negative=False)
            negative = "may" if alone is None else "must"
        return read_prompts(self.prompts, column=self.column, where="prompts", negative=negative, asked=self.chat)

    def _unique(self) -> Iterator[Prompt]:
        seen: set[str] = set()
        for item in self._read():
            if isinstance(item, Prompt) and item.id not in seen:
                seen.add(item.id)
                yield item

    def _request(self, prompt: Prompt) -> Request:
        seed = None if self.sampling.seed is None else draw_seed(self.sampling.seed, prompt.id)
        sampling = self.sampling.model_copy(update={"seed": seed})
        adapter = str(self.adapter) if self.adapter else None
        negative = prompt.negative if self.method else None
        asked, other = prompt.messages, negative
        if not self.chat:
            asked, other = _join(prompt.messages), None if negative is None else _join(negative)
        return Request(prompt.id, asked, sampling, adapter, self.method, other)


def _join(messages: Sequence[Message]) -> str:
    return "\n\n".join(message["content"] for message in messages)
