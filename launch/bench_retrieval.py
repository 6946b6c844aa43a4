"""Measures retrieval in two stages: vectors choose candidates, the matching head re-ranks them.

python launch/bench_retrieval.py --from=runs/demo
python launch/bench_retrieval.py --from=runs/base --texts=1000 --images=200 --top=32

The images are generated scenes and the texts their captions in several languages. Beside what is
measured stands the time of a cross-encoder that scores all pairs: encoding once, and the fusion
encoder at the rate of a sample of pairs. Memory is the host's, which on CPU is the device's too;
that of compiling counts.
"""

import functools
import itertools
import pathlib
import time

from absl import app, flags
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from rc3_jax.command_line import define_cluster_flags, named_folder, parse_flags, run_program
from rc3_jax.settings import ConfigError

FROM = flags.DEFINE_string("from", None, "Folder of the model.")
TEXTS = flags.DEFINE_integer("texts", 10_000, "Captions.", lower_bound=1)
IMAGES = flags.DEFINE_integer(
    "images", 2_000, "Scenes; those without a caption are left out.", lower_bound=1
)
TOP = flags.DEFINE_integer("top", 128, "Candidates that are re-ranked.", lower_bound=1)
SAMPLE = flags.DEFINE_integer("sample", 128_000, "Pairs of the cross-encoder.", lower_bound=1)
LENGTH = 60  # tokens of a caption at most
THREADS = 8  # that draw pictures
define_cluster_flags()
flags.FLAGS.set_default("tune", False)  # memory that is kept would count as needed


def main(argv: list[str]) -> None:
    del argv
    run_program(measure)


def measure() -> None:
    """Prints seconds, pairs and memory of the search, and what is compared with it."""
    import jax

    from rc3_jax.config import default_config
    from rc3_jax.evaluation.pair_encoder import PairEncoder
    from rc3_jax.evaluation.ranking import rank_recalls
    from rc3_jax.evaluation.rerank import retrieve
    from rc3_jax.parallel.mesh import make_mesh
    from rc3_jax.tasks.benchmarks import TASKS
    from rc3_jax.training.load import load_model

    pretrained = load_model(named_folder(FROM, "runs/demo"), LENGTH)
    if pretrained.task is not None and not TASKS[pretrained.task].retrieval:
        raise ConfigError(f"--from={FROM.value} was fine-tuned for {pretrained.task}")
    data = captioned_scenes(pretrained)
    pairs = len(data.ids) * len(data.image_ids)
    mesh = make_mesh(default_config().mesh)
    model = pretrained.build(mesh)
    with Progress(disable=jax.process_index() > 0) as bars:
        encoder = PairEncoder(model, mesh, progress=functools.partial(report, bars, {}))
        params = encoder.place(pretrained.params)
        before, begun = new_peak(), time.perf_counter()
        found = retrieve(encoder, params, data, TOP.value)
        seconds, above = time.perf_counter() - begun, status("VmHWM") - before
    begun = time.perf_counter()
    texts = encoder.text_vectors(params, data.ids)
    images = encoder.image_vectors(params, len(data.image_ids), data.rows)
    whole_seconds = time.perf_counter() - begun + pairs * seconds_of_a_pair(encoder, params, data)
    table = Table(
        show_header=False, title=f"{len(texts):,} texts, {len(images):,} images, top {TOP.value}"
    )
    table.add_row("two stages", f"{seconds:,.1f} s for {found.pairs:,} pairs")
    table.add_row("all pairs, by a sample", f"{whole_seconds:,.0f} s for {pairs:,} pairs")
    table.add_row("times as fast", f"{whole_seconds / seconds:.1f}")
    table.add_row("memory above the model", f"{above / 1024:,.0f} MiB")
    table.add_row("by vectors", shown(rank_recalls(found.by_vectors)))
    table.add_row("re-ranked", shown(rank_recalls(found.by_matching)))
    Console(soft_wrap=True, quiet=jax.process_index() > 0).print(table)


def captioned_scenes(pretrained):
    """`RetrievalData` of generated scenes: all in a language, then all in the next."""
    import ml_collections

    from rc3_jax.scenes.tasks import miniature
    from rc3_jax.tasks.batches import picture_fields
    from rc3_jax.tasks.retrieval import retrieval_data

    sizes = {"train": 1, "dev": 1, "test": IMAGES.value}
    size = pretrained.settings.roi.feature_size
    languages = miniature("xflickrco", sizes, feature_size=size).splits["test"]
    every = itertools.chain.from_iterable(languages.values())
    examples = list(itertools.islice(every, TEXTS.value))
    if len(examples) < TEXTS.value:
        raise ConfigError(f"{IMAGES.value} scenes have {len(examples)} captions; lower --texts")
    config = ml_collections.ConfigDict(dict(model=pretrained.settings))
    fields_of = functools.partial(picture_fields, config=config, mode="both")
    return retrieval_data(examples, pretrained.tokenizer.encode, fields_of, THREADS)[0]


def seconds_of_a_pair(encoder, params, data) -> float:
    """The time that the fusion encoder takes for one of many pairs; encoding is taken off."""
    import numpy as np

    images = min(len(data.image_ids), 128)
    texts = min(len(data.ids), -(-SAMPLE.value // images))
    part = data._replace(ids=data.ids[:texts], image_ids=data.image_ids[:images])
    pairs = np.array(np.divmod(np.arange(texts * images), images))
    few = pairs[:, :: images + 1]  # as many images are encoded for them

    def timed(pairs) -> float:
        begun = time.perf_counter()
        encoder.scores(params, part, *pairs)
        return time.perf_counter() - begun

    timed(few)  # compiles
    return (timed(pairs) - timed(few)) / (pairs.shape[1] - few.shape[1])


def report(bars: Progress, tasks: dict[str, TaskID], stage: str, done: int, total: int) -> None:
    """Shows a stage's progress."""
    if stage not in tasks:
        tasks[stage] = bars.add_task(stage, total=total)
    bars.update(tasks[stage], completed=done)


def shown(recalls: dict[str, float]) -> str:
    return "  ".join(f"{name} {share:.2%}" for name, share in recalls.items())


def new_peak() -> int:
    """Forgets the peak of memory so far: KiB that are resident now."""
    pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return status("VmRSS")


def status(name: str) -> int:
    """A figure of the process, in KiB; `VmHWM` is the peak of the resident memory."""
    lines = pathlib.Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(parse_flags, None))
