"""The report's page: nothing that a model wrote acts in it, and what is missing is said, not fatal."""

import base64
import hashlib
import html
import html.parser
import json
import re
import subprocess
import xml.etree.ElementTree
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from counterfoil.config import build
from counterfoil.errors import ConfigError, InputError, RunError
from counterfoil.records import Completion, Pair, Prompt
from eval.report import Report, render_report

Browse = Callable[[Path], subprocess.CompletedProcess[str]]

BAD = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"&{{ 7*7 }} $x_{"
CONTROLS = "a\x00b\x1bc\u202ed\u2066e\U000e0041f\ud800g\u4e2d"
HOSTILE = f"{BAD} {CONTROLS}"


def write_lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_manifest(folder: Path, job: str, **rest: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "job": job, "state": HOSTILE, "started": HOSTILE, "seconds": 12.5,
        "config": {"text": HOSTILE, HOSTILE: 1}, "overrides": [HOSTILE], "versions": {"vllm": HOSTILE},
        "git": {"commit": HOSTILE, "dirty": True}, "model": {"name": HOSTILE, "fingerprint": "ab"}, "seeds": {"run": 1},
        "counts": {}, "tokens": {"prompt": 10_000, "generated": 90_000}, "figures": {"x": float("nan")},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest | rest), encoding="utf-8")


def make_pair(number: int, *, margin: float = 0.5, extra: str = HOSTILE) -> dict[str, Any]:
    prompt = Prompt.make(f"prompt {number} {extra}")
    chosen, rejected = (
        Completion.make(
            prompt_id=prompt.id, index=index, text=text, finish_reason="stop", num_prompt_tokens=1, num_tokens=1
        )
        for index, text in enumerate((f"the same good end {extra}", f"the same bad end {extra}"))
    )
    return Pair.make(prompt, chosen, rejected, scores=(1.0, 1.0 - margin), recipe="best_of_n").model_dump()


def make_summary() -> dict[str, Any]:
    base, adapter = {"mean": 0.283, "low": 0.21, "high": 0.37}, {"mean": 0.575, "low": 0.48, "high": 0.66}
    difference = {"mean": 0.292, "low": 0.201, "high": 0.382}
    rows = [
        {"metric": name, "unit": "share", "base": base, "adapter": adapter, "difference": difference}
        for name in ("pass rate", HOSTILE)
    ]
    return {
        "rows": rows, "by_kind": [{"kind": HOSTILE, "num": 12, "base": 0.3, "adapter": 0.6}],
        "examples": ["p1", "p2", HOSTILE], "examples_rule": HOSTILE, "num_prompts": 120, "level": 0.95,
    }  # fmt: skip


def build_run(root: Path) -> dict[str, Path]:
    """Write a run of three jobs with hostile strings wherever a string can be."""
    folders = {name: root / str(at) for at, name in enumerate(("synth", f"align {HOSTILE}", "eval"))}
    synth, align, judged = folders.values()
    counts = {"read": 200, "kept": 120, "dropped": {f"contrast: {HOSTILE}": 60, HOSTILE: 7}, "failed": 0}
    write_manifest(synth, "synthesize", counts=counts)
    write_lines(synth / "pairs.jsonl", [make_pair(number, margin=number % 4 / 4) for number in range(120)])
    write_manifest(align, "train")
    keys = ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")
    rows: list[Any] = [{"step": step} | dict.fromkeys(keys, -step / 3) for step in (10, 20, 30)]
    write_lines(
        align / "metrics.jsonl", [*rows, {"step": 40, "loss": float("nan")}, {"step": HOSTILE, "loss": HOSTILE}]
    )
    write_manifest(judged, "evaluate")
    sides = {name: {"text": HOSTILE, "passed": name == "adapter", "score": 0.5} for name in ("base", "adapter")}
    texts = {"prompt": HOSTILE, "kinds": HOSTILE} | sides
    write_lines(judged / "results.jsonl", [{"prompt_id": key} | texts for key in ("p1", "p2", HOSTILE)])
    (judged / "summary.json").write_text(json.dumps(make_summary()), encoding="utf-8")
    return folders


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Path]:
    return build_run(tmp_path)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_report(build_run(tmp_path_factory.mktemp("run")), title=HOSTILE)


