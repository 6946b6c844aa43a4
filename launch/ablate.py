"""Runs a study: variants of a configuration over seeds, to test claims about training objectives.

python launch/ablate.py --study=configs/studies/claim.py
python launch/ablate.py --study=configs/studies/claim.py --fresh --processes=2 --out=results/claim.json
python launch/ablate.py --study=configs/studies/claim.py --only=off,weighted --seeds=0,1
python launch/ablate.py report results/*.json --out=docs/evidence.md

Each run is trained and scored by a process of its own. The same command goes on with what was
interrupted, tries again what failed, and leaves out what is done. --fresh runs the seeds of the
report in place of those that settings are chosen on. --index=0 --of=4 takes the first of four shares
of the runs; in a SLURM job array the tasks share them by themselves.

`report` writes tables, plots and a verdict for each claim from files of results, nothing else
(docs/studies.md).
"""

import functools
import os
import pathlib
import signal
import sys

from absl import app, flags

from rc3_jax.command_line import define_tune_flag, parse_flags, run_program
from rc3_jax.settings import ConfigError

STUDY = flags.DEFINE_string("study", None, "A file of configs/studies.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs; runs/studies/NAME by default.")
OUT = flags.DEFINE_string(
    "out",
    None,
    "File of results, WORKDIR/results.json by default; of the report: docs/evidence.md.",
)
ONLY = flags.DEFINE_list("only", [], "These variants alone.")
SEEDS = flags.DEFINE_list("seeds", [], "These seeds alone.")
FRESH = flags.DEFINE_bool("fresh", False, "Runs the seeds of the report.")
INDEX = flags.DEFINE_integer("index", None, "With --of: which share of the runs, from 0.")
OF = flags.DEFINE_integer("of", None, "Shares of the runs.", lower_bound=1)
PROCESSES = flags.DEFINE_integer("processes", 1, "Runs at a time, which divide the CPU's cores.", 1)
WORKER = flags.DEFINE_bool("worker", False, "Does the one run of --only and --seeds itself.")
define_tune_flag()


def work() -> None:
    """Does what the flags say."""
    from rc3_jax.convert.output import write_json
    from rc3_jax.observe.log import speaker
    from rc3_jax.paths import local_path
    from rc3_jax.studies.execute import BATCHES, execute, locked, perform
    from rc3_jax.studies.results import collect
    from rc3_jax.studies.study import Run, chosen_runs, load_study, share_of

    if not STUDY.value:
        raise ConfigError("name a study: --study=configs/studies/claim.py")
    file = local_path(STUDY.value, "--study")
    study = load_study(file)
    workdir = local_path(WORKDIR.value or f"runs/studies/{study.name}", "--workdir")
    runs = chosen_runs(study, ONLY.value, SEEDS.value, FRESH.value)
    if WORKER.value:
        [run] = runs
        return perform(study, run, workdir)

    def command(run: Run) -> list[str]:
        chosen = [f"--study={file}", f"--workdir={workdir}", *["--fresh"] * FRESH.value]
        chosen += ["--worker", f"--only={run.variant}", f"--seeds={run.seed}"]
        return [sys.executable, __file__, *chosen, *["--notune"] * (not flags.FLAGS.tune)]

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the runs too
    say, mine = speaker(), share_of(runs, INDEX.value, OF.value, os.environ)
    out = local_path(OUT.value or workdir / "results.json", "--out")
    failed = execute(study, mine, workdir, command, PROCESSES.value, say)
    with locked(workdir, waits=True):  # for tasks of an array that end together
        results = collect(study, workdir, out)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, results.model_dump(mode="json"))
    say(f"{len(results.runs)} of {len(study.runs())} runs: {out}")
    if (workdir / BATCHES).is_dir():
        say(f"{workdir / BATCHES} holds what runs read in common; remove it once all are done")
    for run, log in failed.items():
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        say(f"{run}: {log}: {lines[-1] if lines else 'nothing was printed'}")
    if failed:
        raise ConfigError(f"{len(failed)} runs failed, named above; the same command tries again")
    return None


def report(files: list[str]) -> None:
    """Writes the report of files of results."""
    from rc3_jax.paths import local_path
    from rc3_jax.studies.report import write_report
    from rc3_jax.studies.results import read_results

    if not files:
        raise ConfigError("name files of results: report results/*.json")
    out = local_path(OUT.value or "docs/evidence.md", "--out")
    write_report(out, read_results(map(pathlib.Path, files)))
    print(out)


def main(argv: list[str]) -> None:
    run_program(functools.partial(report, argv[2:]) if argv[1:] else work, computes=WORKER.value)


def parse(argv: list[str]) -> list[str]:
    """The flags; after `report` also files, which stay."""
    if len(argv) < 2 or argv[1] != "report":
        return parse_flags(None, argv)
    files = [argument for argument in argv[2:] if not argument.startswith("-")]
    parse_flags(None, [argv[0], *(argument for argument in argv[2:] if argument not in files)])
    return [argv[0], "report", *files]


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
