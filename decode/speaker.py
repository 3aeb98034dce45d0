"""Who answers in a dialogue: a model with what runs it, and what a run says of its roles."""

from pydantic import Field

from counterfoil.config import Config
from counterfoil.inputs import AdapterName, ModelName
from decode.engine import Engine
from decode.engines.vllm import Vllm
from decode.method import Method

__all__ = ["Price", "Role", "Speaker"]


class Price(Config):
    """What a million tokens cost, in any money."""

    prompt: float = Field(default=0.0, ge=0)
    """Of those sent; what n samples share is sent once."""
    generated: float = Field(default=0.0, ge=0)
    """Of those that come back."""


class Speaker(Config):
    """A model, and what runs it."""

    model: ModelName = "smollm2"
    """A name, a folder, a GGUF file or a hub id."""
    engine: Engine = Vllm()
    """What runs the model."""
    adapter: AdapterName | None = None
    """Folder of a PEFT adapter (for `openai_api`: its name on the server)."""
    method: Method | None = None
    """How its next token is chosen."""
    price: Price | None = None
    """What it costs, for an estimate."""


class Role(Config):
    """Another speaker beside a run's main one: what is left out is as of the main one."""

    model: ModelName | None = None
    """A name, a folder, a GGUF file or a hub id; None is the main model."""
    engine: Engine | None = None
    """What runs the model; None is the main engine."""
    adapter: AdapterName | None = None
    """Folder of a PEFT adapter (for `openai_api`: its name on the server); None is none, or the main one's where no model,
    engine or method is given either."""
    method: Method | None = None
    """How its next token is chosen."""
    price: Price | None = None
    """What it costs, for an estimate; None is nothing known, or the main one's as above."""

    def speak_for(self, main: Speaker) -> Speaker:
        """Return the speaker of this role beside a main one."""
        if not (self.model or self.engine or self.adapter or self.method):
            return main.model_copy(update={"price": self.price or main.price})
        return Speaker(
            model=self.model or main.model,
            engine=self.engine or main.engine,
            adapter=self.adapter,
            method=self.method,
            price=self.price,
        )