class Page(html.parser.HTMLParser):
    """The page as a browser's parser sees it: its elements, and what stands in its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sources: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: D102  its base class names it
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:  # noqa: D102  its base class names it
        if self.tags and self.tags[-1][0] in self.sources and data.strip():
            self.sources[self.tags[-1][0]].append(data)


def read_images(text: str) -> list[xml.etree.ElementTree.Element]:
    uris = re.findall(r'(?:src|srcset)="data:image/svg\+xml;base64,([^"]*)"', text)
    return [xml.etree.ElementTree.fromstring(base64.b64decode(uri)) for uri in uris]


def test_hostile_text_adds_no_element_and_no_attribute(rendered: str):
    rendered.encode("utf-8")
    page = Page(rendered)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 4  # an index, the fields, a chunk of pairs, the program
    assert tags.count("style") == 1
    attributes = {name for _, given in page.tags for name in given}
    assert not {name for name in attributes if name.startswith("on")} | (attributes & {"style"})
    assert all(str(given.get("src", "data:")).startswith("data:") for tag, given in page.tags if tag == "img")
    assert "owned'</script>" not in rendered
    assert "{{ 7*7 }}" in html.unescape(rendered)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]", rendered)
    assert "a&lt;U+0000&gt;b&lt;U+001B&gt;c&lt;U+202E&gt;d" in rendered


def test_policy_allows_the_pages_own_script_and_style_by_hash_alone(rendered: str):
    page = Page(rendered)
    policy = next(given["content"] for _, given in page.tags if given.get("http-equiv") == "Content-Security-Policy")
    program = next(source for source in page.sources["script"] if "use strict" in source)
    hashes = [
        "'sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() + "'"
        for source in (program, page.sources["style"][0])
    ]
    assert policy == (
        f"default-src 'none'; script-src {hashes[0]}; style-src {hashes[1]}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    assert "innerHTML" not in program


def unpack(text: str) -> tuple[list[Any], dict[str, list[Any]]]:
    """Return the pairs that a page holds, and their numbers by field."""
    index, fields, *chunks = (source for source in Page(text).sources["script"] if "use strict" not in source)
    assert not set("<>&'") & set(index + fields + "".join(chunks))
    assert json.loads(index)["dialogues"] == []
    found = json.loads(zlib.decompress(base64.b64decode(fields)))["fields"]
    pairs = [row for chunk in chunks for row in json.loads(zlib.decompress(base64.b64decode(chunk)))]
    return pairs, {item["name"]: item.get("numbers") or item["codes"] for item in found}


def test_embedded_pairs_are_packed_json(rendered: str):
    pairs, fields = unpack(rendered)
    assert len(pairs) == 120
    assert pairs[3][1].startswith(f"prompt 3 {BAD}")
    assert [fields[name][3] for name in ("margin", "score of the chosen", "score of the rejected")] == [0.75, 1.0, 0.25]


def test_images_are_well_formed_and_hold_no_script(rendered: str):
    images = read_images(rendered)
    assert len(images) == 2 * (5 + 4 + 2)
    for image in images:
        assert not [node for node in image.iter() if node.tag.endswith(("script", "foreignObject", "image"))]


def test_same_folders_same_bytes(parts: dict[str, Path]):
    assert render_report(parts, title="t") == render_report(parts, title="t")


def test_headline_table_and_examples(rendered: str):
    text = " ".join(html.unescape(rendered).split())
    assert "With the adapter the model passes 57.5% of the 120 held-out prompts, without it 28.3%" in text
    assert "a gain of 29.2 points (95% interval: +20.1 to +38.2). The whole interval lies above zero." in text
    assert "+29.2 points" in text
    assert text.count("\u2717 fail") == text.count("\u2713 pass") == 3


@pytest.mark.parametrize(
    ("low", "high", "says"), [(-0.1, 0.2, "includes zero"), (-0.3, -0.1, "made it worse"), (0.1, 0.2, "above zero")]
)
def test_headline_says_what_the_interval_shows(parts: dict[str, Path], low: float, high: float, says: str):
    summary = make_summary()
    summary["rows"][0]["difference"] = {"mean": (low + high) / 2, "low": low, "high": high}
    (parts["eval"] / "summary.json").write_text(json.dumps(summary))
    assert says in render_report(parts, title="t")


def test_base_alone_needs_no_adapter(parts: dict[str, Path]):
    summary = make_summary()
    for row in summary["rows"] + summary["by_kind"]:
        row.pop("difference", None)
        del row["adapter"]
    (parts["eval"] / "summary.json").write_text(json.dumps(summary))
    base = {"text": "x", "passed": False, "score": 0.0}
    write_lines(parts["eval"] / "results.jsonl", [{"prompt_id": "p1", "prompt": "x", "base": base}])
    text = render_report(parts, title="t")
    assert "There is no adapter" in text
    assert "results.jsonl lacks 2 of the 3 examples." in text


def test_missing_empty_and_broken_parts_become_notes(parts: dict[str, Path], tmp_path: Path):
    synth, align, judged = parts.values()
    (synth / "pairs.jsonl").write_text("")
    write_lines(align / "metrics.jsonl", [[], {"step": 1, "loss": 0.5}])
    (judged / "summary.json").write_text("{")
    (judged / "results.jsonl").unlink()
    strange = tmp_path / "strange"
    write_manifest(strange, HOSTILE)
    wrong = tmp_path / "wrong"
    write_manifest(wrong, "synthesize", counts="x", tokens=3, config=None, seconds="x")
    text = render_report(parts | {"gone": tmp_path / "gone", "strange": strange, "wrong": wrong}, title="t")
    for note in (
        "pairs.jsonl holds no pairs.", "There is no pairs.jsonl, groups.jsonl or triplets.jsonl",
        "metrics.jsonl: 1 lines left out",
        "metrics.jsonl says nothing of rewards/margins.", "summary.json cannot be read", "results.jsonl: no such file.",
        "manifest.json is missing.", "There is no manifest.", "Nothing more is shown of a job of the kind",
    ):  # fmt: skip
        assert note in text, note
    assert "There are no jobs." in render_report({}, title="t")


def test_numbers_that_are_none_do_not_break_a_plot(parts: dict[str, Path]):
    rows = [make_pair(1) | {"score_chosen": float(text)} for text in ("nan", "inf", "1")]
    (parts["synth"] / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = make_summary()
    summary["rows"][0]["base"] = {"mean": None, "low": float("nan")}
    summary["by_kind"][0]["base"] = float("nan")
    (parts["eval"] / "summary.json").write_text(json.dumps(summary))
    _, fields = unpack(render_report(parts, title="t"))
    assert fields["score of the chosen"] == [None, None, 1.0]
    assert fields["margin"] == [None, None, 0.5]


def test_more_pairs_than_fit_are_counted(parts: dict[str, Path]):
    text = render_report(parts, title="t", max_pairs=50)
    assert "The page holds the first 50 of 120 pairs" in text
    assert len(unpack(text)[0]) == 50


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of finished jobs; the second one's name has a dot in it."""
    train, judged = tmp_path / "align", tmp_path / "eval.v2"
    write_manifest(train, "train")
    difference = {"mean": 0.292, "low": 0.201, "high": 0.382}
    figures = {"pass_rate_base": {"mean": 0.283}, "pass_rate_difference": difference, "plain_text_base": {"mean": -3.1}}
    write_manifest(judged, "evaluate", figures=figures)
    return train, judged


