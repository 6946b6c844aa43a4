"""The languages of generated scenes. A new one is a file here, and its code in the line below."""

import importlib

from rc3_jax.scenes.languages.base import Language

_CODES = ("en", "de", "fr", "cs", "zh", "ja")
LANGUAGES: dict[str, Language] = {
    code: importlib.import_module(f"{__name__}.{code}").LANGUAGE for code in _CODES
}
