"""RC³ on generated scenes, as small as the claims of the studies allow: one run takes minutes.

    python launch/train.py --config=configs/studies/world.py

As configs/rc3_demo.py, with smaller pictures and shorter captions, of two objects at most, and with
more to say: half of the parallel sentences are questions, and statements about two pictures, so that
each language has the words of the tasks. No sentence of a test is among them.
"""

import pathlib

from rc3_jax.config import parse_argument
from rc3_jax.studies.study import load_config

DEMO = pathlib.Path(__file__).parents[1] / "rc3_demo.py"


def get_config(argument: str = ""):
    chosen = parse_argument(argument, steps=1000, parallel=4000)
    config = load_config(DEMO)
    config.name = "world"
    config.steps = chosen.steps
    config.data.sources.scenes.update(parallel=chosen.parallel, questions=0.5, mentioned=2)
    config.data.max_length = 36
    config.data.tokenizer.vocab_size = 1000
    config.model.patch.update(image_size=32, depth=1)
    config.model.roi.regions = 8
    config.model.fusion.depth = 2
    config.objective.weights.itm = 3.0  # at 1 matching is learned hundreds of steps later
    config.evaluation.update(every=0, images=100, rerank=-1)
    config.checkpoint.every = 0
    config.log_every = 50
    return config
