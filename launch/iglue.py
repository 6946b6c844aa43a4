"""Runs the tasks of a folder from a pre-trained model, in every protocol, and writes one report.

python launch/iglue.py --from=runs/demo --data=miniature
python launch/iglue.py --from=runs/base --data=/data/iglue --images=/data/pictures --seeds=0,1,2 \\
    --protocols=zero-shot,translate-test,few-shot

--data holds a folder for each task: XVNLI, xGQA with GQA, MaRVL with NLVR2, xFlickrCO with flickr30k,
WIT, multi30k, mscoco (docs/tasks.md); --data=miniature generates five of them. Pictures are looked
for in --images, and there in folders of these names first. The same command goes on with what was
interrupted.
"""

import ast
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from rc3_jax.command_line import define_cluster_flags, named_folder, parse_flags, run_program
from rc3_jax.settings import ConfigError

FROM = flags.DEFINE_string("from", None, "Folder of the pre-trained model.")
DATA = flags.DEFINE_string("data", None, "Folder of the tasks' folders, or `miniature`.")
IMAGES = flags.DEFINE_string("images", "", "Folders of pictures, joined by ':'.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder to write; <from>_tasks by default.")
TASKS = flags.DEFINE_list("tasks", [], "These alone, such as xvnli,marvl.")
PROTOCOLS = flags.DEFINE_list(
    "protocols",
    ["zero-shot", "translate-test"],
    "Of zero-shot, translate-test, few-shot, translate-train and languages, which is fine-tuning in "
    "each language that has training data, and in all.",
)
SHOTS = flags.DEFINE_list("shots", [], "Of few-shot, such as 1,48; all that there are by default.")
SEEDS = flags.DEFINE_list("seeds", ["0"], "Every fine-tuning is run with each.")
SET = flags.DEFINE_multi_string(
    "set",
    [],
    "Changes a setting of all tasks, or of one: --set=mode=patches --set=xvnli/epochs=3 "
    "--set=test.languages=\"('de','zh')\"",
)
ALLOW_MISSING = flags.DEFINE_bool(
    "allow_missing", False, "Goes on where more than 5 % of the pictures are missing."
)
define_cluster_flags()


def main(argv: list[str]) -> None:
    del argv
    workdir = WORKDIR.value or f"{(FROM.value or '').rstrip('/')}_tasks"
    folder = pathlib.Path(workdir)
    # Before JAX is imported: few-shot fine-tunings share most of their programs.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    from rc3_jax.paths import local_path
    from rc3_jax.tasks.suite import Options, run_suite

    def work() -> None:
        source = named_folder(FROM, "runs/demo")
        if not DATA.value:
            raise ConfigError("name a folder of tasks: --data=/data/iglue, or --data=miniature")
        for name, path in (("workdir", workdir), ("data", DATA.value), ("images", IMAGES.value)):
            local_path(path, f"--{name}")
        changes = {"allow_missing": ALLOW_MISSING.value} | settings(SET.value)
        options = Options(PROTOCOLS.value, seeds(), SHOTS.value, changes, TASKS.value)
        run_suite(source, DATA.value, IMAGES.value, folder, options)

    run_program(work)


def seeds() -> list[int]:
    """Those of --seeds; raises ConfigError where one is no whole number."""
    if wrong := [seed for seed in SEEDS.value if not seed.isdecimal()]:
        raise ConfigError(f"--seeds: {', '.join(wrong)} is no whole number")
    return [int(seed) for seed in SEEDS.value]


def settings(given: Sequence[str]) -> dict[str, Any]:
    """name → value of each `name=value`; what is no Python literal is a text."""
    chosen: dict[str, Any] = {}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"--set={item}: write --set=name=value")
        try:
            chosen[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            chosen[name] = text
    return chosen


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(parse_flags, None))
