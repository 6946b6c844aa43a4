"""Generated scenes as pre-training data (METHOD.md sections 0 and 4).

Every record is a function of (seed, kind, split, index), so a source needs no files, takes no
memory and gives the same records in any order, on any machine.
"""

from __future__ import annotations

import functools
import itertools
import operator
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal, Self

import ml_collections
import numpy as np
import pydantic
from jaxtyping import Bool

from rc3_jax.data.groups import GroupKeys, KeyLists
from rc3_jax.data.kinds import LanguagePair, row_languages, wanted
from rc3_jax.data.record import Element, Kinds, Record, Skips
from rc3_jax.scenes import scene as scenes
from rc3_jax.scenes.detector import DETECTOR, DetectorSettings, feature_projection, random_regions
from rc3_jax.scenes.draw import draw
from rc3_jax.scenes.languages import LANGUAGES
from rc3_jax.scenes.wordings import random_asked, random_frame
from rc3_jax.settings import ConfigError, Settings, check_choice

KINDS: tuple[str, ...] = ("strict", "weak", "parallel", "retrieval", "captioned", "region")
"""A kind's position here is part of its random streams' key."""
STRICT_LANGUAGES = ("en", "de", "fr")
WEAK_LANGUAGES = tuple(code for code in LANGUAGES if code not in STRICT_LANGUAGES)

_KEPT_IN_STRICT_TEXT = 0.85
_KEPT_IN_WEAK_TEXT = 0.7
# Independent random streams of one record.
_SCENE, _FACTS, _FRAMES, _REGIONS, _ELEMENTS, _ERRORS, _ASKED = range(7)
_SEEN_IN_CROPS = ("shape", "colour")  # attributes that stay true whatever a crop keeps


class ScenesSource(Settings):
    """Generated scenes as a source of training data: the number of records of each kind."""

    type: Literal["scenes"] = "scenes"
    seed: int = pydantic.Field(0, ge=0)
    """Other seeds are other scenes."""
    strict: int = pydantic.Field(0, ge=0)
    """Two of the strict languages say the same about all objects of a picture, up to `mentioned`."""
    weak: int = pydantic.Field(0, ge=0)
    """Two languages, one of them weak, say what they choose about objects that they choose."""
    parallel: int = pydantic.Field(0, ge=0)
    """English and another language say the same about a scene that is not shown."""
    mentioned: int = pydantic.Field(len(scenes.PLACES), ge=1, le=len(scenes.PLACES))
    """Objects that a text about a scene mentions at most; fewer make shorter texts."""
    questions: float = pydantic.Field(0.0, ge=0, le=1)
    """Share of the parallel records whose sentences are questions, or statements about two pictures,
    in the words of the tasks in miniature."""
    captioned: int = pydantic.Field(0, ge=0)
    """Every language says the same about all objects of a picture, up to `mentioned`."""
    region: int = pydantic.Field(0, ge=0)
    """As captioned, and every language names the colour and shape of each object by itself."""
    strict_languages: tuple[str, ...] = STRICT_LANGUAGES
    """Languages of strict records."""
    weak_languages: tuple[str, ...] = WEAK_LANGUAGES
    """Languages that occur in the other records only."""
    detector: DetectorSettings = DETECTOR

    @pydantic.model_validator(mode="after")
    def _check_languages(self) -> Self:
        for kind in self._sizes():
            _language_turns(kind, self.strict_languages, self.weak_languages)
        return self

    def _sizes(self) -> dict[str, int]:
        """The sizes of the kinds that there are; retrieval is never trained on."""
        return {kind: size for kind in KINDS if (size := getattr(self, kind, 0))}

    def open(self, config: ml_collections.ConfigDict, skips: Skips) -> tuple[Kinds, Kinds]:
        """Returns the kinds of records to train on, and those held out.

        Captioned and region records are offered where `config.batch_mix` has them.
        """
        records = functools.partial(
            SceneRecords,
            seed=self.seed,
            strict_languages=self.strict_languages,
            weak_languages=self.weak_languages,
            feature_size=config.model.roi.feature_size,
            detector=self.detector,
            questions=self.questions,
            mentioned=self.mentioned,
        )
        train: Kinds = {}
        groups = 0
        kinds = ("strict", "weak", "parallel", *wanted(("captioned", "region"), config.batch_mix))
        for kind, size in self._sizes().items():
            if kind in kinds:
                source = records(kind, "train", size)
                train[kind] = source, groups
                groups += source.groups
        rows = config.evaluation.images, config.evaluation.dependence_rows
        held: list[tuple[str, int]] = list(zip(("retrieval", "weak"), rows, strict=True))
        return train, {kind: (records(kind, "heldout", n), 0) for kind, n in held if n}


