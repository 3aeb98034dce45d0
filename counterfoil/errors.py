"""The few exceptions, each with four parts: where, what was given, what is allowed, what to do.

    CounterfoilError
      ConfigError    a YAML file, an override or an argument is wrong
      InputError     a file, a column or a model that a job reads is missing or broken
      EngineError    an engine cannot do what is asked, or stopped working
      RunError       a run folder cannot be used: made by another config, in use, no space left

The command line prints them without a traceback (`--debug` shows it) and exits with 2.
"""

__all__ = ["ConfigError", "CounterfoilError", "EngineError", "InputError", "RunError", "first_line"]


class CounterfoilError(Exception):
    """A user's mistake or a condition that a user can mend, in four parts."""

    def __init__(self, where: str, *, given: str, allowed: str, do: str) -> None:
        self.where, self.given, self.allowed, self.do = where, given, allowed, do
        super().__init__(f"{where}: {given}\n  allowed: {allowed}\n  do: {do}")

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return _rebuild, (type(self), self.where, self.given, self.allowed, self.do)


def _rebuild(kind: type[CounterfoilError], where: str, given: str, allowed: str, do: str) -> CounterfoilError:
    return kind(where, given=given, allowed=allowed, do=do)


class ConfigError(CounterfoilError):
    """A YAML file, an override or an argument is wrong."""


class InputError(CounterfoilError):
    """A file, a column or a model that a job reads is missing or broken."""


class EngineError(CounterfoilError):
    """An engine cannot do what is asked, or stopped working."""


class RunError(CounterfoilError):
    """A run folder cannot be used: made by another config, in use by another process, no space left."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, or the error's name where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
