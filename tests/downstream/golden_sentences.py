"""Questions and statements written by hand in six languages."""

from rc3_jax.data.grammar import Mention
from rc3_jax.downstream.questions import Question, Statement

RED_STAR, BLUE_SQUARE = Mention("star", "red"), Mention("square", "blue")
ORANGE_CIRCLE, GREEN_SHAPE = Mention("circle", "orange"), Mention(None, "green")
TRIANGLE, CROSS = Mention("triangle"), Mention("cross")
SMALL_STAR_ABOVE = Mention("star", None, "small", "top left")
LARGE_SHAPE_BELOW = Mention(None, None, "large", "bottom right")

# (question or statement, in English, German, French, Czech, Chinese and Japanese)
SENTENCES = [
    (
        Question("colour", SMALL_STAR_ABOVE),
        "What colour is the small star at the top left?",
        "Welche Farbe hat der kleine Stern oben links?",
        "De quelle couleur est la petite étoile en haut à gauche ?",
        "Jakou barvu má malá hvězda vlevo nahoře?",
        "左上角的小五角星是什么颜色的？",
        "左上の小さな星は何色ですか？",
    ),
    (
        Question("colour", TRIANGLE),
        "What colour is the triangle?",
        "Welche Farbe hat das Dreieck?",
        "De quelle couleur est le triangle ?",
        "Jakou barvu má trojúhelník?",
        "三角形是什么颜色的？",
        "三角は何色ですか？",
    ),
    (
        Question("shape", LARGE_SHAPE_BELOW),
        "What is the large shape at the bottom right?",
        "Was ist die große Form unten rechts?",
        "Quelle est la grande forme en bas à droite ?",
        "Co je to za velký tvar vpravo dole?",
        "右下角的大图形是什么？",
        "右下の大きな図形は何ですか？",
    ),
    (
        Question("shape", GREEN_SHAPE),
        "What is the green shape?",
        "Was ist die grüne Form?",
        "Quelle est la forme verte ?",
        "Co je to za zelený tvar?",
        "绿色的图形是什么？",
        "緑の図形は何ですか？",
    ),
    (
        Question("place", RED_STAR),
        "Where is the red star?",
        "Wo ist der rote Stern?",
        "Où est l'étoile rouge ?",
        "Kde je červená hvězda?",
        "红色的五角星在哪里？",
        "赤い星はどこにありますか？",
    ),
    (
        Question("place", BLUE_SQUARE),
        "Where is the blue square?",
        "Wo ist das blaue Quadrat?",
        "Où est le carré bleu ?",
        "Kde je modrý čtverec?",
        "蓝色的正方形在哪里？",
        "青い四角はどこにありますか？",
    ),
    (
        Question("count", RED_STAR),
        "How many red stars are there?",
        "Wie viele rote Sterne gibt es?",
        "Combien d'étoiles rouges y a-t-il ?",
        "Kolik červených hvězd je na obrázku?",
        "图中有几颗红色的五角星？",
        "赤い星はいくつありますか？",
    ),
    (
        Question("count", ORANGE_CIRCLE),
        "How many orange circles are there?",
        "Wie viele orangefarbene Kreise gibt es?",
        "Combien de cercles orange y a-t-il ?",
        "Kolik oranžových kruhů je na obrázku?",
        "图中有几个橙色的圆形？",
        "オレンジ色の丸はいくつありますか？",
    ),
    (
        Question("exists", ORANGE_CIRCLE),
        "Is there an orange circle?",
        "Gibt es einen orangefarbenen Kreis?",
        "Y a-t-il un cercle orange ?",
        "Je na obrázku oranžový kruh?",
        "图中有橙色的圆形吗？",
        "オレンジ色の丸はありますか？",
    ),
    (
        Question("exists", RED_STAR),
        "Is there a red star?",
        "Gibt es einen roten Stern?",
        "Y a-t-il une étoile rouge ?",
        "Je na obrázku červená hvězda?",
        "图中有红色的五角星吗？",
        "赤い星はありますか？",
    ),
    (
        Statement("both", RED_STAR),
        "Both pictures show a red star.",
        "Beide Bilder zeigen einen roten Stern.",
        "Les deux images montrent une étoile rouge.",
        "Oba obrázky ukazují červenou hvězdu.",
        "两张图片中都有红色的五角星。",
        "どちらの画像にも赤い星があります。",
    ),
    (
        Statement("neither", RED_STAR),
        "Neither picture shows a red star.",
        "Keines der beiden Bilder zeigt einen roten Stern.",
        "Aucune des deux images ne montre d'étoile rouge.",
        "Žádný z obou obrázků neukazuje červenou hvězdu.",
        "两张图片中都没有红色的五角星。",
        "どちらの画像にも赤い星はありません。",
    ),
    (
        Statement("neither", GREEN_SHAPE),
        "Neither picture shows a green shape.",
        "Keines der beiden Bilder zeigt eine grüne Form.",
        "Aucune des deux images ne montre de forme verte.",
        "Žádný z obou obrázků neukazuje zelený tvar.",
        "两张图片中都没有绿色的图形。",
        "どちらの画像にも緑の図形はありません。",
    ),
    (
        Statement("only left", CROSS),
        "Only the left picture shows a cross.",
        "Nur das linke Bild zeigt ein Kreuz.",
        "Seule l'image de gauche montre une croix.",
        "Jen levý obrázek ukazuje kříž.",
        "只有左边的图片中有十字形。",
        "左の画像だけに十字があります。",
    ),
    (
        Statement("only right", ORANGE_CIRCLE),
        "Only the right picture shows an orange circle.",
        "Nur das rechte Bild zeigt einen orangefarbenen Kreis.",
        "Seule l'image de droite montre un cercle orange.",
        "Jen pravý obrázek ukazuje oranžový kruh.",
        "只有右边的图片中有橙色的圆形。",
        "右の画像だけにオレンジ色の丸があります。",
    ),
]
