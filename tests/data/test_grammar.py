"""The caption grammar against captions written by hand, and read back by word lists."""

import collections
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rc3_jax.data import grammar
from rc3_jax.data.grammar import LANGUAGES, Mention, caption
from tests.data.caption_words import said

TL, TR, BL, BR = "top left", "top right", "bottom left", "bottom right"
RED_CIRCLE = Mention("circle", "red", "large", TL)
BLUE_SQUARE = Mention("square", "blue", "small", TR)
GREEN_TRIANGLE = Mention("triangle", "green", "large", BL)
YELLOW_STAR = Mention("star", "yellow", "small", BR)
BLACK_CROSS = Mention("cross", "black", "large", TL)
ORANGE_SHAPE = Mention(None, "orange", "small", TR)
STAR = Mention("star")
RED_STAR = Mention("star", "red")
LARGE_STAR = Mention("star", None, "large")
SMALL_CROSS = Mention("cross", None, "small")
ORANGE_CIRCLE = Mention("circle", "orange")
GREEN_SHAPE = Mention(None, "green")
LARGE_SHAPE = Mention(None, None, "large")
SHAPE_BELOW = Mention(None, None, None, BR)

# (language, frame, mentions, caption)
GOLDEN = [
    # English: articles, "an" before a vowel only, bare sentences.
    ("en", 0, [RED_CIRCLE], "There is a large red circle at the top left."),
    (
        "en",
        1,
        [BLUE_SQUARE, GREEN_TRIANGLE],
        (
            "The picture shows a small blue square at the top right and a large green triangle at "
            "the bottom left."
        ),
    ),
    ("en", 2, [ORANGE_CIRCLE], "You can see an orange circle."),
    ("en", 3, [ORANGE_SHAPE], "A small orange shape at the top right."),
    ("en", 3, [ORANGE_CIRCLE, STAR], "An orange circle and a star."),
    (
        "en",
        0,
        [GREEN_SHAPE, SHAPE_BELOW],
        "There is a shape at the bottom right and a green shape.",
    ),
    (
        "en",
        2,
        [STAR, YELLOW_STAR, BLACK_CROSS],
        (
            "You can see a small yellow star at the bottom right, a large black cross at the top left "
            "and a star."
        ),
    ),
    # German accusative: only the masculine differs from the nominative.
    ("de", 0, [RED_CIRCLE], "Es gibt einen großen roten Kreis oben links."),
    ("de", 0, [BLUE_SQUARE], "Es gibt ein kleines blaues Quadrat oben rechts."),
    ("de", 1, [GREEN_TRIANGLE], "Das Bild zeigt ein großes grünes Dreieck unten links."),
    ("de", 1, [YELLOW_STAR], "Das Bild zeigt einen kleinen gelben Stern unten rechts."),
    ("de", 1, [BLACK_CROSS], "Das Bild zeigt ein großes schwarzes Kreuz oben links."),
    ("de", 0, [ORANGE_SHAPE], "Es gibt eine kleine orangefarbene Form oben rechts."),
    (
        "de",
        0,
        [ORANGE_CIRCLE, LARGE_SHAPE],
        "Es gibt einen orangefarbenen Kreis und eine große Form.",
    ),
    # German nominative, and the verb's number.
    ("de", 3, [RED_CIRCLE], "Ein großer roter Kreis oben links."),
    ("de", 3, [BLUE_SQUARE], "Ein kleines blaues Quadrat oben rechts."),
    ("de", 3, [ORANGE_SHAPE], "Eine kleine orangefarbene Form oben rechts."),
    ("de", 2, [YELLOW_STAR], "Auf dem Bild ist ein kleiner gelber Stern unten rechts zu sehen."),
    (
        "de",
        2,
        [RED_CIRCLE, SHAPE_BELOW, SMALL_CROSS],
        (
            "Auf dem Bild sind ein großer roter Kreis oben links, eine Form unten rechts und ein "
            "kleines Kreuz zu sehen."
        ),
    ),
    # French: both genders of every adjective, invariable orange.
    ("fr", 0, [RED_CIRCLE], "Il y a un grand cercle rouge en haut à gauche."),
    ("fr", 1, [BLUE_SQUARE], "L'image montre un petit carré bleu en haut à droite."),
    ("fr", 2, [GREEN_TRIANGLE], "On voit un grand triangle vert en bas à gauche."),
    ("fr", 3, [YELLOW_STAR], "Une petite étoile jaune en bas à droite."),
    ("fr", 0, [BLACK_CROSS], "Il y a une grande croix noire en haut à gauche."),
    ("fr", 2, [ORANGE_SHAPE], "On voit une petite forme orange en haut à droite."),
    ("fr", 3, [ORANGE_CIRCLE, GREEN_SHAPE], "Un cercle orange et une forme verte."),
    ("fr", 3, [Mention("circle", "black"), RED_STAR], "Un cercle noir et une étoile rouge."),
    (
        "fr",
        1,
        [Mention("cross", "blue"), Mention("square", "yellow"), SHAPE_BELOW],
        "L'image montre une forme en bas à droite, une croix bleue et un carré jaune.",
    ),
    # Czech: the accusative differs in the feminine only.
    ("cs", 0, [RED_CIRCLE], "Na obrázku je velký červený kruh vlevo nahoře."),
    ("cs", 1, [RED_CIRCLE], "Na obrázku vidíme velký červený kruh vlevo nahoře."),
    ("cs", 1, [BLUE_SQUARE], "Na obrázku vidíme malý modrý čtverec vpravo nahoře."),
    ("cs", 2, [GREEN_TRIANGLE], "Obrázek ukazuje velký zelený trojúhelník vlevo dole."),
    ("cs", 0, [YELLOW_STAR], "Na obrázku je malá žlutá hvězda vpravo dole."),
    ("cs", 1, [YELLOW_STAR], "Na obrázku vidíme malou žlutou hvězdu vpravo dole."),
    ("cs", 2, [BLACK_CROSS], "Obrázek ukazuje velký černý kříž vlevo nahoře."),
    ("cs", 3, [ORANGE_SHAPE], "Malý oranžový tvar vpravo nahoře."),
    ("cs", 3, [LARGE_STAR, GREEN_SHAPE], "Velká hvězda a zelený tvar."),
    (
        "cs",
        2,
        [Mention("star", "orange", "large", BL), SMALL_CROSS, RED_STAR],
        "Obrázek ukazuje velkou oranžovou hvězdu vlevo dole, malý kříž a červenou hvězdu.",
    ),
    # Chinese: 颗 for stars, colour before size, a clause for each place.
    ("zh", 0, [RED_CIRCLE], "左上角有一个红色的大圆形。"),
    (
        "zh",
        1,
        [BLUE_SQUARE, YELLOW_STAR],
        "图片的右上角有一个蓝色的小正方形，右下角有一颗黄色的小五角星。",
    ),
    ("zh", 2, [GREEN_TRIANGLE], "可以看到左下角有一个绿色的大三角形。"),
    ("zh", 3, [BLACK_CROSS, STAR], "画面左上角是一个黑色的大十字形，另外还有一颗五角星。"),
    (
        "zh",
        0,
        [ORANGE_SHAPE, STAR, SMALL_CROSS],
        "右上角有一个橙色的小图形，另外还有一颗五角星和一个小十字形。",
    ),
    ("zh", 0, [RED_STAR], "图中有一颗红色的五角星。"),
    ("zh", 1, [LARGE_STAR, GREEN_SHAPE], "图片里有一颗大五角星和一个绿色的图形。"),
    (
        "zh",
        2,
        [STAR, ORANGE_CIRCLE, LARGE_SHAPE],
        "可以看到一颗五角星、一个橙色的圆形和一个大图形。",
    ),
    ("zh", 3, [GREEN_SHAPE], "画面中有一个绿色的图形。"),
    # Japanese: い-adjectives and nouns with の, unmodified nouns before modified ones.
    ("ja", 0, [RED_CIRCLE], "左上に大きな赤い丸があります。"),
    (
        "ja",
        1,
        [BLUE_SQUARE, YELLOW_STAR],
        "画像の右上に小さな青い四角、右下に小さな黄色い星があります。",
    ),
    ("ja", 2, [GREEN_TRIANGLE], "左下に大きな緑の三角が描かれています。"),
    ("ja", 3, [BLACK_CROSS, ORANGE_SHAPE], "左上に大きな黒い十字、右上に小さなオレンジ色の図形。"),
    ("ja", 0, [SHAPE_BELOW, STAR], "右下に図形があり、ほかに星もあります。"),
    (
        "ja",
        1,
        [RED_CIRCLE, STAR, SMALL_CROSS],
        "画像の左上に大きな赤い丸があり、ほかに星と小さな十字もあります。",
    ),
    (
        "ja",
        2,
        [RED_CIRCLE, GREEN_SHAPE],
        "左上に大きな赤い丸が描かれていて、ほかに緑の図形もあります。",
    ),
    ("ja", 3, [RED_STAR, RED_CIRCLE], "左上に大きな赤い丸、ほかに赤い星。"),
    ("ja", 0, [RED_STAR, ORANGE_CIRCLE], "赤い星とオレンジ色の丸があります。"),
    ("ja", 1, [RED_STAR, STAR, LARGE_SHAPE], "画像には星、赤い星、大きな図形があります。"),
]