class SceneRecords:
    """Random access to the records of one kind, a `Source`.

    `ScenesSource` says what the texts of each kind are; those of kind "retrieval" say everything about
    every object, or about `mentioned` of them, in every language. The relevance of a weak record is
    the overlap of what its texts say. Records with an image have regions; those of kind region have
    elements instead.
    Other kinds, splits and seeds are other scenes; a smaller source is the beginning of a larger
    one. The language pairs take turns, so that all are equally frequent.

    Args:
      split: any name, such as "train" or "heldout".
      feature_size: length of a region's feature vector.
      detector: the errors of the regions.
      questions: share of questions and statements among parallel records.
      mentioned: objects that a text about a scene mentions at most.

    Raises:
      ConfigError: unknown languages, languages named twice, or too few for the kind.
    """

    def __init__(
        self,
        kind: str,
        split: str,
        size: int,
        seed: int,
        strict_languages: Sequence[str] = STRICT_LANGUAGES,
        weak_languages: Sequence[str] = WEAK_LANGUAGES,
        feature_size: int = 64,
        detector: DetectorSettings = DETECTOR,
        questions: float = 0.0,
        mentioned: int = len(scenes.PLACES),
    ):
        self._turns = _language_turns(kind, strict_languages, weak_languages)
        self._kind, self._size, self._seed = kind, size, seed
        self._questions = questions if kind == "parallel" else 0.0
        self._mentioned = mentioned
        self._key = KINDS.index(kind), zlib.crc32(split.encode())
        self.projection, self.detector = feature_projection(feature_size), detector
        self._groups_each = 1 + len(scenes.PLACES) if kind == "region" else 1
        self.groups = size * self._groups_each
        self.pairs: Mapping[LanguagePair, Sequence[int]] = {
            pair: range(turn, size, len(self._turns))
            for turn, languages in enumerate(self._turns[:size])
            for pair in row_languages(kind, dict.fromkeys(languages, ("one text",)))
        }

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Record:
        where, group = f"scenes/{self._kind}:{index}", index * self._groups_each
        if said := self._question(index):
            return Record(where, group, said)
        scene = self.scene(index)
        facts = self._facts(index, scene)
        mentions = {code: scene.mentions(said) for code, said in facts.items()}
        texts = _captions(self._rng(index, _FRAMES), mentions)
        if self._kind == "parallel":
            return Record(where, group, texts)
        image = functools.partial(draw, scene)
        if self._kind == "region":
            rng, elements = self._rng(index, _ELEMENTS), []
            for item in scene.objects:
                mentions = {code: [item.mention(_SEEN_IN_CROPS)] for code in facts}
                elements.append(Element(item.box, _captions(rng, mentions)))
            return Record(
                where, group, texts, image, elements=tuple(elements), element_group=group + 1
            )
        rngs = self._rng(index, _REGIONS), self._rng(index, _ERRORS)
        regions = random_regions(*rngs, scene, self.projection, self.detector)
        overlap = scenes.relevance(*facts.values()) if self._kind == "weak" else None
        return Record(where, group, texts, image, *regions, overlap)

    def keys(self) -> GroupKeys:
        """Those of questions, which recur. Every scene is another one, and its texts are about it alone."""
        keys = KeyLists()
        for index in range(self._size if self._questions else 0):
            if said := self._question(index):
                keys.add(index, sentences=[text for texts in said.values() for text in texts])
        return keys.keys()

    def scene(self, index: int) -> scenes.Scene:
        """The scene behind a record."""
        return scenes.random_scene(self._rng(index, _SCENE))

    def facts(self, index: int) -> dict[str, scenes.Facts]:
        """What the text of each language of a record says about its scene."""
        return self._facts(index, self.scene(index))

    def satisfied(self, numbers: Sequence[int]) -> list[dict[str, Bool[np.ndarray, " records"]]]:
        """For each of some records: language of its text → which of their scenes make it true.

        The relevance of two texts says how much they share; this says what else a text is true of.
        """
        shown = [self.scene(number) for number in numbers]
        found = []
        for number, scene in zip(numbers, shown, strict=True):
            facts = self._facts(number, scene)
            mentions = [scene.mentions(said) for said in facts.values()]
            found.append(dict(zip(facts, scenes.satisfied(mentions, shown), strict=True)))
        return found

    def _question(self, index: int) -> dict[str, tuple[str]]:
        """The texts of a parallel record that asks or states something; empty for others."""
        if not self._questions:
            return {}
        rng = self._rng(index, _ASKED)
        if rng.random() >= self._questions:
            return {}
        asked = random_asked(rng)
        languages = self._turns[index % len(self._turns)]
        return {code: (LANGUAGES[code].ask(*asked),) for code in languages}

    def _facts(self, index: int, scene: scenes.Scene) -> dict[str, scenes.Facts]:
        rng = self._rng(index, _FACTS)
        languages = self._turns[index % len(self._turns)]
        objects = min(len(scene.objects), self._mentioned)
        if self._kind == "retrieval":
            everything = dict(itertools.islice(scene.facts().items(), objects))
            return dict.fromkeys(languages, everything)
        draw_facts = functools.partial(scenes.random_facts, rng, scene)
        if self._kind == "weak":
            counts = [int(rng.integers(1, objects + 1)) for _ in languages]
            said = [draw_facts(count, _KEPT_IN_WEAK_TEXT) for count in counts]
            return dict(zip(languages, said, strict=True))
        return dict.fromkeys(languages, draw_facts(objects, _KEPT_IN_STRICT_TEXT))

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        index = operator.index(index)
        if not 0 <= index < self._size:
            raise IndexError(f"record {index} of a scene source of {self._size}")
        return scenes.random_stream(self._seed, *self._key, index, stream)


def _captions(
    rng: np.random.Generator, mentions: Mapping[str, list[scenes.Mention]]
) -> dict[str, tuple[str]]:
    """Says the mentions of each language, in random frames."""
    return {c: (LANGUAGES[c].caption(m, random_frame(rng, m)),) for c, m in mentions.items()}


def _language_turns(kind: str, strict: Sequence[str], weak: Sequence[str]) -> list[LanguagePair]:
    """The languages of a record, one entry for each turn that records take."""
    every = (*strict, *weak)
    named = f"strict_languages={strict}, weak_languages={weak}"
    for code in every:
        check_choice("a language of strict_languages or weak_languages", code, LANGUAGES)
    if len(set(every)) < len(every):
        raise ConfigError(f"{named}: name each language once")
    turns: list[LanguagePair] = [every] if every else []
    if kind == "strict":
        turns = list(itertools.combinations(strict, 2))
    elif kind == "weak":
        pairs = itertools.combinations(every, 2)
        turns = [pair for pair in pairs if not weak or set(pair) & set(weak)]
    elif kind == "parallel":
        turns = [("en", code) for code in every if code != "en"]
    if not turns:
        raise ConfigError(f"{named}: too few for {kind} records; name more, or leave both out")
    return turns
