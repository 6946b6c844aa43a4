"""Vocabularies in exported folders: `AutoTokenizer` gives the ids that the run gave."""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import shutil

import huggingface_hub
import numpy as np
import pytest
import tokenizers
from tokenizers import processors

from rc3_jax.convert.output import write_tokenizer
from rc3_jax.convert.torch_export import from_torch, to_torch
from rc3_jax.convert.tower_files import to_hf
from rc3_jax.data import tokenizer as tokenizer_module
from rc3_jax.data.text import usable_text
from rc3_jax.data.tokenizer import from_json, load_tokenizer, train_tokenizer
from rc3_jax.settings import ConfigError
from rc3_jax.training.load import load_model
from tests.convert.exported import MAX_LENGTH, from_sentencepiece, tiny_folder
from tests.vision_reference import require

transformers = require("transformers")

ODD = [
    "ﬁre dog, cat",
    "ｆｕｌｌ　ｗｉｄｔｈ 猫が二匹います。",
    "e\u0301te\u0301 \u200b zero\u00a0width",
    " a <mask>  b<mask>.",
    "</s> a <unk> <pad>",
    "très long " * 60,
]


def real_texts(folder, count: int) -> dict[str, list[str]]:
    """language → captions and sentences, as the readers take them in."""
    texts: dict[str, list[str]] = {}
    with gzip.open(folder / "flickr8k" / "captions.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in itertools.islice(file, count):
            row = json.loads(line)
            for code, caption in row["translations"].items():
                texts.setdefault(code, []).append(caption)
            for code, captions in row["captions"].items():
                texts.setdefault(code, []).extend(captions)
    for path in sorted((folder / "iglue" / "xFlickrCO").glob("*/train_100.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines()[:count]:
            texts.setdefault(path.parent.name, []).extend(json.loads(line)["sentences"])
    for path in sorted((folder / "parallel" / "tatoeba").glob("*.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = [line for line in itertools.islice(file, count) if line.strip()]
        texts.setdefault(path.name, []).extend(lines)
    return {code: [usable_text(text) for text in several] for code, several in texts.items()}


@pytest.fixture(scope="module", params=["own", "xlm-r"])
def run(request, shared_data, tmp_path_factory):
    """The folder of a tiny run with a vocabulary of real texts, its own or one like XLM-R's."""
    folder = tmp_path_factory.mktemp("run")
    texts = list(itertools.chain(*real_texts(shared_data, 40).values()))
    if request.param == "own":
        tokenizer = train_tokenizer(texts, 4000, MAX_LENGTH)
    else:
        tokenizer = from_sentencepiece(texts, 4000, folder)
    tiny_folder(folder / "run", tokenizer=tokenizer)
    return folder / "run"


def to_text_tower(source, target):
    to_hf(source, target, part="text")


@pytest.mark.parametrize("export", [to_text_tower, to_torch])
def test_real_captions_get_the_ids_of_the_run(run, shared_data, tmp_path, export):
    ours = load_tokenizer(str(run), MAX_LENGTH)
    export(run, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert (theirs.mask_token_id, theirs.pad_token_id) == (ours.vocab_size - 1, 1)
    assert (theirs.cls_token_id, theirs.sep_token_id) == (0, 2)
    assert theirs.model_max_length == MAX_LENGTH
    texts = real_texts(shared_data, 120) | {"odd": ODD}
    assert {"zh", "ja", "cs", "de", "fr", "ar"} <= texts.keys() and len(texts) > 30
    for language, several in texts.items():
        ids = theirs(several, padding="max_length", truncation=True)["input_ids"]
        different = np.any(np.array(ids) != ours.encode(several), axis=1)
        assert not different.any(), (language, several[int(different.argmax())])


def test_masked_words_are_filled_in(run, tmp_path):
    require("torch")
    to_text_tower(run, tmp_path / "out")
    pipeline = transformers.pipeline("fill-mask", model=str(tmp_path / "out"))
    assert len(pipeline("a red <mask> on the table", top_k=3)) == 3


def test_a_vocabulary_of_other_weights_is_refused(exported, tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer.json has .* 7 rows"):
        write_tokenizer(tmp_path, exported.run / "tokenizer.json", 7, MAX_LENGTH)


def test_a_vocabulary_in_the_cache_keeps_its_rules(exported, tmp_path, monkeypatch):
    """A name of the Hub is read as its folder would be, from `tokenizer.json`."""
    snapshot = tmp_path / "models--someone--mine" / "snapshots" / ("0" * 40)
    shutil.copytree(exported.folder, snapshot)
    (tmp_path / "models--someone--mine" / "refs").mkdir()
    (tmp_path / "models--someone--mine" / "refs" / "main").write_text("0" * 40)
    find = functools.partial(huggingface_hub.try_to_load_from_cache, cache_dir=tmp_path)
    monkeypatch.setattr(tokenizer_module, "try_to_load_from_cache", find)
    found = load_tokenizer("someone/mine", MAX_LENGTH)
    assert found.to_json() == load_tokenizer(str(exported.run), MAX_LENGTH).to_json()


UNFRAMED = {
    "none": None,
    "start": processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
    "end": processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)]),
    "twice": processors.TemplateProcessing(
        single="<s> <s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    ),
    "language": processors.TemplateProcessing(
        single="<s> $A </s> <unk>", special_tokens=[("<s>", 0), ("</s>", 2), ("<unk>", 3)]
    ),
}


@pytest.mark.parametrize("processor", UNFRAMED.values(), ids=UNFRAMED)
def test_a_vocabulary_that_does_not_frame_texts_is_refused(exported, tmp_path, processor):
    layout = json.loads((exported.run / "tokenizer.json").read_text())
    backend = tokenizers.Tokenizer.from_str(json.dumps(layout | {"post_processor": None}))
    if processor is not None:
        backend.post_processor = processor
    text = backend.to_str()
    run = shutil.copytree(exported.run, tmp_path / "run")
    (run / "tokenizer.json").write_text(text)
    exported_copy = shutil.copytree(exported.folder, tmp_path / "exported")
    (exported_copy / "tokenizer.json").write_text(text)
    for load in (
        lambda: load_tokenizer(str(run), MAX_LENGTH),
        lambda: from_json(text, MAX_LENGTH),
        lambda: to_torch(run, tmp_path / "out"),
        lambda: to_text_tower(run, tmp_path / "out"),
        lambda: load_model(run),
        lambda: from_torch(exported_copy, tmp_path / "out"),
        lambda: transformers.AutoProcessor.from_pretrained(exported_copy, trust_remote_code=True),
    ):
        with pytest.raises(ValueError, match="post_processor"):
            load()
    assert not (tmp_path / "out").exists()
    # What the message advises.
    framed = json.loads((exported.run / "tokenizer.json").read_text())["post_processor"]
    repaired = json.loads(text) | {"post_processor": framed}
    assert from_json(json.dumps(repaired), MAX_LENGTH).encode(["a star"])[0, 0] == 0