@pytest.mark.parametrize(("language", "frame", "mentions", "expected"), GOLDEN)
def test_caption_is_what_a_native_would_write(language, frame, mentions, expected):
    assert caption(language, mentions, frame) == expected


def stated(mention: Mention) -> frozenset[str]:
    values = (mention.shape, mention.colour, mention.size, mention.place)
    return frozenset(value for value in values if value)


MENTIONS = [
    Mention(*values)
    for values in itertools.product(*((None, *grammar.VALUES[a]) for a in grammar.ATTRIBUTES))
    if any(values)
]
some_mentions = st.lists(st.sampled_from(MENTIONS), min_size=1, max_size=4, unique=True)


@pytest.mark.parametrize("language", LANGUAGES)
@settings(max_examples=60, deadline=None)
@given(mentions=some_mentions, frame=st.integers(0, 3))
def test_caption_says_what_is_mentioned_and_nothing_else(language, mentions, frame):
    text = caption(language, mentions, frame)
    assert collections.Counter(said(language, text)) == collections.Counter(map(stated, mentions))


@pytest.mark.parametrize("language", LANGUAGES)
@settings(max_examples=30, deadline=None)
@given(mentions=some_mentions, frame=st.integers(0, 3))
def test_caption_is_one_well_formed_sentence(language, mentions, frame):
    text = caption(language, mentions, frame)
    stop = "。" if language in ("zh", "ja") else "."
    assert text.count(stop) == 1 and text.endswith(stop)
    assert text[0] == text[0].upper()
    assert text == text.strip() and "  " not in text


@pytest.mark.parametrize("language", LANGUAGES)
def test_frames_and_mentions_give_different_captions(language):
    frames = range(grammar.frame_count(language))
    texts = {caption(language, [mention], frame) for mention in MENTIONS for frame in frames}
    assert len(texts) == len(MENTIONS) * len(frames)


def test_place_never_spills_over_to_an_object_without_one():
    for language in LANGUAGES:
        for frame in range(grammar.frame_count(language)):
            forwards = caption(language, [STAR, RED_CIRCLE], frame)
            assert forwards == caption(language, [RED_CIRCLE, STAR], frame)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Mention(), "names nothing"),
        (lambda: Mention(shape="hexagon"), "unknown shape 'hexagon'; choose one of: circle"),
        (lambda: Mention(colour="pink"), "unknown colour"),
        (lambda: caption("xx", [STAR]), "no caption grammar for language 'xx'; choose from: en"),
        (lambda: caption("en", [STAR], 9), "no sentence frame 9; choose 0 to 3"),
        (lambda: caption("en", []), "1 to 4 objects, not 0"),
        (lambda: caption("en", MENTIONS[:5]), "1 to 4 objects, not 5"),
        (lambda: caption("en", [STAR, STAR]), "name the place of each"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
