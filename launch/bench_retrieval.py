"""Measures retrieval in two stages: vectors choose candidates, the matching head re-ranks them.

python launch/bench_retrieval.py --from=runs/demo
python launch/bench_retrieval.py --from=runs/base --texts=1000 --images=200 --top=32

The images are generated scenes and the texts their captions in several languages. Beside what is
measured stands the time of a cross-encoder that scores all pairs, at the rate of a sample of them.
Recalls by the vectors are compared with those of the whole matrix in NumPy.
"""

import functools
import itertools
import resource
import time

from absl import app, flags
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rc3_jax.command_line import define_cluster_flags, named_folder, parse_flags, run_program
from rc3_jax.config import ConfigError

FROM = flags.DEFINE_string("from", None, "Folder of the model.")
TEXTS = flags.DEFINE_integer("texts", 10_000, "Captions.", lower_bound=1)
IMAGES = flags.DEFINE_integer("images", 2_000, "Scenes.", lower_bound=1)
TOP = flags.DEFINE_integer("top", 128, "Candidates that are re-ranked.", lower_bound=1)
define_cluster_flags()
SAMPLE = flags.DEFINE_integer("sample", 128_000, "Pairs of the cross-encoder.", lower_bound=1)


def main(argv: list[str]) -> None:
    del argv
    run_program(lambda: Console(soft_wrap=True).print(measure()))


def measure() -> Table:
    """Seconds, pairs and memory of the search, and what is compared with it."""
    import ml_collections
    import numpy as np

    from rc3_jax.config import default_config
    from rc3_jax.data.example import stacked
    from rc3_jax.downstream.batches import picture_fields
    from rc3_jax.downstream.miniatures import miniature
    from rc3_jax.downstream.pretrained import load_pretrained
    from rc3_jax.evaluation.pair_encoder import PairEncoder, RetrievalData
    from rc3_jax.evaluation.rerank import rank_recalls, retrieve
    from rc3_jax.evaluation.retrieval import recalls
    from rc3_jax.parallel.mesh import make_mesh
    from rc3_jax.systems import SYSTEMS

    pretrained = load_pretrained(named_folder(FROM, "runs/demo"), 60)
    languages = miniature("xflickrco", {"train": 1, "dev": 1, "test": IMAGES.value}).splits["test"]
    of_all = itertools.chain.from_iterable(languages.values())
    examples = list(itertools.islice(of_all, TEXTS.value))
    if len(examples) < TEXTS.value:
        raise ConfigError(f"{IMAGES.value} scenes have {len(examples)} captions; lower --texts")
    pictures = [example.pictures[0] for example in next(iter(languages.values()))]
    numbers = {picture.name: number for number, picture in enumerate(pictures)}
    owners = np.array([numbers[example.pictures[0].name] for example in examples])
    config = ml_collections.ConfigDict(dict(model=pretrained.model))

    def rows(chosen):
        return stacked([picture_fields(pictures[place], config, "both") for place in chosen])

    ids = pretrained.tokenizer.encode([example.text for example in examples])
    data = RetrievalData(ids, owners, np.arange(len(pictures)), rows)
    mesh = make_mesh(default_config().mesh)
    model = SYSTEMS[pretrained.system].build(
        pretrained.model, pretrained.tokenizer.vocab_size, mesh
    )
    with Progress() as bars:
        bar = functools.partial(report, bars, {})
        encoder = PairEncoder(model, mesh, progress=bar)
        params = encoder.place(pretrained.params)
        before, begun = resident(), time.perf_counter()
        found = retrieve(encoder, params, data, TOP.value)
        seconds, above = time.perf_counter() - begun, peak() - before
    texts = encoder.text_vectors(params, ids)
    images = encoder.image_vectors(params, len(pictures), rows)
    described, every = np.unique(owners), np.arange(len(pictures))
    whole = recalls(images[described], texts, described, owners)
    whole = {f"TR@{k}": share for k, share in whole.items()}
    whole |= {f"IR@{k}": share for k, share in recalls(texts, images, owners, every).items()}
    pair = seconds_of_a_pair(encoder, params, data)
    pairs = len(ids) * len(pictures)
    table = Table("", "", title=f"{len(ids):,} texts, {len(pictures):,} images, top {TOP.value}")
    table.add_row("two stages", f"{seconds:,.1f} s for {found.pairs:,} pairs")
    table.add_row(
        "all pairs, at the rate of a sample", f"{pairs * pair:,.0f} s for {pairs:,} pairs"
    )
    table.add_row("times as fast", f"{pairs * pair / seconds:.1f}")
    table.add_row("peak memory above the model", f"{above / 2**20:,.0f} MiB")
    table.add_row("by vectors", shown(rank_recalls(found.by_vectors)))
    table.add_row("by vectors, whole matrix in NumPy", shown(whole))
    table.add_row("re-ranked", shown(rank_recalls(found.by_matching)))
    return table


def seconds_of_a_pair(encoder, params, data) -> float:
    """Of a cross-encoder that scores every text with every image, encoding included."""
    import numpy as np

    def every(texts: range, images: range):
        return np.repeat(np.array(texts), len(images)), np.tile(np.array(images), len(texts))

    images = min(len(data.image_ids), 128)
    texts = min(len(data.ids), -(-SAMPLE.value // images))
    part = data._replace(ids=data.ids[:texts], image_ids=data.image_ids[:images])
    begun = time.perf_counter()
    count = sum(len(scores) for *_, scores in encoder.scores(params, part, every, "sample"))
    return (time.perf_counter() - begun) / count


def report(bars: Progress, tasks: dict[str, int], stage: str, done: int, total: int) -> None:
    """Shows a stage's progress."""
    if stage not in tasks:
        tasks[stage] = bars.add_task(stage, total=total)
    bars.update(tasks[stage], completed=done)


def shown(recalls: dict[str, float]) -> str:
    return "  ".join(f"{name} {share:.2%}" for name, share in recalls.items())


def peak() -> int:
    """The most bytes that have been resident."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident() -> int:
    """Bytes that are resident now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(parse_flags, None))
