"""Nothing is asked twice, and whatever changes what is sent is asked anew: requests are counted, by what is changed."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from counterfoil.config import build
from counterfoil.errors import RunError
from decode.engine import Engine, Request
from decode.engines.scripted import Scripted, ScriptedSession
from synth.synthesize import Synthesize

NUM_ROWS = 12


class Weighty(Scripted):
    """The double, known by a model's folder as real engines are, with a count of what it is asked."""

    num_asked: ClassVar[int] = 0

    def identify(self, model: str) -> str:
        """Hash the folder."""
        return Engine.identify(self, model)

    def open(self, model: str, *, adapters: Any = (), methods: Any = ()) -> ScriptedSession:
        """Open it."""

        class Session(ScriptedSession):
            def stream(self, items: Any, *, glance: bool = False) -> Any:
                return super().stream(map(note, items), glance=glance)

        def note(item: Any) -> Any:
            Weighty.num_asked += isinstance(item, Request)
            return item

        return Session(self, model, [])


class Place:
    """Where a model, its adapter and its prompts lie, and runs that share their answers."""

    def __init__(self, folder: Path, rows: Path) -> None:
        self.folder, self.num_runs = folder, 0
        self.model, self.adapter = folder / "model", folder / "adapter"
        self.rows = rows
        for part in (self.model, self.adapter):
            part.mkdir()
            (part / "config.json").write_text("{}")
            (part / "weights.safetensors").write_bytes(b"\x00" * 100)
        (self.model / "chat_template.jinja").write_text("{{ messages }}")

    def count(self, *, to: Path | None = None, **changes: Any) -> int:
        """Run a synthesis, in a folder of its own; return how many requests it took."""
        before, self.num_runs = Weighty.num_asked, self.num_runs + 1
        values: dict[str, Any] = {
            "task": {"name": "file", "path": str(self.rows)},
            "model": str(self.model),
            "engine": Weighty(replies=("A river runs past", "A hill stands over it", '{"mark": 3}')),
            "adapter": str(self.adapter),
            "recipe": {"name": "best_of_n", "n": 3},
            "filters": [],
        }
        build(Synthesize, values | changes, source="test").run(to or self.folder / f"run{self.num_runs}", quiet=True)
        return Weighty.num_asked - before


@pytest.fixture
def place(tmp_path: Path, write_rows: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> Place:
    """Return a place whose runs share answers, after a first run of a request a row."""
    monkeypatch.setenv("COUNTERFOIL_ANSWERS", str(tmp_path / "answers.sqlite"))
    found = Place(tmp_path, write_rows(NUM_ROWS))
    assert found.count() == NUM_ROWS
    return found


def rewrite(path: Path, text: str) -> None:
    """Write another content of the same length, as another revision has."""
    assert path.stat().st_size == len(text)
    path.write_text(text)


def test_nothing_changed_asks_nothing(place: Place) -> None:
    assert place.count() == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"filters": ["length_only", "near_duplicate", "truncated"]},
        {"recipe": {"name": "best_of_n", "n": 3, "margin": 0.9}},
        {"recipe": {"name": "best_of_n", "n": 3, "max_pairs": 2, "max_length_gap": 0.5}},
        {"target_pairs": 5},
        {"max_tokens_total": 100},
        {"price": {"prompt": 1}},
        {"engine": Weighty(replies=("A river runs past", "A hill stands over it", '{"mark": 3}'), max_in_flight=2)},
    ],
)
def test_what_is_done_with_answers_asks_nothing(changes: dict[str, Any], place: Place) -> None:
    assert place.count(**changes) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": {"name": "best_of_n", "n": 3, "temperature": 0.8}},
        {"recipe": {"name": "best_of_n", "n": 3, "min_p": 0.1}},
        {"recipe": {"name": "best_of_n", "n": 3, "max_new_tokens": 64}},
        {"recipe": {"name": "best_of_n", "n": 4}},
        {"seed": 1},
        {"adapter": None},
        {"engine": Weighty(replies=("Another setting of the engine",))},
    ],
)
def test_another_sampling_seed_adapter_or_engine_is_asked_anew(changes: dict[str, Any], place: Place) -> None:
    assert place.count(**changes) == NUM_ROWS
    assert place.count(**changes) == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model/weights.safetensors", "\x01" + "\x00" * 99),
        ("model/config.json", "[]"),
        ("model/chat_template.jinja", "{% messages %}"),
        ("adapter/weights.safetensors", "\x00" * 99 + "\x01"),
    ],
)
def test_another_revision_template_or_adapter_in_its_place_is_asked_anew(name: str, content: str, place: Place) -> None:
    """The names stay as they are, and so do the sizes; what was there before is found again once it is back."""
    before = (place.folder / name).read_text()
    rewrite(place.folder / name, content)
    assert place.count() == NUM_ROWS
    rewrite(place.folder / name, before)
    assert place.count() == 0


