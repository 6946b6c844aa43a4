"""RC³ on generated scenes, small enough for a laptop: the first run.

    python launch/train.py --config=configs/rc3_demo.py

Six languages: en, de and fr come with translated captions of one picture (strict pairs); cs, zh
and ja with weak pairs only, and with a few hundred parallel sentences.
"""

from rc3_jax.config import default_config, parse_argument


def get_config(argument: str = ""):
    chosen = parse_argument(argument, steps=500, batch=64)
    config = default_config()
    config.name = "rc3_demo"
    config.steps = chosen.steps
    config.batch_size = chosen.batch
    config.data.sources = dict(
        scenes=dict(
            type="scenes",
            seed=0,
            strict=200_000,  # scenes of each kind; an epoch is never finished
            weak=200_000,
            parallel=1000,
            strict_languages=("en", "de", "fr"),
            weak_languages=("cs", "zh", "ja"),
        )
    )
    config.data.max_length = 44
    config.data.image.crop_scale = (0.9, 1.0)  # captions name places and sizes
    config.data.tokenizer.vocab_size = 600
    config.data.tokenizer.texts = 12_000
    tower = dict(width=64, depth=2, heads=2, mlp_width=256)
    config.model.text.update(tower, max_positions=48)
    config.model.patch.update(tower, image_size=64, patch=8)
    config.model.roi.update(regions=6, feature_size=64, depth=1)
    config.model.fusion.depth = 1
    config.model.projection_size = 64
    config.model.dropout = 0.0
    config.model.dtype = "float32"
    config.model.unroll = 2
    config.objective.weights.itc = 5.0  # a run this short needs images and words to meet early
    # XVtCL's gradient is about 1 / temperature times larger than that of the regularizer: at scale 1
    # nothing holds z back from copying the image that the weak texts share.
    config.objective.scales.hinge = 10.0
    config.optimizer.lr = 2e-3
    config.optimizer.rates.temperature.factor = 0.05  # at such rates it would fall to its floor
    config.evaluation.update(every=250, batch_size=64, images=256)
    config.checkpoint.every = 1000
    config.log_every = 20
    return config
