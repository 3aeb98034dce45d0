"""Progress: a file always, a line a minute, a bar on a terminal."""

import json
from pathlib import Path
from typing import Any

import pytest

from counterfoil import progress as module
from counterfoil.progress import Progress, show_seconds


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (185, "3m05s"), (3600, "1h00m"), (7830, "2h10m")],
)
def test_a_duration_is_written_short(seconds: float, shown: str) -> None:
    assert show_seconds(seconds) == shown


class Clock:
    """Stands for the module `time`: its time moves only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        """Return the time told."""
        return self.now

    def time(self) -> float:
        """Return the same, as a date."""
        return 1.7e9 + self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_file_has_a_line_a_second_and_the_time_left(tmp_path: Path, clock: Clock) -> None:
    """Two of ten were done before. After 4 s four more are done: 1 s each, 4 left."""
    progress = Progress(tmp_path / "progress.jsonl", label="x", quiet=True)
    with progress.stage("generate", total=10, already=2) as stage:
        for _ in range(4):
            clock.now += 1
            stage.advance(loss=0.5)
    progress.close()
    lines = read(tmp_path / "progress.jsonl")
    assert [line["done"] for line in lines] == [3, 4, 5, 6, 6]
    assert lines[3] == {
        "time": 1.7e9 + 104, "stage": "generate", "done": 6, "total": 10, "left_s": 4.0, "loss": 0.5,
    }  # fmt: skip
    assert lines[4]["finished"] is True


def test_many_quick_ones_are_few_lines(tmp_path: Path, clock: Clock) -> None:
    """1000 in 3 s: one line at once, then one a second, the last, and the end."""
    progress = Progress(tmp_path / "progress.jsonl", label="x", quiet=True)
    with progress.stage("generate", total=1000) as stage:
        for _ in range(1000):
            clock.now += 0.003
            stage.advance()
    progress.close()
    assert len(read(tmp_path / "progress.jsonl")) == 5


def test_a_first_few_of_many_say_nothing_of_the_time_left(tmp_path: Path, clock: Clock) -> None:
    """Less than 3 % done: engines that work on 100 at a time give the first ones late. An unknown total has no end."""
    progress = Progress(tmp_path / "progress.jsonl", label="x", quiet=True)
    for total, count in ((100, 2), (None, 50)):
        with progress.stage("generate", total=total) as stage:
            clock.now += 2
            stage.advance(count)
    progress.close()
    assert {line["left_s"] for line in read(tmp_path / "progress.jsonl")} == {None}


def test_without_a_terminal_there_is_a_line_a_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """130 s: a line after 10 s, another a minute later, and the end."""
    progress = Progress(None, label="small")
    with progress.stage("train", total=130) as stage:
        for _ in range(130):
            clock.now += 1
            stage.advance(loss="0.5")
    assert capsys.readouterr().err.splitlines() == [
        "small  train: 10/130, 2m00s left, loss 0.5",
        "small  train: 70/130, 1m00s left, loss 0.5",
        "small  train: 130/130, 0s left, loss 0.5",
        "small  train: 130 done in 2m10s",
    ]


def test_quiet_says_nothing_and_a_resume_says_where_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for quiet in (True, False):
        with Progress(None, label="x", quiet=quiet).stage("train", total=5, already=3):
            pass
    assert capsys.readouterr().err.splitlines() == ["x  train: goes on at 3 of 5", "x  train: 3 done in 0s"]


def test_the_file_grows_over_resumes(tmp_path: Path) -> None:
    for _ in range(2):
        progress = Progress(tmp_path / "progress.jsonl", label="x", quiet=True)
        with progress.stage("train", total=1) as stage:
            stage.advance()
        progress.close()
    assert len(read(tmp_path / "progress.jsonl")) == 4


def test_counts_are_told_beside_the_stage(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """In the line, in the file; what they are is asked each time."""
    progress, counts = Progress(tmp_path / "progress.jsonl", label="small"), {"kept": 0}
    progress.counts = lambda: counts
    with progress.stage("generate", total=20) as stage:
        for at in range(20):
            clock.now += 1
            stage.advance()
            counts["kept" if at % 2 else "contrast: margin too small"] = at
    progress.close()
    assert capsys.readouterr().err.splitlines()[0] == (
        "small  generate: 10/20, 10s left, kept 7, contrast: margin too small 8"
    )
    assert read(tmp_path / "progress.jsonl")[10]["counts"] == {"kept": 9, "contrast: margin too small": 8}


def test_what_is_likely_to_end_early_is_soon_done(tmp_path: Path, clock: Clock) -> None:
    """Of 1000 some 40 are expected to be needed: after 10 s and 10, 30 s are left."""
    progress = Progress(tmp_path / "progress.jsonl", label="small", quiet=True)
    with progress.stage("generate", total=1000) as stage:
        for _ in range(10):
            clock.now += 1
            progress.expect(40.0)
            stage.advance()
    progress.close()
    assert read(tmp_path / "progress.jsonl")[9]["left_s"] == 30.0


def test_a_resume_that_finds_parts_done_on_its_way_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(None, label="x").stage("generate", total=6) as stage:
        for _ in range(3):
            stage.skip()
            stage.advance()
    assert capsys.readouterr().err.splitlines() == ["x  generate: goes on at 1 of 6", "x  generate: 6 done in 0s"]


def test_on_a_terminal_the_counts_are_rows_under_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model may have written is shown as it is, no markup."""
    from rich.console import Console

    board = module._make_live(lambda: {"kept": 12345, "[red]reason[/]": 3})
    board.add_task("small generate", total=10, completed=4, facts="2s left  tokens/s 70")
    console = Console(width=100)
    with console.capture() as capture:
        console.print(board.get_renderable())
    shown = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert shown[0].startswith("small generate")
    assert "4/10" in shown[0]
    assert shown[0].endswith("2s left tokens/s 70")
    assert shown[1:] == ["12,345 kept", "3 [red]reason[/]"]