def test_other_messages_are_asked_anew_row_by_row(place: Place) -> None:
    """One word in one row is one request, and so is another reference; other order or other tags of the rows are none."""
    rows = [json.loads(line) for line in place.rows.read_text().splitlines()]
    place.rows.write_text("".join(json.dumps(row | {"tags": {"kind": "b"}}) + "\n" for row in reversed(rows)))
    assert place.count() == 0
    rows[3]["prompt"] += "!"
    place.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert place.count() == 1
    rows[5]["reference"] = {"constraints": [{"kind": "include_word", "word": "hill"}]}
    place.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert place.count() == 1, "the seed of a row's samples is of its reference as well"


def test_another_schema_is_asked_anew_by_the_judge_alone(place: Place) -> None:
    """Twelve rows of three answers are 36 marks; the answers themselves are found."""
    judge = {"judge": {"model": str(place.model), "engine": Weighty(replies=('{"mark": 3}',))}}
    scorer: dict[str, Any] = {"name": "judge", "explain": False}
    assert place.count(roles=judge, scorer=scorer) == 36
    assert place.count(roles=judge, scorer=scorer) == 0
    assert place.count(roles=judge, scorer=scorer | {"scale": 7}) == 36


def test_a_finished_run_is_found_done_at_once(write_rows: Callable[[int], Path], tmp_path: Path) -> None:
    """2,000 rows; the time is of what comes after the start of the program."""
    values = {
        "task": {"name": "file", "path": str(write_rows(2000))},
        "engine": {"name": "scripted", "replies": ["A river runs past", "A hill stands over it"]},
        "recipe": {"name": "best_of_n", "n": 2},
        "filters": [],
    }
    job = build(Synthesize, values, source="test")
    assert job.run(tmp_path / "run", quiet=True).fresh
    started = time.monotonic()
    done = job.run(tmp_path / "run", quiet=True)
    assert time.monotonic() - started < 0.5
    assert not done.fresh


def test_another_adapter_in_its_place_is_another_run(place: Place, tmp_path: Path) -> None:
    """The same folder, the same names: what lies behind them decides, in a finished run as in one under way."""
    values = {
        "task": {"name": "file", "path": str(place.rows)},
        "model": str(place.model),
        "adapter": str(place.adapter),
        "engine": Weighty(replies=("a river", "a hill")),
        "recipe": {"name": "best_of_n", "n": 2},
    }
    job = build(Synthesize, values, source="test")
    done = job.run(tmp_path / "run", quiet=True)
    assert set(done.manifest["weights"]) == {"model", "adapter"}
    assert not job.run(tmp_path / "run", quiet=True).fresh
    (place.adapter / "weights.safetensors").write_bytes(b"\x01" * 100)
    with pytest.raises(RunError, match=r"differs in: weights\)"):
        job.run(tmp_path / "run", quiet=True)
    (place.adapter / "weights.safetensors").write_bytes(b"\x00" * 100)
    assert not job.run(tmp_path / "run", quiet=True).fresh
    place.model.rename(tmp_path / "elsewhere")
    assert not job.run(tmp_path / "run", quiet=True).fresh, "weights that are gone say nothing against what was done"


def test_a_roles_weights_are_the_runs_as_well(place: Place, tmp_path: Path) -> None:
    values = {
        "task": {"name": "file", "path": str(place.rows)},
        "engine": Weighty(replies=("a river", "a hill")),
        "model": str(place.model),
        "recipe": {"name": "best_of_n", "n": 2, "policies": ["", "other"]},
        "roles": {"other": {"adapter": str(place.adapter)}},
    }
    done = build(Synthesize, values, source="test").run(tmp_path / "run", quiet=True)
    assert set(done.manifest["weights"]) == {"model", "roles.other.adapter"}
    other = values | {"roles": {"other": {"model": str(place.adapter)}}}
    done = build(Synthesize, other, source="test").run(tmp_path / "other", quiet=True)
    assert set(done.manifest["weights"]) == {"model", "roles.other.model"}, "known by the main engine"


def test_what_another_run_was_answered_is_kept_in_this_ones_folder_as_well(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place.count() == 0
    monkeypatch.setenv("COUNTERFOIL_ANSWERS", "0")
    second = place.folder / f"run{place.num_runs}"
    (second / "manifest.json").unlink()
    assert place.count(to=second) == 0
