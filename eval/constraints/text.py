"""Reading an answer: its words, sentences, lines and paragraphs, as every constraint counts them."""

import re

__all__ = [
    "distinct_share", "has_word", "items", "lines", "opening", "paragraphs", "sentences", "strip_end", "words",
]  # fmt: skip

_WORD = re.compile(r"\w[\w'\u2019-]*")
_NUMBERING = re.compile(r"^[ \t]*\d+[.)][ \t]+", re.MULTILINE)
_BREAK = re.compile(r"(?P<mark>[.!?\u2026]+)(?P<close>[\"'\u201d\u2019)\]*_]*)(?=\s|$)")
_CLOSERS = "\"'\u201d\u2019)]*_ \t\n"
# Never the end of a sentence, whatever follows; without their last full stop.
_TITLES = frozenset(
    {"mr", "mrs", "ms", "dr", "prof", "st", "vs", "e.g", "i.e", "eg", "ie", "cf", "p.s", "mt", "sr", "jr"}
)
# The end of a sentence only where a capital letter follows.
_UNITS = frozenset({"etc", "a.m", "p.m", "am", "pm", "u.s", "u.k", "inc", "ltd", "approx", "min", "max"})


def words(text: str) -> list[str]:
    r"""List the words: runs of `\w[\w'-]*` (a curly apostrophe too), the numbering of list lines left out."""
    return _WORD.findall(_NUMBERING.sub("", text))


def lines(text: str) -> list[str]:
    """List the lines that hold a word, stripped."""
    return [line.strip() for line in text.splitlines() if words(line)]


def paragraphs(text: str) -> list[str]:
    """List the blocks between blank lines that hold a word, stripped."""
    return [block.strip() for block in re.split(r"\n[ \t\r]*\n", text) if words(block)]


def sentences(text: str) -> list[str]:
    """Split into sentences.

    A line break ends a sentence, and so does a run of `.`, `!` or `?` (closing quotes or brackets may follow) before
    white space or the end, so that decimals and web addresses stay whole. Exceptions: after a title or `e.g.` never;
    after a single capital but I (an initial) never; after `etc.`, `a.m.` and the like, an ellipsis, or a mark inside
    quotes only where no lower-case letter follows. Pieces without a word do not count, nor does a list's numbering.
    """
    found: list[str] = []
    for line in lines(_NUMBERING.sub("", text)):
        start = 0
        for match in _BREAK.finditer(line):
            if _ends_sentence(line, match):
                found.append(line[start : match.end()].strip())
                start = match.end()
        found.append(line[start:].strip())
    return [piece for piece in found if _WORD.search(piece)]


def _ends_sentence(line: str, match: re.Match[str]) -> bool:
    rest = line[match.end() :].lstrip().lstrip("\"'\u201c\u2018([*_")
    lower_follows = rest[:1].islower()
    mark = match["mark"]
    if mark != ".":
        loose = mark.endswith(("..", "\u2026")) or bool(match["close"].strip("*_"))
        return not (loose and lower_follows)
    before = line[: match.start()].rsplit(maxsplit=1)[-1:]
    last = before[0].lstrip("\"'\u201c\u2018([*_") if before else ""
    if last.casefold() in _TITLES or (len(last) == 1 and last.isupper() and last != "I" and rest):
        return False
    return not (last.casefold() in _UNITS and lower_follows)


def items(text: str, marker: str) -> list[tuple[str, str]]:
    """List `(marker, text)` of the lines that begin with the pattern `marker` and white space, and hold a word."""
    found = re.findall(rf"^[ \t]*({marker})[ \t]+(.*)$", text, re.MULTILINE)
    return [(str(mark), str(rest).strip()) for mark, rest in found if _WORD.search(rest)]


def has_word(text: str, word: str) -> int:
    """Count `word` (or a phrase) in `text` as whole words, whatever the case."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def opening(text: str) -> str:
    """Return the text from its first word on, without list numbering, case folded."""
    return re.sub(r"^[\W_]+", "", _NUMBERING.sub("", text)).casefold()


def strip_end(text: str) -> str:
    """Return the text without the closing quotes, brackets and emphasis marks at its end."""
    return text.rstrip(_CLOSERS)


def distinct_share(text: str) -> float:
    """Return the distinct words divided by the words, whatever the case; 1 for a text without words."""
    found = [word.casefold() for word in words(text)]
    return len(set(found)) / len(found) if found else 1.0
