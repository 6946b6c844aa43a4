"""Every recorded output of the downstream models, computed by our functions."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from safetensors.numpy import load_file

from rc3_jax.convert.cclm_tasks import from_trunk
from rc3_jax.models.answer_decoder import build_question_answering
from rc3_jax.models.base import View
from rc3_jax.models.classifiers import (
    build_pair_classifier,
    build_two_image_classifier,
    classification_loss,
)
from rc3_jax.objectives.cclm import IMAGE_TEXT
from rc3_jax.objectives.pair_terms import contrast_term, matching_term
from tests.evaluation.ranking import both_ways, matcher, rescore, retrieval_recalls
from tests.parity.downstream_names import from_published, to_published
from tests.parity.pretraining import probe, run_terms
from tests.parity.recordings import Recording, read

Outputs = dict[str, np.ndarray]

METRICS = {
    "txt_r1": "TR@1",
    "txt_r5": "TR@5",
    "txt_r10": "TR@10",
    "txt_r_mean": "TR",
    "img_r1": "IR@1",
    "img_r5": "IR@5",
    "img_r10": "IR@10",
    "img_r_mean": "IR",
    "r_mean": "mean",
}
"""The recorded name of each of our recall numbers."""


@functools.cache
def computed(folder: pathlib.Path) -> Outputs:
    """Recorded name → our value."""
    outputs = _training(folder) | _evaluation(folder)
    outputs |= _classifier(folder) | _two_images(folder) | _answers(folder)
    return {name: np.asarray(value) for name, value in outputs.items()}


@functools.cache
def task_params(folder: pathlib.Path, task: str, own: bool) -> dict:
    """Parameters of a task's model: with its own stored tensors, or as the trunk gives them.

    Class heads are always the stored ones.
    """
    recording = read(folder)
    template = _template(recording, task)
    given = load_stored(folder, task)
    stored = from_published(given, recording.settings.model, task, template)
    return stored if own else from_trunk(recording.params, task, stored)


def load_stored(folder: pathlib.Path, task: str) -> dict[str, np.ndarray]:
    """The tensors of a task's model by its published names, with heads that it does not have."""
    recording = read(folder)
    tensors = {name.replace(".bert.", "."): value for name, value in recording.weights.items()}
    if task == "two_images":
        # The trunk has these names too, but for layers of another number.
        tensors = {k: v for k, v in tensors.items() if k not in recording.config["nlvr_tied"]}
    return tensors | load_own(folder, task)


@functools.cache
def load_own(folder: pathlib.Path, task: str) -> dict[str, np.ndarray]:
    """Those of them that the trunk does not have."""
    file = {"classifier": "xvnli", "two_images": "nlvr", "answers": "vqa"}.get(task)
    return load_file(folder / f"weights_{file}.safetensors") if file else {}


def _model(recording: Recording, task: str) -> nn.Module:
    settings, vocab = recording.settings.model, recording.config["model"]["text"]["vocab_size"]
    heads = recording.config["model"]["heads"]
    if task == "classifier":
        return build_pair_classifier(settings, vocab, heads["xvnli_labels"])
    if task == "two_images":
        return build_two_image_classifier(settings, vocab, heads["nlvr_labels"])
    return build_question_answering(settings, vocab) if task == "answers" else recording.model


def _template(recording: Recording, task: str) -> dict:
    if task == "retrieval":
        return recording.params
    size = recording.settings.model.patch.image_size
    shape = (1, 2, size, size, 3) if task == "two_images" else (1, size, size, 3)
    ids = np.zeros((1, 4), np.int32)
    more = (ids,) if task == "answers" else ()
    init = functools.partial(_model(recording, task).init, jax.random.key(0))
    return jax.eval_shape(init, {"image": np.zeros(shape, np.uint8)}, ids, *more)["params"]


def _compiled(recording: Recording, task: str, function: Callable) -> Callable:
    """`function(model, *arguments)` as one of parameters and arguments."""
    bound = nn.apply(function, _model(recording, task))
    return jax.jit(lambda params, *arguments: bound({"params": params}, *arguments))


def _encoded(model, pixels, ids, mask) -> tuple[View, View]:
    """Images and texts after the towers."""
    mask = mask.astype(bool)
    states, vector = model.encode_text(ids, True, mask)
    return model.encode_visual({"image": pixels}), View(states, mask, vector)