def test_job_writes_the_page_once(finished: tuple[Path, Path], tmp_path: Path):
    job = Report(parts=finished, title="Two parts")
    done = job.run(tmp_path / "report", quiet=True)
    assert done.fresh
    text = done.path("report.html").read_text(encoding="utf-8")
    assert text == render_report({"align": finished[0], "eval.v2": finished[1]}, title="Two parts")
    assert done.figures == {
        "pass_rate_base": {"mean": 0.283}, "pass_rate_difference": {"mean": 0.292, "low": 0.201, "high": 0.382}
    }  # fmt: skip
    assert done.manifest["counts"] == {"kept": 1, "dropped": {}}
    assert set(done.manifest["outputs"]) == {"report.html"}
    assert not job.run(tmp_path / "report", quiet=True).fresh


def test_changed_part_is_a_changed_input(finished: tuple[Path, Path], tmp_path: Path):
    job = Report(parts=finished)
    job.run(tmp_path / "report", quiet=True)
    write_manifest(finished[0], "train", seconds=99)
    with pytest.raises(RunError, match=r"differs in: inputs"):
        job.run(tmp_path / "report", quiet=True)


def test_part_without_manifest_is_refused(finished: tuple[Path, Path], tmp_path: Path):
    (finished[1] / "manifest.json").unlink()
    job = Report(parts=finished)
    with pytest.raises(InputError, match=r"eval\.v2: no manifest\.json in it"):
        job.check()
    with pytest.raises(InputError, match=r"eval\.v2"):
        job.run(tmp_path / "report", quiet=True)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("parts", [[], ["a/eval", "b/eval"]])
def test_no_parts_or_two_of_one_name_are_refused(parts: list[str]):
    with pytest.raises(ConfigError, match="parts"):
        build(Report, {"parts": parts}, source="report.yaml")


@pytest.mark.slow
def test_browser_draws_the_pairs_and_runs_nothing_else(parts: dict[str, Path], tmp_path: Path, browse: Browse):
    page = tmp_path / "report.html"
    page.write_text(render_report(parts, title="Quickstart"), encoding="utf-8")
    done = browse(page)
    assert done.stdout.count('<article class="item">') == 20
    assert "120 of 120 pairs, page 1 of 6" in done.stdout
    assert "<mark>good</mark>" in done.stdout
    assert "<mark>bad</mark>" in done.stdout
    assert "<title>Quickstart</title>" in done.stdout
    tags = Page(done.stdout).tags
    assert not [name for _, given in tags for name in given if name.startswith("on")]
    assert [tag for tag, _ in tags].count("script") == 4
    complaints = [line for line in done.stderr.splitlines() if re.search("CONSOLE|Refused|violates", line)]
    assert not complaints


@pytest.mark.slow
def test_browser_refuses_a_script_that_got_in(parts: dict[str, Path], tmp_path: Path, browse: Browse):
    """The policy is the second wall: a script put into the page by hand does not run."""
    page = tmp_path / "report.html"
    text = render_report(parts, title="Quickstart")
    page.write_text(text.replace("</main>", "<script>document.title='owned'</script></main>"), encoding="utf-8")
    done = browse(page)
    assert "<title>Quickstart</title>" in done.stdout
    assert re.search("Refused|violates", done.stderr)
