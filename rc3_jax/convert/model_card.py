"""The README of an exported model: what it is, what it was trained on, how it scored, its use."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from rc3_jax.settings import ConfigError
from rc3_jax.stored_config import stored_max_words

CARD = "README.md"
NOT_STATED = "not stated"
TAGS = ["rc3", "feature-extraction", "vision-language", "multilingual", "image-text-retrieval"]
TEXT = """
# {name}

An RC³ model, trained with RC3-JAX, for PyTorch: images as patches and regions, texts in many
languages, and vectors of both that can be compared; a fusion encoder that reads a text over an image,
tells whether they belong together and fills masks.

| | |
|---|---|
{facts}

## Usage

```python
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(".", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(".", trust_remote_code=True)
inputs = processor(text=["ein Hund", "a cat"], images=[Image.open("photo.jpg")] * 2)
outputs = model(**inputs)
print(outputs.logits_per_image)  # images by rows, texts by columns, divided by the temperature
print(outputs.matching_logits.softmax(-1)[:, 1])  # chance that a text belongs to its image
```

Any number of texts and images can be compared; as many texts as images are matched pair by pair too.
`model.get_text_features` and `get_image_features` give the vectors alone, `encode_text`,
`encode_image`, `encode_pair`, `match` and `fill_mask` the parts; see `modeling_rc3.py`. Regions of a
detector go to the processor as `regions`.

```python
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model=".", trust_remote_code=True)
print(classify("photo.jpg", candidate_labels=["a dog", "a cat"], hypothesis_template="{{}}"))
embed = pipeline("feature-extraction", model=".", trust_remote_code=True)
print(len(embed("ein Hund")[0]))  # the numbers of a text's vector
```

{cleaning}## Data

{data}

## Scores

{scores}

## Limits

Trained on the data above and measured on no other. Captions carry the biases of those who wrote
them; check the model on your own languages and images before it decides anything.

## References

Zhou et al., *RC³: Regularized Contrastive Cross-lingual Cross-modal Pre-training*, Findings of ACL
2023, arXiv 2305.07927, describes the method. These weights are not those of its authors.
"""


CLEANING = """The model was trained on texts in lower case without punctuation. The processor writes
them so; the pipelines take texts as they are, so give them in that form.

"""


def model_card(
    source: pathlib.Path,
    stored: Mapping[str, Any],
    *,
    count: int,
    dtype: str,
    step: int | None,
    licence: str | None,
) -> str:
    """The card's text.

    Args:
      source: the run's folder, or one of converted parameters; its `scores.json` is shown if it
        measured the exported parameters.
      stored: the folder's `config.json`.
      count: number of parameters.

    Raises:
      ConfigError: if `scores.json` cannot be read.
    """
    measured = _measured(source, step)
    facts = {
        "parameters": f"{count:,}",
        "type of the weights": dtype,
        **_sizes(stored["model"]),
        "training": _training(stored, step),
        "licence of the weights": licence or NOT_STATED,
        "licence of the training data": NOT_STATED,
    }
    data = ModelCardData(
        license=licence,
        language=_languages(stored, measured) or None,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=TAGS,
    )
    text = TEXT.format(
        name=stored.get("name", "rc3"),
        facts="\n".join(f"| {name} | {fact} |" for name, fact in facts.items()),
        cleaning="" if stored_max_words(stored) is None else CLEANING,
        data=_data(stored),
        scores=_scores(measured),
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{text}"))


def _sizes(model: Mapping[str, Any]) -> dict[str, str]:
    text, patch, roi = model["text"], model["patch"], model["roi"]
    regions = f"{roi['regions']} regions with features of size {roi['feature_size']}"
    return {
        "text tower": f"width {text['width']}, depth {text['depth']}, {text['heads']} heads, "
        f"{text['max_positions'] - 2} tokens at most",
        "patch tower": f"{patch['type']}, {patch['image_size']} x {patch['image_size']} pixels in "
        f"patches of {patch['patch']}, width {patch['width']}, "
        f"depth {patch.get('depth', patch.get('depths'))}",
        "ROI tower": f"{regions}, depth {roi['depth']}" if roi["regions"] else "none",
        "fusion encoder": f"depth {model['fusion']['depth']}",
    }


def _training(stored: Mapping[str, Any], step: int | None) -> str:
    if "steps" not in stored:
        return NOT_STATED
    steps = stored["steps"] if step is None else step
    return f"{steps:,} steps of {stored['batch_size']:,} rows, seed {stored['seed']}"


def _measured(source: pathlib.Path, step: int | None) -> dict[str, Any]:
    """The content of `scores.json`, if it is about the checkpoint's step."""
    path = source / "scores.json"
    if not path.is_file():
        return {}
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
        return scores if step in (None, scores["step"]) else {}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read as scores of a run: {error!r}") from error


def _languages(stored: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    """Codes of the languages that sources name or scores were measured in."""
    found = {code for mode in measured.get("retrieval", {}).values() for code in mode}
    for source in stored.get("data", {}).get("sources", {}).values():
        for name in ("strict_languages", "weak_languages"):
            found |= set(source.get(name, ()))
        if source.get("type") == "parallel":
            found |= set(source.get("files", ()))
    return sorted(found)


def _data(stored: Mapping[str, Any]) -> str:
    """A line for each source, with bare names of files, since folders may name people."""
    lines = []
    for name, source in stored.get("data", {}).get("sources", {}).items():
        details = [f"{key} {_plain(value)}" for key, value in source.items() if key != "type"]
        lines.append(f"- **{name}** ({source.get('type', '?')}): {', '.join(details)}")
    return "\n".join(lines) or f"The training data are {NOT_STATED}."


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(_plain, value))
    return pathlib.PurePath(value).name if isinstance(value, str) else str(value)


def _scores(measured: Mapping[str, Any]) -> str:
    """Scores on held-out images in percent, by mode and language, and the dependences."""
    lines = []
    titles = {
        "retrieval": "Retrieval among held-out images, {}, recall in percent:",
        "matching": "Matching, and retrieval re-ranked by it, {}, in percent:",
    }
    tables = [(titles[g].format(m), of) for g in titles for m, of in measured.get(g, {}).items()]
    for title, languages in tables:
        names = list(next(iter(languages.values())))
        lines += [title, "", f"| language | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for code, values in languages.items():
            lines.append(f"| {code} | {' | '.join(f'{100 * values[n]:.1f}' for n in names)} |")
        lines.append("")
    lines += [f"- {name}: {value:.3f}" for name, value in measured.get("dependence", {}).items()]
    return "\n".join(lines).strip() or "None were measured."
