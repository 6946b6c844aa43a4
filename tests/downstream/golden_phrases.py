"""Noun phrases written by hand, in rows that go through the shapes, colours, sizes and places."""

from rc3_jax.data.grammar import COLOURS, PLACES, SHAPES, SIZES, Mention
from rc3_jax.downstream import phrases

ROWS = {
    "shapes": [Mention(shape) for shape in SHAPES],
    "coloured shapes": [Mention(None, colour) for colour in COLOURS],
    "coloured circles": [Mention("circle", colour) for colour in COLOURS],
    "coloured stars": [Mention("star", colour) for colour in COLOURS],
    "coloured crosses": [Mention("cross", colour) for colour in COLOURS],
    "sized stars": [Mention("star", None, size) for size in SIZES],
    "sized shapes": [Mention(None, None, size) for size in SIZES],
    "placed shapes": [Mention(place=place) for place in PLACES],
    "full": [
        Mention("star", "green", "small", "top left"),
        Mention("square", "orange", "large", "bottom right"),
    ],
}

# (form, language, row, its phrases)
PHRASES = [
    (phrases.definite, *golden)
    for golden in [
        ("en", "shapes", "the circle|the square|the triangle|the star|the cross"),
        (
            "en",
            "coloured shapes",
            (
                "the red shape|the green shape|the blue shape|the yellow shape|the black shape|"
                "the orange shape"
            ),
        ),
        ("en", "sized stars", "the small star|the large star"),
        (
            "en",
            "placed shapes",
            (
                "the shape at the top left|the shape at the top right|the shape at the bottom left|"
                "the shape at the bottom right"
            ),
        ),
        (
            "en",
            "full",
            "the small green star at the top left|the large orange square at the bottom right",
        ),
        ("de", "shapes", "der Kreis|das Quadrat|das Dreieck|der Stern|das Kreuz"),
        (
            "de",
            "coloured shapes",
            (
                "die rote Form|die grüne Form|die blaue Form|die gelbe Form|die schwarze Form|"
                "die orangefarbene Form"
            ),
        ),
        (
            "de",
            "coloured circles",
            (
                "der rote Kreis|der grüne Kreis|der blaue Kreis|der gelbe Kreis|der schwarze Kreis|"
                "der orangefarbene Kreis"
            ),
        ),
        (
            "de",
            "coloured crosses",
            (
                "das rote Kreuz|das grüne Kreuz|das blaue Kreuz|das gelbe Kreuz|das schwarze Kreuz|"
                "das orangefarbene Kreuz"
            ),
        ),
        ("de", "sized stars", "der kleine Stern|der große Stern"),
        ("de", "sized shapes", "die kleine Form|die große Form"),
        (
            "de",
            "placed shapes",
            "die Form oben links|die Form oben rechts|die Form unten links|die Form unten rechts",
        ),
        (
            "de",
            "full",
            "der kleine grüne Stern oben links|das große orangefarbene Quadrat unten rechts",
        ),
        ("fr", "shapes", "le cercle|le carré|le triangle|l'étoile|la croix"),
        (
            "fr",
            "coloured shapes",
            (
                "la forme rouge|la forme verte|la forme bleue|la forme jaune|la forme noire|"
                "la forme orange"
            ),
        ),
        (
            "fr",
            "coloured circles",
            (
                "le cercle rouge|le cercle vert|le cercle bleu|le cercle jaune|le cercle noir|"
                "le cercle orange"
            ),
        ),
        (
            "fr",
            "coloured stars",
            (
                "l'étoile rouge|l'étoile verte|l'étoile bleue|l'étoile jaune|l'étoile noire|"
                "l'étoile orange"
            ),
        ),
        ("fr", "sized stars", "la petite étoile|la grande étoile"),
        ("fr", "sized shapes", "la petite forme|la grande forme"),
        (
            "fr",
            "placed shapes",
            (
                "la forme en haut à gauche|la forme en haut à droite|la forme en bas à gauche|"
                "la forme en bas à droite"
            ),
        ),
        (
            "fr",
            "full",
            "la petite étoile verte en haut à gauche|le grand carré orange en bas à droite",
        ),
        ("cs", "shapes", "kruh|čtverec|trojúhelník|hvězda|kříž"),
        (
            "cs",
            "coloured shapes",
            "červený tvar|zelený tvar|modrý tvar|žlutý tvar|černý tvar|oranžový tvar",
        ),
        (
            "cs",
            "coloured stars",
            "červená hvězda|zelená hvězda|modrá hvězda|žlutá hvězda|černá hvězda|oranžová hvězda",
        ),
        ("cs", "sized stars", "malá hvězda|velká hvězda"),
        ("cs", "sized shapes", "malý tvar|velký tvar"),
        (
            "cs",
            "placed shapes",
            "tvar vlevo nahoře|tvar vpravo nahoře|tvar vlevo dole|tvar vpravo dole",
        ),
        ("cs", "full", "malá zelená hvězda vlevo nahoře|velký oranžový čtverec vpravo dole"),
        ("zh", "shapes", "圆形|正方形|三角形|五角星|十字形"),
        (
            "zh",
            "coloured shapes",
            "红色的图形|绿色的图形|蓝色的图形|黄色的图形|黑色的图形|橙色的图形",
        ),
        ("zh", "sized stars", "小五角星|大五角星"),
        ("zh", "placed shapes", "左上角的图形|右上角的图形|左下角的图形|右下角的图形"),
        ("zh", "full", "左上角的绿色小五角星|右下角的橙色大正方形"),
        ("ja", "shapes", "丸|四角|三角|星|十字"),
        (
            "ja",
            "coloured shapes",
            "赤い図形|緑の図形|青い図形|黄色い図形|黒い図形|オレンジ色の図形",
        ),
        ("ja", "sized stars", "小さな星|大きな星"),
        ("ja", "placed shapes", "左上の図形|右上の図形|左下の図形|右下の図形"),
        ("ja", "full", "左上の小さな緑の星|右下の大きなオレンジ色の四角"),
    ]
] + [
    (phrases.quantity, *golden)
    for golden in [
        ("en", "shapes", "circles|squares|triangles|stars|crosses"),
        (
            "en",
            "coloured shapes",
            "red shapes|green shapes|blue shapes|yellow shapes|black shapes|orange shapes",
        ),
        ("de", "shapes", "Kreise|Quadrate|Dreiecke|Sterne|Kreuze"),
        (
            "de",
            "coloured shapes",
            (
                "rote Formen|grüne Formen|blaue Formen|gelbe Formen|schwarze Formen|"
                "orangefarbene Formen"
            ),
        ),
        ("fr", "shapes", "de cercles|de carrés|de triangles|d'étoiles|de croix"),
        (
            "fr",
            "coloured circles",
            (
                "de cercles rouges|de cercles verts|de cercles bleus|de cercles jaunes|"
                "de cercles noirs|de cercles orange"
            ),
        ),
        (
            "fr",
            "coloured stars",
            (
                "d'étoiles rouges|d'étoiles vertes|d'étoiles bleues|d'étoiles jaunes|"
                "d'étoiles noires|d'étoiles orange"
            ),
        ),
        (
            "fr",
            "coloured shapes",
            (
                "de formes rouges|de formes vertes|de formes bleues|de formes jaunes|"
                "de formes noires|de formes orange"
            ),
        ),
        ("cs", "shapes", "kruhů|čtverců|trojúhelníků|hvězd|křížů"),
        (
            "cs",
            "coloured shapes",
            (
                "červených tvarů|zelených tvarů|modrých tvarů|žlutých tvarů|černých tvarů|"
                "oranžových tvarů"
            ),
        ),
        (
            "cs",
            "coloured stars",
            (
                "červených hvězd|zelených hvězd|modrých hvězd|žlutých hvězd|černých hvězd|"
                "oranžových hvězd"
            ),
        ),
        ("zh", "shapes", "个圆形|个正方形|个三角形|颗五角星|个十字形"),
        (
            "zh",
            "coloured stars",
            (
                "颗红色的五角星|颗绿色的五角星|颗蓝色的五角星|颗黄色的五角星|颗黑色的五角星|"
                "颗橙色的五角星"
            ),
        ),
        (
            "ja",
            "coloured stars",
            "赤い星|緑の星|青い星|黄色い星|黒い星|オレンジ色の星",
        ),
    ]
]
PHRASES += [
    (phrases.french_negated, "fr", "shapes", "de cercle|de carré|de triangle|d'étoile|de croix"),
    (
        phrases.french_negated,
        "fr",
        "coloured shapes",
        (
            "de forme rouge|de forme verte|de forme bleue|de forme jaune|de forme noire|"
            "de forme orange"
        ),
    ),
    (
        phrases.chinese_of,
        "zh",
        "coloured shapes",
        "红色图形|绿色图形|蓝色图形|黄色图形|黑色图形|橙色图形",
    ),
    (phrases.chinese_of, "zh", "full", "绿色小五角星|橙色大正方形"),
    (
        phrases.accusative,
        "de",
        "coloured circles",
        (
            "einen roten Kreis|einen grünen Kreis|einen blauen Kreis|einen gelben Kreis|"
            "einen schwarzen Kreis|einen orangefarbenen Kreis"
        ),
    ),
    (
        phrases.accusative,
        "cs",
        "coloured stars",
        "červenou hvězdu|zelenou hvězdu|modrou hvězdu|žlutou hvězdu|černou hvězdu|oranžovou hvězdu",
    ),
]
