"""ray: copies of another engine on the machines of a Ray cluster, each an actor that Ray places, watches and starts again.

    engine: {name: ray, replicas: 8, engine: {name: vllm, max_model_len: 4096}}

Ray has several parts for this; why actors:

- Ray Data's processor (`ray.data.llm`) takes a table in and gives a table back. A dialogue's next question comes of its last
  answer, a request can be cancelled, given text is scored, a method of ours contrasts inside vLLM: it has none of
  these. It renders prompts by itself, too, so that the same request would be another text under another key.
- Ray Serve (`ray.serve.llm`) is a fleet behind one address: `engine: openai_api` asks it as it is. What it starts outlives
  the program that started it: a run that is killed would leave its GPUs taken.
- An actor lives as long as its run and holds a session of any engine here, so that the same YAML gives the same answers. Ray
  finds a machine with room, says when a process or a machine is gone, and starts it again elsewhere.

So nothing is scheduled here but one choice: a request goes to the replica with the fewest in flight. Where a replica dies,
what it had in flight is asked of the others, at most `retries` times, then fails by name. The last time it goes with no
other of these beside it: a request that kills its engine takes none with it. Answers are kept on the side of the run
(decode/answers.py) under the keys of the engine inside: a run goes on where it was, on a cluster or without one.

What is sent between the processes is pickled: a cluster is one trust, whose ports nobody else must reach.
"""

import asyncio
import logging
import math
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from counterfoil.errors import CounterfoilError, EngineError
from decode.background import Background
from decode.engine import Content, Engine, Given, GivenLogprobs, Request, Result, Session, fail
from decode.engines.vllm import Vllm
from decode.method import Method
from decode.replica import Replica

__all__ = ["Ray", "RaySession"]

LOG = logging.getLogger("counterfoil.ray")

_CLOSE_S = 10.0  # how long a replica may take to give its engine's memory back before it is ended
_WAKE_S = 0.5  # between two looks at a process that is started again
_STORE_BYTES = 128 * 2**20  # of a Ray of our own: requests and answers are too small to lie there


class _Gives:
    """An object gives what the engine inside does; the class, what the usual one does."""

    def __get__(self, owner: "Ray | None", kind: type["Ray"]) -> frozenset[str]:
        return Vllm.gives if owner is None else owner.engine.gives


