"""The languages of generated scenes. A new one is a file here and a line below."""

from rc3_jax.scenes.languages import cs, de, en, fr, ja, zh

LANGUAGES = {
    "en": en.ENGLISH,
    "de": de.GERMAN,
    "fr": fr.FRENCH,
    "cs": cs.CZECH,
    "zh": zh.CHINESE,
    "ja": ja.JAPANESE,
}