def _training(folder: pathlib.Path) -> Outputs:
    """Losses of the retrieval model with rows of equal images, and their gradients."""
    recording = read(folder)
    x = recording.inputs
    images, texts = x["re.train_image_rows"], x["re.train_text_rows"]
    batch = {
        "image": x["re.image"][images],
        "ids_a": x["re.text_ids"][texts],
        "groups": x["re.train_idx"],
    }

    def losses(model):
        run = (
            contrast_term("loss_itc", 1.0, IMAGE_TEXT),
            matching_term("loss_itm", 1.0, IMAGE_TEXT),
            probe(IMAGE_TEXT, "itm", "fused"),
        )
        drawn = x["re.image_neg_idx"], x["re.text_neg_idx"]
        found = run_terms(model, {"captioned": batch}, run, [IMAGE_TEXT], drawn)
        names = ("weights_t2i", "weights_i2t")
        renamed = {name: found[f"itm.{name}"] for name in names}
        return found["loss"], found | renamed | {"itm_logits": found["itm.logits"]}

    apply = _compiled(recording, "retrieval", losses)
    gradient = jax.jit(jax.grad(apply, has_aux=True))
    gradients, out = gradient(recording.params)
    published = to_published(gradients, recording.settings.model, "retrieval")
    names = recording.config["retrieval_param_order"]
    norms = np.array([np.linalg.norm(published[name]) for name in names])
    hot = recording.params | {"temperature": np.float32(0.8)}
    out |= {
        "gradnorm.per_param": norms,
        "gradnorm.global": np.linalg.norm(norms),
        "loss_itc_temp0.8": gradient(hot)[1]["loss_itc"],
        "temp0.8_after": hot["temperature"],
    }
    return {f"re.train.{name}": value for name, value in out.items()}


def _evaluation(folder: pathlib.Path) -> Outputs:
    """Both stages of retrieval."""
    recording = read(folder)
    x, params = recording.inputs, recording.params
    encode = _compiled(recording, "retrieval", _encoded)
    image, text = encode(params, x["re.image"], x["re.text_ids"], x["re.text_atts"])
    similarity = np.asarray(image.embedding @ text.embedding.T)
    match = matcher(recording.model, params, image[:2], text[:2], 16)
    scores = rescore(similarity, recording.config["retrieval_eval"]["k_test"], match)
    image_of_text = np.repeat(np.arange(len(similarity)), np.diff(x["re.img2txt"]))

    def metrics(scores) -> list[float]:
        found = retrieval_recalls(scores, image_of_text)
        return [100 * found[METRICS[key]] for key in recording.config["metric_keys"]]

    return {
        "re.eval.image_feat": image.embedding,
        "re.eval.text_feat": text.embedding,
        "re.eval.sims": similarity,
        "re.eval.score_i2t": scores.image_to_text,
        "re.eval.score_t2i": scores.text_to_image,
        "re.eval.metrics_reranked": metrics(scores),
        "re.eval.metrics_dual": metrics(both_ways(similarity)),
    }


def _classified(model, pixels, ids, mask, targets):
    fused = model.read(pixels, ids, mask.astype(bool))
    logits = model.classify(fused)
    return {"logits": logits, "loss": classification_loss(logits, targets), "last_hidden": fused}


def _task_inputs(recording: Recording, task: str) -> list[np.ndarray]:
    return [
        recording.inputs[f"{task}.{name}"] for name in ("image", "text_ids", "text_atts", "targets")
    ]


def _classifier(folder: pathlib.Path) -> Outputs:
    recording = read(folder)
    params = task_params(folder, "classifier", True)
    apply = _compiled(recording, "classifier", _classified)
    out = apply(params, *_task_inputs(recording, "xvnli"))
    return {f"xvnli.{name}": value for name, value in out.items()}


def _two_images(folder: pathlib.Path) -> Outputs:
    recording = read(folder)
    apply = _compiled(recording, "two_images", _classified)
    image, *texts = _task_inputs(recording, "nlvr")
    pixels = np.stack(np.split(image, 2), axis=1)
    outputs = {}
    for variant in ("as_loaded", "distinct"):
        params = task_params(folder, "two_images", variant == "distinct")
        out = apply(params, pixels, *texts)
        out["logits_images_swapped"] = apply(params, pixels[:, ::-1], *texts)["logits"]
        outputs |= {f"nlvr.{variant}.{name}": value for name, value in out.items()}
    return outputs


def _answers(folder: pathlib.Path) -> Outputs:
    recording = read(folder)
    x = {
        name.removeprefix("vqa."): value
        for name, value in recording.inputs.items()
        if name.startswith("vqa.")
    }
    k, listed = int(x.pop("k")), len(x["answer_list_ids"])
    x["asked"] = np.repeat(np.arange(len(x["train_n"])), x["train_n"])

    def answered(model, x):
        answers, asked = x["train_answer_ids"], x["asked"]
        question = model.ask(x["image"], x["question_ids"], x["question_atts"].astype(bool))
        their = question.rows(asked)
        out = {
            "question_states": question.tokens,
            "decoder_logits": model.decode(answers, their),
            "decoder_nll": model.answer_losses(answers, their),
            "train_loss": model.loss(question, answers, asked, x["train_weights"]),
        }
        for suffix, count in (("", k), (f"_k{listed}", listed)):
            ranked = model.rank(question, x["answer_list_ids"], count, count_first_twice=True)
            out[f"topk_ids{suffix}"], out[f"topk_probs{suffix}"] = ranked
        return out

    apply = _compiled(recording, "answers", answered)
    outputs = {}
    for variant in ("as_loaded", "distinct"):
        out = apply(task_params(folder, "answers", variant == "distinct"), x)
        outputs |= {f"vqa.{variant}.{name}": value for name, value in out.items()}
    return outputs
