"""Reads golden/LANGUAGE.txt: words and sentences written by hand, apart from the package.

Its first line has a regular expression for each value of `ATTRIBUTES` in turn, the second one what
stands between objects. Each further line has a kind of text, what it mentions, and the text.
"""

import functools
import itertools
import pathlib
import re

from rc3_jax.scenes.scene import ATTRIBUTES, Mention

FOLDER = pathlib.Path(__file__).parent / "golden"
CODES = sorted(path.stem for path in FOLDER.glob("*.txt"))
VALUES = tuple(itertools.chain(*ATTRIBUTES.values()))


@functools.cache
def _lines(code: str) -> list[str]:
    return (FOLDER / f"{code}.txt").read_text(encoding="utf-8").splitlines()


def sentences(code: str) -> list[list[str]]:
    """The kind, the mentions and the text of each line."""
    return [line.split(" | ") for line in _lines(code)[2:]]


def mention(text: str) -> Mention:
    """Reads `small red star top left`."""
    named = {a: [v for v in values if v in text] for a, values in ATTRIBUTES.items()}
    return Mention(**{attribute: found[0] for attribute, found in named.items() if found})


def said(code: str, text: str) -> list[frozenset[str]]:
    """The values that a text states about each object, read off with the words of the file."""
    words, separator = (line.split(": ", 1)[1] for line in _lines(code)[:2])
    patterns = dict(zip(VALUES, words.split(", "), strict=True))
    parts = re.split(separator, text)
    found = [
        [v for v in VALUES for _ in re.findall(patterns[v], part, re.IGNORECASE)] for part in parts
    ]
    assert all(len(set(part)) == len(part) for part in found), f"said twice in {text!r}"
    return list(map(frozenset, found))
