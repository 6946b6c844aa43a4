"""Pre-trained towers of Hugging Face to a folder that runs start from, and towers of ours back."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save_file

from rc3_jax.convert.corpus_texts import corpus_texts
from rc3_jax.convert.huggingface import PARTS, read_tower, tower_files
from rc3_jax.convert.huggingface_source import locate, sentence_encoder
from rc3_jax.convert.output import (
    OWN_FILES,
    TOKENIZER_SETTINGS,
    add_source_to_errors,
    atomic_write,
    check_target,
    model_settings,
    say,
    size_text,
    write_json,
    write_settings,
    write_tokenizer,
)
from rc3_jax.convert.torch_file import WEIGHTS, check_finite
from rc3_jax.convert.vocabulary import cut_rows, cut_vocabulary, describe
from rc3_jax.data.record import DataError, Skips
from rc3_jax.data.tokenizer import FILE_NAME as TOKENIZER
from rc3_jax.data.tokenizer import Tokenizer, load_tokenizer
from rc3_jax.models.base import FusionSettings
from rc3_jax.models.text import TextSettings
from rc3_jax.models.towers import visual_settings
from rc3_jax.settings import ConfigError, check_choice
from rc3_jax.stored_config import CONFIG_FILE
from rc3_jax.training.checkpoint import read_params, save_params, stored_shapes
from rc3_jax.training.state import count_parameters

VISUAL = {"rc3": "patch", "cclm": "vision"}
"""What each system calls its visual tower."""
VOCABULARIES = (TOKENIZER, "sentencepiece.bpe.model")
PREPROCESSOR = "preprocessor_config.json"
NORMALISATION = ("image_mean", "image_std")


def from_hf(
    target: pathlib.Path,
    *,
    text: str | None = None,
    patch: str | None = None,
    system: str = "rc3",
    image_size: int | None = None,
    text_layers: Sequence[int] | None = None,
    fusion_layers: Sequence[int] | None = None,
    seed: int = 0,
    languages: Sequence[str] = (),
    corpus: Sequence[pathlib.Path] = (),
    min_count: int = 1,
    allow_pickle: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes a folder for `config.init` from pre-trained towers; other parts start at random.

    With a text tower alone it may also be the `objective.relevance_encoder`.

    Args:
      text: folder or Hub name of an XLM-RoBERTa checkpoint.
      patch: folder or Hub name of a checkpoint of one of the visual towers.
      image_size: pixels a side to resize the positions for; the checkpoint's by default.
      text_layers: numbers of the layers to take; all by default.
      fusion_layers: numbers of the text layers that the fusion encoder starts from; with none, it
        starts at random. Its cross-attention, which no text tower has, is drawn with `seed`.
      corpus: caption files and sentences to cut the vocabulary to; empty leaves it whole.
      languages: those of the corpus that count; empty for all.
      min_count: how often a piece must occur to be kept.
      allow_pickle: reads weights that are stored as pickles, without running code in them.

    Raises:
      ConfigError, DataError, TensorFileError: with the reason; then nothing was written.
    """
    check_choice("system", system, VISUAL)
    if text is None and patch is None:
        raise ConfigError("name a checkpoint with --text, --patch, or both")
    if (languages or min_count != 1) and not corpus:
        raise ConfigError("languages are cut to what a corpus holds; name its files with --corpus")
    if text is None and (corpus or text_layers or fusion_layers) or patch is None and image_size:
        raise ConfigError(
            "--corpus, --text_layers and --fusion_layers need --text, and --image_size needs --patch"
        )
    check_target(target, overwrite, OWN_FILES)
    params: dict[str, Any] = {}
    settings: dict[str, Any] = {"system": system, "model": {}, "source": {}}
    tokenizer = None
    if text is not None:
        tower = read_tower(
            text,
            part="text",
            layers=text_layers,
            fusion_layers=fusion_layers,
            seed=seed,
            allow_pickle=allow_pickle,
        )
        _say(text, tower.params, tower.notes)
        params |= {"text": tower.params, **tower.heads}
        tokenizer = _tokenizer(text, len(_words(params)))
        if tokenizer is not None:  # rows beyond its pieces fill a table up to a round number
            pieces = tokenizer.vocab_size
            _change_rows(params, lambda table: table[:pieces])
            if corpus:
                skips = Skips()
                texts = corpus_texts(corpus, languages or None, skips)
                cut = cut_vocabulary(tokenizer, texts, min_count)
                for reason in list(skips.reasons.values())[:5]:
                    say(f"one of {len(skips.reasons)} lines left out: {reason}")
                say(describe(cut, tower.settings.width))
                _change_rows(params, lambda table: cut_rows(table, cut.kept))
                tokenizer = cut.tokenizer
        elif corpus:
            raise ConfigError(f"{text} has no vocabulary that could be cut")
        settings["model"]["text"] = tower.settings.model_dump()
        if fusion_layers:
            fusion = FusionSettings(depth=len(fusion_layers), epsilon=tower.settings.epsilon)
            settings["model"]["fusion"] = fusion.model_dump()
        settings |= {"vocab_size": len(_words(params)), "pooling": tower.pooling or "mean"}
        settings["source"]["text"] = str(text)
    if patch is not None:
        tower = read_tower(patch, part="patch", image_size=image_size, allow_pickle=allow_pickle)
        _say(patch, tower.params, tower.notes)
        params[VISUAL[system]] = tower.params
        settings["model"] |= tower.normalisation | {"patch": tower.settings.model_dump()}
        settings["source"]["patch"] = str(patch)
    leaves = jax.tree.leaves(params)
    say(f"{', '.join(params)}: {count_parameters(params):,} parameters")
    settings["parts"] = sorted(params)
    with atomic_write(target, sum(leaf.nbytes for leaf in leaves)) as folder:
        folder.mkdir()
        save_params(folder, params)
        write_settings(folder, settings)
        if tokenizer is not None:
            (folder / TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
    say(f"wrote {target}")


def to_hf(
    source: pathlib.Path,
    target: pathlib.Path,
    *,
    part: str,
    step: int | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a tower of a model as a folder that `from_pretrained` of transformers reads.

    Args:
      part: `text` or `patch`.

    Raises:
      ConfigError: with the reason; then nothing was written.
    """
    check_choice("part", part, PARTS)
    check_target(
        target, overwrite, (CONFIG_FILE, WEIGHTS[0], TOKENIZER, TOKENIZER_SETTINGS, PREPROCESSOR)
    )
    model = model_settings(source, "rc3")
    heads = ("masked_lm_head", "word_bias") if part == "text" else ()
    paths = [path for path in stored_shapes(source, step) if path.split("/")[0] in (part, *heads)]
    if not any(path.startswith(f"{part}/") for path in paths):
        raise ConfigError(f"{source} holds no {part} tower")
    params = unflatten_dict(read_params(source, paths, step), sep="/")
    tower = params.pop(part)
    with add_source_to_errors(source):
        text = TextSettings.parse(model.text, "model.text") if part == "text" else None
        tensors, config = tower_files(text or visual_settings(model.patch), tower, params)
        check_finite(source, tensors)
    size = sum(tensor.nbytes for tensor in tensors.values())
    say(f"{source}: {config['architectures'][0]}, {len(tensors)} tensors, {size_text(size)}")
    with atomic_write(target, size) as folder:
        folder.mkdir()
        save_file(tensors, folder / WEIGHTS[0], metadata={"format": "pt"})
        write_json(folder / CONFIG_FILE, config)
        if text is not None and (source / TOKENIZER).is_file():
            write_tokenizer(folder, source / TOKENIZER, config["vocab_size"], text.room)
        if part == "patch" and all(name in model for name in NORMALISATION):
            write_json(folder / PREPROCESSOR, _preprocessor(model))
    say(f"wrote {target}")


def _preprocessor(model: Any) -> dict[str, Any]:
    """How images are prepared: squashed by bicubic interpolation, and normalised."""
    size = model.patch.image_size
    return {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": size, "width": size},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        **{name: list(model[name]) for name in NORMALISATION},
    }


def _say(source: str, params: dict[str, Any], notes: list[str]) -> None:
    count = count_parameters(params)
    for line in (f"{source}: {count:,} parameters", *(f"note: {note}" for note in notes)):
        say(line)


def _words(params: dict[str, Any]) -> np.ndarray:
    return params["text"]["word_embedding"]["embedding"]


def _change_rows(params: dict[str, Any], change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Changes everything that has a row for each piece of the vocabulary."""
    params["text"]["word_embedding"] = {"embedding": change(_words(params))}
    if "word_bias" in params:
        params["word_bias"] = change(params["word_bias"])


def _tokenizer(source: str, rows: int) -> Tokenizer | None:
    """The checkpoint's own; None where it has none."""
    top = locate(source)
    places = (top, sentence_encoder(top)[0])
    folder = next((p for p in places if any((p / n).is_file() for n in VOCABULARIES)), None)
    if folder is None:
        say(
            f"note: {source} has no vocabulary; put its {' or '.join(VOCABULARIES)} there, or name "
            f"one of {rows} pieces with data.tokenizer.path"
        )
        return None
    tokenizer = load_tokenizer(str(folder), max_length=512)
    if tokenizer.vocab_size > rows:
        raise DataError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} pieces and the word embeddings "
            f"have {rows} rows; they are not of one checkpoint"
        )
    if tokenizer.vocab_size < rows:
        say(f"note: {rows - tokenizer.vocab_size} rows of the word embeddings are of no piece")
    return tokenizer
