"""A driver whose runs are fake: `python -m tests.studies.fake WORKDIR SECONDS PROCESSES [FAILING]`.

Each run notes its begin and its cores, waits, notes its end and writes made-up scores.
"""

import pathlib
import sys

CHILD = """
import json, os, pathlib, sys, time
folder, variant, seed, seconds = pathlib.Path(sys.argv[1]), *sys.argv[2:4], float(sys.argv[4])
with (folder / "notes").open("a") as notes:
    print("begun", *getattr(os, "sched_getaffinity", lambda _: ())(0), file=notes, flush=True)
    time.sleep(seconds)
    if variant in sys.argv[5:]:
        sys.exit("it went wrong")
    print("ended", file=notes)
raw = {f"retrieval/regions/{code}/IR@1": 0.5 + 0.1 * (variant == "fast") for code in ("cs", "ja")}
raw |= {f"xvnli/{code}/accuracy": int(seed) / 100 for code in ("en", "de", "cs", "ja")}
raw |= {"dependence/text_dependence": 0.25, "other": 1.0}
result = dict(variant=variant, seed=int(seed), scores=raw, seconds=seconds, versions={"jax": "0"})
result |= json.loads((folder / "settings.json").read_text())
(folder / "partial").write_text(json.dumps(result))
(folder / "partial").rename(folder / "result.json")
"""


def command(workdir, seconds=0.0, failing=()):
    """The command of a run, as `execute` wants it."""

    def of_run(run):
        given = run.folder(workdir), *run, seconds, *failing
        return [sys.executable, "-S", "-c", CHILD, *map(str, given)]

    return of_run


if __name__ == "__main__":
    from rc3_jax.studies.execute import execute
    from tests.studies.tiny_study import get_study

    workdir, seconds, processes = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    study = get_study()
    execute(study, study.runs(), workdir, command(workdir, seconds), processes, print)
