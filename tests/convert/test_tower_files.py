"""Pre-trained towers: converted with their vocabulary cut, started from, used to tell relevance."""

from __future__ import annotations

import json
import re
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from rc3_jax.convert.torch_export import to_torch
from rc3_jax.convert.tower_files import from_hf, to_hf
from rc3_jax.data.record import DataError, Skips
from rc3_jax.data.stream import make_batches
from rc3_jax.data.tokenizer import PAD_ID, load_tokenizer
from rc3_jax.models.cclm import CCLMModelSettings
from rc3_jax.models.text import TextSettings
from rc3_jax.models.vit import ViTSettings
from rc3_jax.parallel.mesh import to_global
from rc3_jax.settings import ConfigError
from rc3_jax.stored_config import save_config
from rc3_jax.systems import relevance_encoder, system_of
from rc3_jax.training.checkpoint import read_params, save_params
from rc3_jax.training.run import prepare_run
from rc3_jax.training.warm_start import check_vocabulary, load_warm_start
from tests.convert.exported import scene_captions
from tests.tiny import tiny_cclm, tiny_config
from tests.vision_reference import require

torch = require("torch")
transformers = require("transformers")

KEPT = ("en", "de", "zh")
CAPTIONS = scene_captions("train", 60)


@pytest.fixture(scope="module")
def converted(checkpoints, tmp_path_factory):
    """Both towers, the vocabulary cut to three languages."""
    target = tmp_path_factory.mktemp("towers") / "converted"
    from_hf(
        target,
        text=str(checkpoints / "text"),
        patch=str(checkpoints / "patch"),
        languages=KEPT,
        corpus=[checkpoints / "captions.jsonl.gz"],
    )
    return target


def states_of(model, ids):
    ids = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        return model(ids, attention_mask=(ids != PAD_ID).long()).last_hidden_state.numpy()


def test_a_cut_vocabulary_reads_the_kept_languages_the_same(checkpoints, converted):
    old = load_tokenizer(str(checkpoints / "text"), 64)
    new = load_tokenizer(str(converted), 64)
    assert new.vocab_size < old.vocab_size
    pieces = [json.loads(x.to_json())["model"]["vocab"] for x in (old, new)]
    numbers = {piece: i for i, (piece, _) in enumerate(pieces[0])} | {"<mask>": old.vocab_size - 1}
    kept = np.array([numbers[piece] for piece, _ in pieces[1]] + [numbers["<mask>"]])
    params = read_params(converted)
    model = transformers.XLMRobertaForMaskedLM.from_pretrained(checkpoints / "text")
    words = model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(params["text/word_embedding/embedding"], words[kept])
    np.testing.assert_array_equal(params["word_bias"], model.lm_head.bias.detach().numpy()[kept])
    run = prepare_run(start_from(converted))
    for code in KEPT:
        ids, old_ids = new.encode(CAPTIONS[code]), old.encode(CAPTIONS[code])
        np.testing.assert_array_equal(kept[ids], old_ids)
        ours = run.model.text.apply({"params": unflatten_dict(params, sep="/")["text"]}, ids[:8])
        known = (ids[:8] != PAD_ID)[..., None]
        assert np.max(np.abs((ours - states_of(model.roberta, old_ids[:8])) * known)) < 1e-5


def start_from(folder):
    config = tiny_config()
    config.init = str(folder)
    config.model.text = TextSettings().config_dict()  # what is left at its default is derived
    config.model.patch = ViTSettings().config_dict()
    return config


def test_a_run_starts_from_towers_and_draws_the_rest(converted, tmp_path):
    config = start_from(converted)
    run = prepare_run(config)
    assert run.config.model.image_mean == (0.4, 0.5, 0.6)
    given = read_params(converted)
    drawn = flatten_dict(jax.jit(run.initial_state)().params, sep="/")
    params = run.create_state().params
    state = flatten_dict(params, sep="/")
    assert {path.split("/")[0] for path in given} == {
        "text",
        "patch",
        "masked_lm_head",
        "word_bias",
    }
    for path, value in state.items():
        np.testing.assert_array_equal(value, given.get(path, drawn[path]))
    save_params(tmp_path, params)
    save_config(run.config, tmp_path / "config.json")
    (tmp_path / "tokenizer.json").write_text(run.tokenizer.to_json())
    to_torch(tmp_path, tmp_path / "out")  # what towers alone are advised