class Ray(Engine):
    """Replicas of an engine on a cluster."""

    gives: ClassVar[Any] = _Gives()

    engine: Engine = Vllm()
    """What runs in each replica."""
    replicas: int = Field(default=2, ge=1)
    """How many; those for which there is no room yet join when there is."""
    cpus: float = Field(default=1.0, ge=0)
    """CPUs that Ray sets aside for a replica."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs that Ray sets aside for a replica; None is what the engine takes where the cluster has any, else 0."""
    address: str | None = None
    """HOST:PORT of the cluster, or `auto`; None is what RAY_ADDRESS says, else a Ray of this machine for this run alone."""
    max_in_flight: int = Field(default=256, ge=1)
    """Requests that a replica has at a time."""
    retries: int = Field(default=2, ge=0)
    """How often a request is asked again whose replica died, and a replica started again that dies while it starts."""
    start_timeout_s: float = Field(default=1800, gt=0)
    """How long the first replica may take to be ready, and how long requests wait for one where all have died."""

    def identify(self, model: str) -> str:
        """Hash what decides about the engine inside: on how many machines it runs changes no answer."""
        return self.engine.identify(model)

    def key(self, item: Request | Given, identity: str) -> str:
        """Hash what is sent, as the engine inside does."""
        return self.engine.key(item, identity)

    def open(self, model: str, *, adapters: Sequence[str | None] = (), methods: Sequence[Method] = ()) -> "RaySession":
        """Start the replicas and wait for the first. Raises EngineError where none comes up."""
        identity = self.identify(model)
        try:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            import ray
        except ImportError as error:
            given, allowed = f"Ray cannot be imported ({error})", "the package ray"
            raise EngineError("engine: ray", given=given, allowed=allowed, do="Install counterfoil[ray].") from error
        is_ours = not ray.is_initialized()
        if is_ours:
            self._connect(ray)
        session = RaySession(self, identity, is_ours=is_ours)
        try:
            session.start(model, list(adapters), list(methods))
        except BaseException:
            session.close()
            raise
        return session

    def _connect(self, ray: Any) -> None:
        address = self.address or os.environ.get("RAY_ADDRESS") or "local"
        more: dict[str, Any] = {}
        if address == "local":
            num_cpus = max(1, math.ceil(self.replicas * self.cpus))  # so many as asked, whatever the machine has
            more = {"num_cpus": num_cpus, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
            more["_node_ip_address"] = "127.0.0.1"  # nobody else reaches it
            os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets any other process go before the replicas
        try:
            ray.init(address=address, **more, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # Ray raises bare ones
            raise EngineError(
                "engine.address",
                given=f"{address}: {_name(error)}",
                allowed="HOST:PORT of a Ray cluster of the same version, auto, or nothing where Ray may start here",
                do="Start one (ray start --head); a machine that is too busy to start it here may be less so later.",
            ) from error


def _name(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


@dataclass(slots=True)
class _Held:
    """A replica as it is seen from the run."""

    actor: Any
    is_up: bool = False
    num_flying: int = 0


class RaySession(Session):
    """Open replicas. Threads may share it."""

    def __init__(self, engine: Ray, identity: str, *, is_ours: bool) -> None:
        import ray

        self._ray, self._engine, self._identity, self._is_ours = ray, engine, identity, is_ours
        self._held: list[_Held] = []
        self._why: Exception | None = None
        self._starting: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._last_try = asyncio.Lock()
        self._background = Background("ray")

    def start(self, model: str, adapters: list[str | None], methods: list[Method]) -> None:
        """Start the replicas and wait for the first. Raises the error of the last where none comes up."""
        engine, inner = self._engine, self._engine.engine
        gpus = engine.gpus
        if gpus is None:
            takes = inner.tensor_parallel_size if isinstance(inner, Vllm) else 1
            gpus = takes if self._ray.cluster_resources().get("GPU") else 0
        share = 0 if gpus else max(1, int(engine.cpus))
        actor = self._ray.remote(Replica).options(
            num_cpus=engine.cpus, num_gpus=gpus, max_restarts=-1, max_concurrency=engine.max_in_flight + 16
        )
        for number in range(engine.replicas):
            cores = range(number * share, (number + 1) * share)
            self._held.append(_Held(actor.remote(inner, model, adapters, methods, cores)))
        self._background.wait(self._await_first)

    def stream(
        self, items: Iterable[Request | Given | None], *, glance: bool = False
    ) -> Generator[Result | GivenLogprobs | None]:
        """Answer and score, `max_in_flight` at a time for each replica; see Session."""
        return self._background.each(
            items,
            self._answer,
            name=lambda item: item.id,
            cancelled=lambda item: fail(item, "cancelled"),
            room=lambda: self._engine.max_in_flight * max(1, len(self._held)),
            glance=glance,
        )

    def cancel(self, request_id: str) -> None:
        """Stop one request in flight; it ends with the failure `cancelled`. Unknown ids are ignored."""
        self._background.cancel(request_id)

    def num_tokens(self, prompt: Content) -> int:
        """Count the tokens that the model would be sent, template included. Raises EngineError where it fails."""
        return self._background.wait(lambda: self._count(prompt))

    def close(self) -> None:
        """End the replicas, and Ray where it was started for this run. Calling it twice is harmless."""
        try:
            self._background.close(self._shut)
        finally:
            if self._is_ours:
                self._ray.shutdown()
                self._is_ours = False

    async def _await_first(self) -> None:
        for held in self._held:
            self._start(held)
        try:
            async with asyncio.timeout(self._engine.start_timeout_s), self._changed:
                await self._changed.wait_for(lambda: not self._held or any(held.is_up for held in self._held))
        except TimeoutError:
            raise EngineError(
                "engine: ray",
                given=f"no replica is ready after start_timeout_s={self._engine.start_timeout_s:g}",
                allowed=f"room for one among the cluster's {self._ray.cluster_resources()}",
                do="Lower cpus or gpus, or add machines.",
            ) from None
        if not self._held:
            raise self._why if isinstance(self._why, CounterfoilError) else self._explain()

    def _explain(self) -> EngineError:
        return EngineError(
            "engine: ray",
            given=f"no replica is left: {_name(self._why) if self._why else 'none was ready in time'}",
            allowed="the same version of this package, and the model, on each machine",
            do="Read the replica's log in Ray's folder, or try the engine inside alone.",
        )

    def _start(self, held: _Held) -> None:
        task = asyncio.ensure_future(self._bring_up(held))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _bring_up(self, held: _Held) -> None:
        """Wait until a replica is ready, for the first time or again; one that cannot be is given up."""
        try:
            found = await self._open(held)
            if found != self._identity:
                given = "a machine of the cluster has another version of the model"
                raise EngineError("model", given=given, allowed="the same everywhere", do="Copy it there.")
        except (self._ray.exceptions.RayError, EngineError) as error:
            self._why = getattr(error, "cause", None) or error
            self._held.remove(held)
            self._ray.kill(held.actor)
            LOG.warning("a replica of %d is given up: %s", self._engine.replicas, _name(self._why))
        else:
            held.is_up = True
        async with self._changed:
            self._changed.notify_all()

    async def _open(self, held: _Held) -> str:
        """Open a replica's engine. One whose process dies of it is tried again, as often as a request."""
        tries = 0
        while True:
            try:
                await held.actor.wake.remote()
                tries += 1
                return await held.actor.open.remote()
            except self._ray.exceptions.ActorUnavailableError:  # it died, and cannot be asked until it is there again
                if tries > self._engine.retries:
                    raise
            await asyncio.sleep(_WAKE_S)

    async def _answer(self, item: Request | Given) -> Result | GivenLogprobs:
        if fault := item.find_fault(self._engine.gives):
            return fail(item, fault)
        for tries in range(1 + self._engine.retries):
            async with self._last_try if 0 < tries == self._engine.retries else nullcontext():
                reply = await self._try(item)
            if reply is not None:
                return reply
        return fail(item, f"its replica died, at each of {1 + self._engine.retries} tries (retries)")

    async def _try(self, item: Request | Given) -> Result | GivenLogprobs | None:
        """Ask a replica; None where it died."""
        held = await self._take()
        if held is None:
            late = f"none was ready for start_timeout_s={self._engine.start_timeout_s:g}"
            return fail(item, f"no replica is left: {_name(self._why) if self._why else late}")
        ref = held.actor.answer.remote(item)
        try:
            return await ref
        except asyncio.CancelledError:
            self._ray.cancel(ref)
            raise
        except self._ray.exceptions.RayTaskError as error:
            return fail(item, _name(error.cause))
        except self._ray.exceptions.RayError:  # its process or its machine is gone
            self._lose(held)
            return None
        finally:
            await self._give_back(held)

    async def _take(self) -> _Held | None:
        """Wait for a replica with a place; take one of that with the fewest in flight. None where no replica is left."""
        async with self._changed:
            while self._held and not self._find_free():
                try:
                    async with asyncio.timeout(self._engine.start_timeout_s):
                        await self._changed.wait()
                except TimeoutError:
                    if not any(held.is_up for held in self._held):
                        break  # else they are busy
            held = min(self._find_free(), key=lambda held: held.num_flying, default=None)
            if held is not None:
                held.num_flying += 1
            return held

    def _find_free(self) -> list[_Held]:
        return [held for held in self._held if held.is_up and held.num_flying < self._engine.max_in_flight]

    async def _give_back(self, held: _Held) -> None:
        held.num_flying -= 1
        async with self._changed:
            self._changed.notify_all()

    def _lose(self, held: _Held) -> None:
        """Note, once a death, that a replica is gone, and wait for Ray to start it again."""
        if held.is_up:
            held.is_up = False
            self._start(held)

    async def _count(self, prompt: Content) -> int:
        held = await self._take()
        if held is None:
            raise self._explain()
        try:
            return await held.actor.num_tokens.remote(prompt)
        except self._ray.exceptions.RayError as error:
            allowed, do = "a prompt and a replica that are well", "Check both."
            raise EngineError(
                "ray: num_tokens", given=_name(getattr(error, "cause", error)), allowed=allowed, do=do
            ) from None
        finally:
            await self._give_back(held)

    async def _shut(self) -> None:
        for task in self._starting:
            task.cancel()
        up = [asyncio.wrap_future(held.actor.close.remote().future()) for held in self._held if held.is_up]
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*up, return_exceptions=True), _CLOSE_S)
        for held in self._held:
            self._ray.kill(held.actor)
