"""RC³ on generated scenes, as small as the claims of the studies allow: one run takes minutes.

    python launch/train.py --config=configs/studies/world.py

As configs/rc3_demo.py, but with regions alone, smaller pictures, more weight on matching, and a contrast
of weak pairs that trains all parameters, which is the form under test. Half of the parallel sentences are
questions, and statements about two pictures, so that each language has the words of the tasks. No
sentence of a test is among them.
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
    config.data.sources.scenes.update(parallel=chosen.parallel, questions=0.5)
    config.data.visual_forms = "regions"
    config.data.tokenizer.vocab_size = 1000
    config.model.patch.update(image_size=32, depth=1)
    config.model.roi.regions = 8
    config.objective.weak_gradient = "all"
    config.objective.weights.itm = 3.0  # at 1 matching is learned hundreds of steps later
    config.evaluation.update(every=0, images=100, rerank=-1, modes=("regions",))
    config.checkpoint.every = 0
    config.log_every = 50
    return config