def test_a_run_of_another_shape_is_told_what_differs(converted, checkpoints, tmp_path):
    config = start_from(converted)
    config.model.text.heads = config.model.patch.heads = 4
    with pytest.raises(ConfigError, match="model.text.heads is 4, there 2"):
        prepare_run(config).create_state()
    config = tiny_cclm()
    config.init = str(converted)
    with pytest.raises(ConfigError, match="holds a model of rc3"):
        prepare_run(config)
    config = start_from(converted)
    config.data.tokenizer.path = str(checkpoints / "text")
    with pytest.raises(ConfigError, match="mis-shaped: text/word_embedding/embedding"):
        prepare_run(config).create_state()


def test_a_sentence_encoder_tells_the_relevance_and_stays(checkpoints, tmp_path):
    corpus = [checkpoints / "captions.jsonl.gz"]
    from_hf(tmp_path / "encoder", text=str(checkpoints / "text"), corpus=corpus)
    config = tiny_config()
    config.data.tokenizer.path = str(tmp_path / "encoder" / "tokenizer.json")
    config.objective.update(relevance="encoder", relevance_encoder=str(tmp_path / "encoder"))
    config.objective.update(regularizer=("mse",), ramp=0.0)
    weights = dict.fromkeys(config.objective.weights, 0.0) | {"xvtcl_weak": 1.0}
    config.objective.weights.update(weights)
    run = prepare_run(config)
    state = run.create_state()
    rows = make_batches(run.corpus.pools, run.tokenizer, run.config, Skips())[0]
    batch = to_global(rows, run.mesh)
    encoder = transformers.XLMRobertaModel.from_pretrained(checkpoints / "text")
    old = load_tokenizer(str(checkpoints / "text"), 64)
    pieces = [json.loads(x.to_json())["model"]["vocab"] for x in (old, run.tokenizer)]
    number = {piece: i for i, (piece, _) in enumerate(pieces[0])}
    kept = np.array([number[piece] for piece, _ in pieces[1]] + [old.vocab_size - 1])

    def vectors(name):
        ids = kept[rows["weak"][name]]
        known = (ids != PAD_ID)[..., None]
        mean = (states_of(encoder, ids) * known).sum(1) / known.sum(1)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    relevance = np.sum(vectors("ids_a") * vectors("ids_b"), axis=1)
    loss = system_of(config).loss(run.model, run.config, run.mesh)
    changed = jax.tree.map(lambda x: x, rows)
    changed["weak"]["ids_b"] = changed["weak"]["ids_a"]  # whose relevance is 1
    terms = [
        jax.jit(loss)(state.params, state.ema, state.step, to_global(b, run.mesh))[1]["mse"]
        for b in (rows, changed)
    ]
    before = jax.tree.map(np.array, state.ema)
    state, metrics = run.train_step()(state, batch)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, state.ema))
    assert float(metrics["mse"]) == pytest.approx(float(terms[0]), rel=1e-5)
    assert np.all(relevance < 0.9999)
    assert float(terms[1]) < float(terms[0])


def test_an_encoder_of_another_vocabulary_is_refused(checkpoints, converted, tmp_path):
    def prepared(folder, **objective):
        config = tiny_config()
        config.data.tokenizer.path = str(checkpoints / "text")
        config.objective.update(
            {"relevance": "encoder", "relevance_encoder": str(folder), **objective}
        )
        return prepare_run(config)

    with pytest.raises(ConfigError, match="has a vocabulary of .* pieces and the run one of"):
        prepared(converted).create_state()
    with pytest.raises(ConfigError, match="cannot be read as that of a sentence encoder"):
        prepared(tmp_path).create_state()
    with pytest.raises(ConfigError, match="nothing else has a use for it"):
        prepared(converted, relevance="own")
    from_hf(tmp_path / "short", text=str(checkpoints / "text"))
    settings = json.loads((tmp_path / "short" / "config.json").read_text())
    settings["model"]["text"]["max_positions"] = 20
    (tmp_path / "short" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="reads 18 tokens at most, .*; change it or the encoder"):
        prepared(tmp_path / "short").create_state()
    config = tiny_config()
    config.data.max_length = 18
    config.objective.relevance_encoder = str(tmp_path / "short")
    relevance_encoder(config, settings["vocab_size"], None)
    from_hf(tmp_path / "whole", text=str(checkpoints / "text"))
    prepared(tmp_path / "whole").create_state()
    pieces = json.loads((tmp_path / "whole" / "tokenizer.json").read_text())
    words = pieces["model"]["vocab"]
    words[10], words[11] = words[11], words[10]
    (tmp_path / "whole" / "tokenizer.json").write_text(json.dumps(pieces))
    with pytest.raises(ConfigError, match="is not the vocabulary of the run"):
        prepared(tmp_path / "whole").create_state()


