"""Files of studies, and which runs a program takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rc3_jax.data.record import DataError
from rc3_jax.settings import ConfigError
from rc3_jax.studies.study import Claim, Run, Score, chosen_runs, load_study, share_of
from tests.studies.tiny_study import get_study
from tests.tiny import ROOT

WORLD = ROOT / "configs" / "studies" / "world.py"  # the configuration that they vary
STUDY = get_study()
FILES = sorted(set((ROOT / "configs" / "studies").glob("*.py")) - {WORLD})


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_study_has_valid_and_different_settings(file):
    study = load_study(file)
    runs = [run for run in study.runs() if run.seed == study.seeds[0]]
    assert study.name == file.stem
    assert len({study.checksum(run) for run in runs}) == len(study.variants)


def test_a_run_has_the_settings_of_its_variant_and_its_seed():
    config = STUDY.config(Run("fast", 1))
    assert (config.seed, config.steps, config.optimizer.lr) == (1, 2, 4e-3)
    assert STUDY.config(Run("slow", 1)).optimizer.lr == STUDY.base(1).optimizer.lr != 4e-3
    assert STUDY.options(Run("fast", 1)).seeds == (1,)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"optimizer.lrr": 1.0}, "tiny, slow: optimizer.lrr: .*did you mean optimizer.lr"),
        ({"steps": "many"}, "tiny, slow: .*many"),
        ({"objective.regularizer": ("of",)}, "tiny, slow: objective.regularizer"),
    ],
)
def test_settings_that_there_are_not_are_refused(variants, message):
    study = get_study(variants={"slow": variants, "fast": {}})
    with pytest.raises(ConfigError, match=message):
        study.checksum(Run("slow", 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "fats"}, "baseline='fats'"),
        ({"fresh_seeds": (1, 2)}, "each seed once"),
        ({"variants": {"slow/er": {}}}, "slow/er"),
        ({"languages": {}}, "{weak}"),
        ({"claims": (Claim(sentence="", score="x", variants=(), than="slow"),)}, "score='x'"),
        ({"claims": (Claim(sentence="", score="text", variants=("x",), than=0.0),)}, "variant='x'"),
        ({"name": "../tiny"}, "name"),
    ],
)
def test_studies_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        get_study(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_this_name", "nothing_of_this_name"),
        ("x = 1", "get_study"),
        ("def get_study(): return 1 +", "syntax"),
        (
            "from tests.studies.tiny_study import get_study as g\nget_study = lambda: g(seeds=1)",
            "seeds",
        ),
    ],
)
def test_files_that_cannot_be_run_end_in_one_line(tmp_path, text, message):
    file = tmp_path / "study.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"study\.py: .*{message}") as error:
        load_study(file)
    assert len(str(error.value).splitlines()) == 1


def test_a_score_is_the_mean_over_languages():
    raw = {"retrieval/regions/cs/IR@1": 0.5, "retrieval/regions/ja/IR@1": 0.25, "x": 1.0}
    assert STUDY.value("retrieval", raw, "run") == 0.375
    with pytest.raises(DataError, match="slow: dependence/text_dependence is missing; near: retr"):
        STUDY.value("text", raw, "slow")
    with pytest.raises(DataError, match="cs/IR@1 is nan"):
        STUDY.value("retrieval", raw | {"retrieval/regions/cs/IR@1": float("nan")}, "")
    above = get_study(scores={"above": Score(of=("{weak}/a",), minus=("b", "c"))}, claims=())
    known = {"cs/a": 1.0, "ja/a": 0.5, "b": 0.25, "c": 0.75, "zh/a": 9.0}
    assert above.value("above", known, "run") == 0.25
    assert above.chosen(known, "run") == {"cs/a": 1.0, "ja/a": 0.5, "b": 0.25, "c": 0.75}
    constant = get_study(scores={"text": Score(of=("x",))}, claims=())
    assert constant.chosen(raw, "") == {"x": 1.0}


def test_runs_are_chosen_by_variant_and_seed():
    assert chosen_runs(STUDY, [], [], False) == STUDY.runs()[:4]
    assert chosen_runs(STUDY, [], [], True) == [Run("slow", 7), Run("fast", 7)]
    assert chosen_runs(STUDY, ["fast"], ["1"], False) == [Run("fast", 1)]
    for wrong in ((["fsat"], [], False), ([], ["7"], False), ([], ["1"], True)):
        with pytest.raises(ConfigError, match="--only='fsat'|--seeds='[71]'"):
            chosen_runs(STUDY, *wrong)


@given(st.integers(1, 5), st.integers(0, 9), st.integers(1, 3))
def test_tasks_of_an_array_share_the_runs(count, first, step):
    shares = []
    for task in range(first, first + count * step, step):
        numbers = {"ID": task, "MIN": first, "STEP": step, "COUNT": count}
        environment = {f"SLURM_ARRAY_TASK_{name}": str(of) for name, of in numbers.items()}
        shares += share_of(STUDY.runs(), None, None, environment)
        assert share_of(STUDY.runs(), 0, 1, environment) == STUDY.runs()  # flags go first
    assert sorted(shares) == sorted(STUDY.runs())


def test_shares_that_there_are_not_are_refused():
    assert share_of(STUDY.runs(), None, None, {}) == STUDY.runs()
    gaps = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "2"}
    for index, shares, environment in ((2, 2, {}), (-1, 2, {}), (1, None, {}), (None, None, gaps)):
        with pytest.raises(ConfigError, match="share|--of"):
            share_of(STUDY.runs(), index, shares, environment)
