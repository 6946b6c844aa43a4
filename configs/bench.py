"""Sizes of RC³ for `launch/bench.py step`, which no data is read for.

    python launch/bench.py step --size=wide

`demo` is near configs/rc3_demo.py, `wide` has towers of 4 x 192, `quarter` of 6 x 384 at 224 pixels
with XLM-R's vocabulary.
"""

from rc3_jax.config import default_config, parse_argument
from rc3_jax.models.vit import ViTSettings
from rc3_jax.settings import check_choice

SIZES = dict(
    demo=dict(
        tower=dict(width=64, depth=2, heads=2, mlp_width=256),
        image=dict(image_size=64, patch=8),
        roi=dict(regions=6, feature_size=64, depth=1),
        text=dict(length=44, positions=48, words=600),
        fusion=1,
        projection=64,
        batch=64,
    ),
    wide=dict(
        tower=dict(width=192, depth=4, heads=3, mlp_width=768),
        image=dict(image_size=64, patch=8),
        roi=dict(regions=8, feature_size=64, depth=2),
        text=dict(length=32, positions=34, words=8000),
        fusion=2,
        projection=128,
        batch=64,
    ),
    quarter=dict(
        tower=dict(width=384, depth=6, heads=6, mlp_width=1536),
        image=dict(image_size=224, patch=16),
        roi=dict(regions=36, feature_size=2048, depth=2),
        text=dict(length=40, positions=514, words=250_002),
        fusion=3,
        projection=256,
        batch=16,
    ),
)


def get_config(argument: str = ""):
    chosen = parse_argument(argument, size="demo")
    check_choice("size", chosen.size, SIZES)
    size = SIZES[chosen.size]
    config = default_config()
    config.name = f"bench_{chosen.size}"
    config.batch_size = size["batch"]
    config.data.max_length = size["text"]["length"]
    config.data.tokenizer.vocab_size = size["text"]["words"]
    config.model.text.update(size["tower"], max_positions=size["text"]["positions"])
    config.model.patch = ViTSettings(**size["tower"], **size["image"]).config_dict()
    config.model.roi.update(size["roi"])
    config.model.fusion.depth = size["fusion"]
    config.model.projection_size = size["projection"]
    config.model.update(dtype="float32", dropout=0.0, unroll=size["tower"]["depth"])
    return config