def test_a_vocabulary_that_is_not_there_is_put_there_or_named(checkpoints, tmp_path, capsys):
    source, vocabulary = tmp_path / "text", checkpoints / "text" / "tokenizer.json"
    model = transformers.XLMRobertaForMaskedLM.from_pretrained(checkpoints / "text")
    model.resize_token_embeddings(load_tokenizer(str(vocabulary), 64).vocab_size)
    model.save_pretrained(source)
    from_hf(tmp_path / "none", text=str(source))
    advised = re.search(r"put its tokenizer.json or .* with (\S+)", capsys.readouterr().out)[1]
    config = tiny_config()
    config.init, config.model.text = str(tmp_path / "none"), TextSettings().config_dict()
    config.update_from_flattened_dict({advised: str(vocabulary)})
    run = prepare_run(config)
    load_warm_start(run.config, run.abstract_state.params)
    with pytest.raises(ConfigError, match="copy there the vocabulary of the weights"):
        check_vocabulary(tmp_path / "none", run.tokenizer)
    for folder in (source, tmp_path / "none"):
        shutil.copy(vocabulary, folder)
    from_hf(tmp_path / "with", text=str(source))
    for name in ("none", "with"):
        check_vocabulary(tmp_path / name, run.tokenizer)


@pytest.mark.parametrize("part", ["text", "patch"])
def test_a_tower_returns_to_hugging_face(checkpoints, converted, tmp_path, part):
    to_hf(converted, tmp_path / part, part=part)
    kind = {"text": transformers.XLMRobertaForMaskedLM, "patch": transformers.ViTModel}[part]
    back, report = kind.from_pretrained(tmp_path / part, output_loading_info=True)
    assert not report["unexpected_keys"]
    first = kind.from_pretrained(checkpoints / part).state_dict()
    for name, value in back.state_dict().items():
        if "word_embeddings" not in name and "lm_head" not in name and "pooler" not in name:
            assert torch.equal(value, first[name][: len(value)]), name  # of types the first
    if part == "patch":
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / part, use_fast=False)
        assert list(processor.image_mean) == [0.4, 0.5, 0.6] and processor.size["height"] == 32


def test_without_a_known_normalisation_none_is_written(checkpoints, tmp_path):
    shutil.copytree(checkpoints / "patch", tmp_path / "patch")
    (tmp_path / "patch" / "preprocessor_config.json").unlink()
    from_hf(tmp_path / "one", patch=str(tmp_path / "patch"))
    to_hf(tmp_path / "one", tmp_path / "back", part="patch")
    names = sorted(path.name for path in (tmp_path / "back").iterdir())
    assert names == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("model", [{"text": {"width": "wide"}}, {"text": 3}, {"vision": {}}, []])
def test_settings_that_no_run_can_start_from(tmp_path, model):
    (tmp_path / "config.json").write_text(json.dumps({"system": "rc3", "model": model}))
    with pytest.raises(ConfigError, match="model"):
        prepare_run(start_from(tmp_path))


def test_layers_that_are_picked(checkpoints, tmp_path):
    from_hf(tmp_path / "one", text=str(checkpoints / "text"), text_layers=[1])
    whole = transformers.XLMRobertaModel.from_pretrained(checkpoints / "text")
    kernel = "text/encoder/layers/mlp_in/kernel"
    expected = whole.encoder.layer[1].intermediate.dense.weight.detach().numpy().T
    np.testing.assert_array_equal(read_params(tmp_path / "one", [kernel])[kernel], expected[None])


