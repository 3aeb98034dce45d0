"""Which method a request means: by the model's name, `MODEL:METHOD`, or by its own field `method`."""

from __future__ import annotations

from typing import Any

from counterfoil.config import build, dump, find_class, list_family
from counterfoil.errors import CounterfoilError
from decode.method import Method
from decode.server.gate import RefusedError

__all__ = ["Names", "one_line"]


class Names:
    """The model's name, and the methods that go with it: the config's own, and those of the engine that load nothing."""

    def __init__(self, model: str, own: Method | None, *, gives: frozenset[str]) -> None:
        self._model = model
        self._methods: dict[str, Method] = {}
        for name in list_family(Method):
            cls = find_class(Method, name)
            if cls.needs <= gives - {"two_models", "two_adapters"}:
                self._methods[name] = build(cls, {}, source=name)
        if own is not None:
            self._methods[name_of(own)] = own

    def list_names(self) -> list[str]:
        """Return every name under which a model can be asked."""
        return [self._model, *(f"{self._model}:{name}" for name in self._methods)]

    def find(self, model: str, given: Any) -> Method | None:
        """Return the method that a request means, None for none. Raises RefusedError for what is not here.

        `given` is a method's name, or a mapping of its fields, with a `name` where the model's name has none. What would be
        loaded (a second model, adapters) is the server's choice, never a request's.
        """
        name = model.removeprefix(self._model).removeprefix(":")
        if model not in self.list_names():
            raise RefusedError(404, f"There is no model {model!r} here. There is {', '.join(self.list_names())}.")
        fields: dict[str, Any] = {}
        if isinstance(given, str):
            fields = {"name": given}
        elif isinstance(given, dict):
            fields = dict(given)
        elif given is not None:
            raise RefusedError(400, "method: give a name, or an object with the method's fields.")
        wanted = fields.pop("name", name)
        if not isinstance(wanted, str) or (given is not None and not wanted):
            raise RefusedError(400, "method: it has no name; give one, or ask for MODEL:METHOD.")
        if name and wanted != name:
            raise RefusedError(400, f"method: the model's name says {name}, the request {wanted}.")
        if not wanted:
            return None
        if wanted not in self._methods:
            raise RefusedError(400, f"method: there is no {wanted!r} here. There is {', '.join(self._methods)}.")
        return self._change(self._methods[wanted], fields)

    def _change(self, method: Method, fields: dict[str, Any]) -> Method:
        if not fields:
            return method
        loaded = {"amateur", "positive", "negative", "mode"} & type(method).model_fields.keys()
        if chosen := sorted(loaded & fields.keys()):
            raise RefusedError(400, f"method.{chosen[0]} is the server's choice. Leave it out.")
        kept = {key: value for key, value in dump(method).items() if key in method.model_fields_set}
        try:
            return build(type(method), kept | fields, source="method")
        except CounterfoilError as error:
            raise RefusedError(400, one_line(error)) from error


def one_line(error: CounterfoilError) -> str:
    """Write an error's parts as sentences in a row."""
    return " ".join(line.strip() for line in str(error).splitlines())


def name_of(method: Method) -> str:
    """Return the name of a method's file."""
    return type(method).__module__.rsplit(".", 1)[-1]
