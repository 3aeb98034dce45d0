"""The command line: counterfoil run|synth|align|decode|eval|serve CONFIG [key=value ...], show, runs, doctor.

Only the standard library is imported before a verb is known, so that `--help` answers at once.
"""

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

__all__ = ["main"]

JOB_VERBS = {
    "run": "run a pipeline: several jobs, each reading what an earlier one wrote",
    "synth": "write preference pairs with an engine",
    "align": "train a LoRA adapter on pairs",
    "decode": "answer the prompts of a file",
    "eval": "score a model, with an adapter before and after",
}


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="counterfoil",
        description="Make contrasts, learn from them, decode with them.",
        epilog="A CONFIG is a YAML file or the name of one that travels with counterfoil, for instance: "
        "counterfoil run quickstart. Overrides are key=value, dotted for inner keys: recipe.margin=0.3 model=./folder",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in JOB_VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".")
        sub.add_argument("config", metavar="CONFIG", help="a YAML file or a known name")
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="change the config")
        sub.add_argument("--to", metavar="FOLDER", help="the run's folder (default: runs/NAME-FINGERPRINT)")
        sub.add_argument("--label", help=argparse.SUPPRESS)
        sub.add_argument("--parent", type=int, help=argparse.SUPPRESS)
        sub.add_argument("--brief", action="store_true", help="do not print the closing table")
        sub.add_argument("--quiet", action="store_true", help="print no progress either")
        if verb != "run":  # what comes after such a job would rest on other answers
            sub.add_argument("--retry-failed", action="store_true", help="ask again what failed in a finished run")
    verbs.choices["synth"].add_argument(
        "--estimate", action="store_true", help="ask about a few prompts; print the tokens, time and money of all"
    )
    serve = verbs.add_parser(
        "serve", help="answer over HTTP, with a method", description="Serve an OpenAI-compatible endpoint."
    )
    serve.add_argument("config", metavar="CONFIG", help="a YAML file or a known name")
    serve.add_argument("overrides", nargs="*", metavar="key=value", help="change the config")
    show = verbs.add_parser(
        "show", help="print a resolved config, or a finished run", description="Print a config or a run."
    )
    show.add_argument("what", metavar="CONFIG|RUN", help="a config (name, VERB/name or file) or a run's folder")
    show.add_argument("overrides", nargs="*", metavar="key=value", help="change the config")
    show.add_argument(
        "--export", choices=["parquet", "hub-folder"], help="write a run's pairs as parquet (with a card)"
    )
    show.add_argument(
        "--push", metavar="USER/NAME", help="send that folder to the Hugging Face hub, with your own token"
    )
    show.add_argument("--to", metavar="FOLDER", help="where the export goes (default: RUN/export)")
    runs = verbs.add_parser(
        "runs", help="list runs", description="List runs with state, age, input and headline figure."
    )
    runs.add_argument("folder", nargs="?", metavar="FOLDER", help="where to look (default: runs)")
    verbs.add_parser("doctor", help="say what this machine can do", description="Say what this machine can do.")
    for sub in verbs.choices.values():
        sub.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0 done, 2 a user's mistake, 130 interrupted, 1 anything else."""
    parser = _make_parser()
    options, late = parser.parse_known_args(arguments)  # argparse does not take key=value after an option
    if late and ("overrides" not in options or any(text.startswith("-") for text in late)):
        parser.error(f"unrecognized arguments: {' '.join(late)}")
    if late:
        options.overrides = [*options.overrides, *late]
    from counterfoil.errors import CounterfoilError

    try:
        return _dispatch(options)
    except CounterfoilError as error:
        return _fail(options, f"{error}", 2)
    except KeyboardInterrupt:
        return _fail(options, "Interrupted. What is finished is kept: run the same command again to go on.", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        text = f"disk: no space left ({error.filename or error})\n  allowed: room for the run\n"
        return _fail(options, f"{text}  do: Free some space and run the same command again: finished work is kept.", 2)


def _fail(options: argparse.Namespace, text: str, code: int) -> int:
    if options.debug:
        traceback.print_exc()
    print(text if code == 130 else f"error: {text}", file=sys.stderr)
    return code


def _dispatch(options: argparse.Namespace) -> int:
    if options.verb in JOB_VERBS:
        return _run_job(options)
    if options.verb == "serve":
        from counterfoil.job import Service
        from counterfoil.verbs import load_config

        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        server, _ = load_config("serve", options.config, options.overrides)
        assert isinstance(server, Service)
        server.run()
        return 0
    if options.verb == "show":
        from counterfoil.show import show

        return show(options.what, options.overrides, export=options.export, to=options.to, push=options.push)
    if options.verb == "runs":
        from counterfoil.show import list_runs

        return list_runs(options.folder)
    from counterfoil.doctor import examine

    return examine()


def _run_job(options: argparse.Namespace) -> int:
    # Models come from the machine or by an explicit download; libraries must not phone a hub in the middle of a run.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if options.parent:
        _die_with(options.parent)
    from counterfoil.show import print_run
    from counterfoil.verbs import load_job

    job, used = load_job(options.verb, options.config, options.overrides)
    label = options.label or Path(options.config).stem
    if "estimate" in options and options.estimate:
        _estimate(job, options, label)
        return 0
    finished = job.run(
        options.to,
        label=label,
        overrides=tuple(used),
        quiet=options.quiet,
        retry_failed="retry_failed" in options and options.retry_failed,
    )
    if not finished.fresh:
        print(f"{label}: done already, in {finished.folder}")
    if not options.brief and finished.manifest:  # one that only helped another process has none
        print_run(finished.folder, finished.manifest)
    return 0


@runtime_checkable
class _Estimable(Protocol):
    """A job that can say beforehand what it would take."""

    def estimate(self, folder: str | None, *, label: str, quiet: bool) -> Any:
        """Find out; what is returned has a `show`."""


def _estimate(job: object, options: argparse.Namespace, label: str) -> None:
    from counterfoil.errors import ConfigError

    if not isinstance(job, _Estimable):
        raise ConfigError("--estimate", given="a job that asks no model", allowed="a synthesis", do="Leave it out.")
    job.estimate(options.to, label=label, quiet=options.quiet).show()


def _die_with(parent: int) -> None:
    """Ask Linux to kill this process when its pipeline dies, however that dies: an orphan would hold the folder."""
    if sys.platform != "linux":
        return
    import ctypes
    import signal

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise SystemExit(1)