@pytest.mark.parametrize("system", ["cclm", "rc3"])
def test_fusion_starts_from_text_layers(checkpoints, tmp_path, system):
    """Text layers, then fusion layers without a second view, are XLM-R of the chosen layers."""
    text, patch = str(checkpoints / "text"), str(checkpoints / "patch")
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        layers = dict(text_layers=[1], fusion_layers=[0], seed=seed)
        from_hf(tmp_path / name, text=text, patch=patch, system=system, **layers)
    config = start_from(tmp_path / "one")
    if system == "cclm":
        config = tiny_cclm()
        config.init, config.model = str(tmp_path / "one"), CCLMModelSettings().config_dict()
        config.optimizer.no_decay = (".*bias",)  # a ViT has no relative positions
        config.model.dtype = "float32"
    run = prepare_run(config)
    assert (run.config.model.text.depth, run.config.model.fusion.depth) == (1, 1)
    assert run.config.model.text.position_offset == 2
    state = run.create_state().params
    ids = load_tokenizer(text, 64).encode(CAPTIONS["de"][:8])

    def read(model):
        states = model.text(ids, mask=ids != PAD_ID)
        return model.fusion(states, ids != PAD_ID)

    ours = run.model.apply({"params": state}, method=read)
    whole = transformers.XLMRobertaModel.from_pretrained(text)
    whole.encoder.layer = torch.nn.ModuleList([whole.encoder.layer[i] for i in (1, 0)])
    known = (ids != PAD_ID)[..., None]
    assert np.max(np.abs((ours - states_of(whole, ids)) * known)) < 1e-5
    one, again, other = (read_params(tmp_path / x) for x in ("one", "again", "other"))
    kernel = "fusion/layers/cross_attention/query/kernel"
    assert one[kernel].std() == pytest.approx((3 * 16) ** -0.5, rel=0.2)
    np.testing.assert_array_equal(one[kernel], again[kernel])
    assert np.all(one[kernel] != other[kernel])
    assert not one["fusion/layers/cross_attention/query/bias"].any()


def test_what_cannot_be_converted(checkpoints, tmp_path):
    text, target = str(checkpoints / "text"), tmp_path / "out"
    corpus = [checkpoints / "captions.jsonl.gz"]
    for given, error, reason in (
        ({"patch": text, "fusion_layers": [1]}, ConfigError, "--fusion_layers"),
        ({"text": text, "fusion_layers": [2]}, ConfigError, "fusion_layers"),
        ({"patch": text}, ConfigError, "xlm-roberta"),
        ({"text": str(tmp_path / "none")}, ConfigError, "no such file or folder"),
        ({"text": text, "corpus": corpus, "languages": ["sv"]}, DataError, "sv"),
        ({"text": text, "corpus": [tmp_path / "x.jsonl"]}, DataError, "x.jsonl"),
    ):
        with pytest.raises(error, match=reason):
            from_hf(target, **given)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="cannot be read as settings of a model"):
        to_hf(tmp_path, target, part="text")


def test_what_cannot_be_converted_is_mended_as_advised(checkpoints, tmp_path):
    text, corpus = str(checkpoints / "text"), [checkpoints / "captions.jsonl.gz"]
    bpe = shutil.copytree(text, tmp_path / "bpe") / "tokenizer.json"
    layout = json.loads(bpe.read_text())
    pieces = {piece: n for n, (piece, _) in enumerate(layout["model"]["vocab"])}
    layout["model"] = dict(type="BPE", vocab=pieces, merges=[], unk_token="<unk>")
    bpe.write_text(json.dumps(layout))
    whole, wide = dict(text=str(bpe.parent)), dict(text=text, image_size=64)
    for wrong, advice, mended in (
        (dict(languages=KEPT, text=text), "name its files with --corpus", dict(corpus=corpus)),
        (wide, "--image_size needs --patch", dict(patch=str(checkpoints / "patch"))),
        ({}, "name a checkpoint with --text, --patch, or both", dict(text=text)),
        (whole | dict(corpus=corpus), "leave out --corpus and --languages", dict(corpus=())),
    ):
        with pytest.raises((ConfigError, DataError), match=advice):
            from_hf(tmp_path / "out", **wrong, overwrite=True)
        from_hf(tmp_path / "out", **wrong | mended, overwrite=True)


def test_towers_alone_are_no_model_to_export(converted, tmp_path):
    alone = "holds masked_lm_head, patch, text, word_bias alone; train a model from it first"
    with pytest.raises(ConfigError, match=alone):
        to_torch(converted, tmp_path / "out")
