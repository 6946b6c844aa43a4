"""The small exported model and the pre-trained towers that the tests of conversion share."""

import gzip
import json

import pytest

from rc3_jax.data.tokenizer import train_tokenizer
from tests.convert.exported import Exported, export_tiny, scene_captions, tiny_settings
from tests.vision_reference import randomise, require


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Exported:
    """Read-only: tests that change a folder copy it."""
    folder = tmp_path_factory.mktemp("export")
    return export_tiny(folder, tiny_settings(dropout=0.1), licence="apache-2.0")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Folders of an XLM-R with a vocabulary of six languages, of a ViT, and a corpus; read-only."""
    torch, transformers = require("torch"), require("transformers")
    folder, captions = tmp_path_factory.mktemp("checkpoints"), scene_captions("train", 60)
    tokenizer = train_tokenizer([text for texts in captions.values() for text in texts], 500, 64)
    sizes = dict(num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, hidden_size=16)
    sizes["attn_implementation"] = "eager"
    # As real checkpoints, with more rows than pieces.
    config = transformers.XLMRobertaConfig(
        vocab_size=tokenizer.vocab_size + 3,
        max_position_embeddings=66,
        layer_norm_eps=1e-5,
        **sizes,
    )
    text = randomise(transformers.XLMRobertaForMaskedLM(config), torch, 0.2)
    text.save_pretrained(folder / "text")
    (folder / "text" / "tokenizer.json").write_text(tokenizer.to_json())
    vit = transformers.ViTConfig(image_size=32, patch_size=8, **sizes)
    randomise(transformers.ViTModel(vit), torch, 0.2).save_pretrained(folder / "patch")
    normalisation = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (folder / "patch" / "preprocessor_config.json").write_text(json.dumps(normalisation))
    with gzip.open(folder / "captions.jsonl.gz", "wt") as file:
        for i in range(60):
            row = {code: [texts[i]] for code, texts in captions.items()}
            file.write(json.dumps({"image": f"{i}.png", "captions": row}) + "\n")
    return folder
