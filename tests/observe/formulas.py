"""FLOPs of a forward pass by formulas, an independent reference for those counted from a trace.

Matrix products take 2 x m x n x k each, over all positions, padding included.
"""

from rc3_jax.data.example import text_sizes

IMAGES = ("strict", "weak", "captioned")
ALIGNED = ("strict", "parallel")


def block(width, mlp_width, queries, keys=None):
    """One transformer block on one row, with cross-attention to `keys` tokens where there are.

    Their keys and values are those of `views`.
    """
    flops = 8 * queries * width**2 + 4 * queries**2 * width + 4 * queries * width * mlp_width
    if keys is not None:
        flops += 4 * queries * width**2 + 4 * queries * keys * width
    return flops


def text(model, length):
    """The text tower and its projection on one text."""
    layers = model.text.depth * block(model.text.width, model.text.mlp_width, length)
    return layers + 2 * model.text.width * model.projection_size


def kept(patch):
    """Patch tokens of one image in the encoder of a tower of one resolution."""
    return round((1 - patch.patch_dropout) * (patch.image_size // patch.patch) ** 2)


def patches(model):
    """The visual tower and the image projection on one image."""
    patch = model.patch
    side, width = patch.image_size // patch.patch, patch.width
    total = 2 * side**2 * 3 * patch.patch**2 * width
    if patch.type != "swin":
        layers = patch.depth * block(width, patch.mlp_width, kept(patch) + 1)
        return total + layers + 2 * width * model.projection_size
    for stage, depth in enumerate(patch.depths):
        window = min(patch.window, side)
        total += depth * (side // window) ** 2 * block(width, 4 * width, window**2)
        if stage < len(patch.depths) - 1:  # four neighbours become one of twice the width
            total += 2 * (side // 2) ** 2 * 4 * width * 2 * width
            side, width = side // 2, 2 * width
    return total + 2 * model.text.width * model.projection_size


def regions(model):
    """The ROI tower on one image: both kinds of content are computed."""
    roi, patch = model.roi, model.patch
    cells = (patch.image_size // patch.patch) ** 2
    features = 2 * roi.regions * roi.feature_size * patch.width
    # Weights of all cells as products of those of rows and columns, their sum over the grid, W.
    aligned = 2 * roi.regions * (cells * (1 + patch.width) + patch.width**2)
    place = 2 * roi.regions * int(roi.geometry[0]) * patch.width
    return features + aligned + place + roi.depth * block(patch.width, patch.mlp_width, roi.regions)


def fusion(model, length, keys):
    """The fusion encoder on one text and a view of `keys` tokens."""
    return model.fusion.depth * block(model.text.width, model.text.mlp_width, length, keys)


def view(model, keys):
    """Keys and values of a view of `keys` tokens, once for all texts of a row that read it."""
    return model.fusion.depth * 4 * keys * model.text.width**2


def rc3(config, rows, words):
    """The losses of RC³, as METHOD.md section 2 has them."""
    model, objective, length = config.model, config.objective, config.data.max_length
    weights, size, width = objective.weights, model.projection_size, model.text.width
    images = sum(rows.get(kind, 0) for kind in IMAGES)
    weak, off = rows.get("weak", 0), "off" in objective.regularizer
    kinds = ["strict"] * bool(weights.xvtcl and "strict" in rows)
    kinds += ["weak"] * bool(weights.xvtcl_weak and not off and weak)
    contrasted, same_image = sum(rows[kind] for kind in kinds), bool(objective.same_image_negatives)
    # Soft targets have no positive that a same-image negative could be set against.
    positives = [k for k in kinds if k == "strict" or "soft" not in objective.regularizer]
    matched = images * bool(weights.itm)
    wrong_text = bool(weights.itm or (kinds and same_image))
    fused = max(matched, contrasted) + max(matched, contrasted * same_image) + matched + contrasted
    tokens = 1 + kept(model.patch) + model.roi.regions
    readout = 4 * width**2 * (1 + length) + 4 * length * width + 2 * width * size
    total = images * (patches(model) + regions(model)) + _texts(objective, rows, kinds) * text(
        model, length
    )
    total += fused * fusion(model, length, tokens)
    total += (2 * contrasted + same_image * sum(rows[kind] for kind in positives)) * readout
    read = max(matched, contrasted, images * bool(weights.mclm))
    total += (read + matched) * view(model, tokens)  # the row's own image, and a wrong one
    total += 3 * matched * (4 * width**2 + 8 * width)  # the matching head
    squares = 2 * images**2 * bool(weights.itc)
    squares += sum(rows.get(kind, 0) for kind in ALIGNED) ** 2 * bool(weights.xtcl)
    squares += (wrong_text + bool(weights.itm)) * images**2
    squares += sum(rows[kind] ** 2 for kind in positives)
    if "weak" in kinds and {*objective.regularizer} & {"soft", "kl"}:
        squares += 2 * weak**2
    total += 2 * size * squares
    if "weak" in kinds and objective.relevance == "ema":
        total += 2 * weak * text(model, length)
    if weights.mclm:
        total += images * fusion(model, length, tokens)
        parallel = fusion(model, length, length) + view(model, length)
        total += rows.get("parallel", 0) * parallel
        total += sum(rows.values()) * config.data.max_masked * 2 * width * (width + words)
    return total


def _texts(objective, rows, kinds):
    """Texts that go through the text tower, masked ones among them."""
    weights, total = objective.weights, 0
    for kind, count in rows.items():
        aligned = bool(weights.xtcl) and kind in ALIGNED
        a = aligned or (kind != "parallel" and (weights.itc or weights.itm or kinds))
        b = aligned or (weights.mclm if kind == "parallel" else weights.itc or kind in kinds)
        total += count * (bool(a) + bool(b) + bool(weights.mclm))
    return total


def cclm(config, rows, words):
    """The losses of CCLM, as METHOD.md section 3 has them."""
    model, objective = config.model, config.objective
    width, size = model.text.width, model.projection_size
    side = model.patch.image_size // model.patch.patch // 2 ** (len(model.patch.depths) - 1)
    images = sum(rows.get(kind, 0) for kind in IMAGES)
    parts, parallel = rows.get("region", 0) * config.data.regions.per_image, rows.get("parallel", 0)
    second = sum(rows.get(kind, 0) for kind in ("strict", "weak"))
    total = (images + rows.get("region", 0)) * patches(model) + parts * 2 * width * size
    for weights, count, kind, keys, others in (
        (objective.weights.image, images, "captioned", 1 + side**2, second),
        (objective.weights.text, parallel, "parallel", None, parallel),
        (objective.weights.region, parts, "region", 1 + side**2, 0),
    ):
        length, most = text_sizes(config, kind != "parallel")
        masked, matched = bool(weights.masked_lm), bool(weights.matching)
        boxes = kind == "region" and bool(weights.box or weights.giou)
        total += (count * (1 + masked) + others) * text(model, length)
        reads = count * (3 * matched + masked + boxes)
        total += reads * fusion(model, length, keys or length)
        # The row's own view or, of sentences, one for each purpose; a wrong view; the whole image.
        own = matched + masked if kind == "parallel" else bool(matched or masked)
        read = count * (own + matched + boxes)
        total += read * view(model, keys or length)
        total += count * 4 * width**2 * (3 * matched + boxes)
        total += count * 8 * width * (3 * matched + 2 * boxes)
        total += count * masked * most * 2 * width * (width + words)
        squares = (
            bool(weights.contrast) + 2 * matched * (1 + bool(objective.negative_floor))
        ) * count**2
        if kind == "captioned":
            squares += (bool(weights.contrast) + bool(weights.captions)) * others**2
        total += 2 * size * squares
    return total
