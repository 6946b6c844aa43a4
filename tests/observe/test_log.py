"""What a run writes about itself: the file of metrics, the console lines, speed and time left."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from rc3_jax.observe import log as log_module
from rc3_jax.observe.log import Clock, Log, read_metrics, step_line
from rc3_jax.settings import ConfigError

TERMS = ("itc", "xtcl", "mclm")
READING = {"samples_per_second": 123.4, "data_wait": 0.0456, "eta": 61.9}


def _lines(folder) -> list[dict]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def _console(terminal: bool) -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    console = Console(
        file=output, force_terminal=terminal, width=200, color_system=None, _environ={}
    )
    return console, output


def test_each_writing_is_one_line_of_json(tmp_path):
    with Log(tmp_path, _console(False)[0]) as log:
        log.write(1, {"loss": np.float32(2.5), "itc": 1})
        assert _lines(tmp_path) == [{"step": 1, "loss": 2.5, "itc": 1.0}]  # at once, unbuffered
        log.write(20, {"retrieval/both/en/IR@1": 0.25})
    with Log(tmp_path, _console(False)[0]) as log:  # a run that goes on appends
        log.write(21, {"loss": 2.0})
    assert _lines(tmp_path) == [
        {"step": 1, "loss": 2.5, "itc": 1.0},
        {"step": 20, "retrieval/both/en/IR@1": 0.25},
        {"step": 21, "loss": 2.0},
    ]


def test_a_step_has_one_line_also_when_a_run_goes_on(tmp_path):
    with Log(tmp_path, _console(False)[0]) as log:
        log.write(1, {"loss": 3.0})
        log.write(1, {"dev/en": 0.5})
        log.write(2, {"loss": 2.0})
        assert _lines(tmp_path) == [
            {"step": 1, "loss": 3.0, "dev/en": 0.5},
            {"step": 2, "loss": 2.0},
        ]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 1.0}\n{"step": 3, "dev/en": 0.7}\n{"step": 4, "lo')
    with Log(tmp_path, _console(False)[0]) as log:
        log.rewind(3)
        assert log.has_evaluation(3) and not log.has_evaluation(2)
        log.write(3, {"dev/de": 0.6})
        log.write(4, {"loss": 0.5})
    assert [row["step"] for row in _lines(tmp_path)] == [1, 2, 3, 4]
    assert _lines(tmp_path)[2] == {"step": 3, "loss": 1.0, "dev/en": 0.7, "dev/de": 0.6}
    file, whole = tmp_path / "metrics.jsonl", (tmp_path / "metrics.jsonl").read_text()
    file.write_text('{"st\n' + whole)
    with pytest.raises(ConfigError, match=r"metrics\.jsonl:1: .*; remove the line"):
        read_metrics(tmp_path)
    file.write_text(whole)
    assert len(read_metrics(tmp_path)) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -np.inf, np.float32("nan")])
def test_what_is_no_finite_number_becomes_null(tmp_path, value):
    with Log(tmp_path, _console(False)[0]) as log:
        log.write(3, {"loss": value, "itc": 0.5})
    assert _lines(tmp_path) == [{"step": 3, "loss": None, "itc": 0.5}]


def test_other_processes_write_and_print_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Log(None) as log:
        log.write(1, {"loss": 1.0})
        log.step(1, 2, {"loss": 1.0} | READING)
        log.say("hello")
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == []


def test_the_first_process_prints_whole_lines(tmp_path, capsys):
    words = " ".join(["word"] * 100)
    with Log(tmp_path) as log:
        log.say(words)
    assert capsys.readouterr().out == words + "\n"


def test_a_steps_line_shows_the_terms_in_order_speed_and_time_left():
    values = {"mclm": 3.14159, "loss": 10.5, "gradient_norm": 7.0, "itc": 0.25} | READING
    assert step_line(40, 800, values, TERMS) == (
        "step 40/800  loss 10.500 itc 0.250 mclm 3.142  123 samples/s  data wait 4.6%  ETA 00:01:01"
    )


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "00:00:00"), (3661.9, "01:01:01"), (90_000, "25:00:00"), (1e9, "99:59:59")],
)
def test_the_time_left_counts_hours_beyond_a_day(seconds, shown):
    line = step_line(1, 2, {"loss": 1.0} | READING | {"eta": seconds}, ())
    assert line.endswith(f"ETA {shown}")


@pytest.fixture
def set_time(monkeypatch):
    """Sets what `time.perf_counter` returns in the log."""

    class Time:
        now = 1000.0

        def perf_counter(self):
            return self.now

    time = Time()
    monkeypatch.setattr(log_module, "time", time)

    def set_to(now: float) -> None:
        time.now = now

    return set_to


def test_a_clock_reads_speed_waiting_and_time_left_since_the_last_reading(set_time):
    clock = Clock(step=10, steps=100, batch_size=32)
    clock.wait(0.5)
    clock.wait(0.5)
    set_time(1004.0)
    assert clock.read(18) == pytest.approx(
        {"samples_per_second": 8 * 32 / 4, "data_wait": 0.25, "eta": 82 * 4 / 8}
    )
    set_time(1014.0)  # slower, without waiting
    clock.wait(0.0)
    assert clock.read(20) == pytest.approx(
        {"samples_per_second": 2 * 32 / 10, "data_wait": 0.0, "eta": 80 * 5}
    )
    set_time(1015.0)
    assert clock.read(100)["eta"] == 0


def test_a_clock_reads_flops_and_their_share_of_the_peak(set_time):
    clock = Clock(step=0, steps=10, batch_size=4, flops=3e14, peak=1e15)
    set_time(1004.0)
    reading = clock.read(8)
    assert reading["tflops_per_device"] == pytest.approx(600)
    assert reading["mfu"] == pytest.approx(0.6)
    assert "  600.0 TFLOP/s a device  MFU 60.0%  data wait" in step_line(8, 10, reading, TERMS)


def test_a_clock_read_at_once_divides_by_nothing(set_time):
    clock = Clock(step=5, steps=10, batch_size=8)
    reading = clock.read(5)
    assert reading["samples_per_second"] == 0 and reading["data_wait"] == 0
    assert 0 <= reading["eta"] < 1e-6
    assert step_line(5, 10, reading, TERMS)


def test_lines_are_printed_in_turn(tmp_path):
    console, output = _console(terminal=False)
    values = {"loss": 2.0, "xtcl": 1.0} | READING
    with Log(tmp_path, console, TERMS) as log:
        log.say("begin")
        log.step(1, 3, values)
    assert output.getvalue().splitlines() == ["begin", step_line(1, 3, values, TERMS)]


@pytest.mark.parametrize(
    "text",
    [
        "captions.jsonl:100: image is missing",  # :100: is the name of an emoji
        "[bold]data.sources[/bold] [0]",
        "a :smile: and 12.5 'text' http://example.org",
    ],
)
def test_a_line_is_printed_as_it_is(tmp_path, text):
    for terminal in (False, True):
        console, output = _console(terminal)
        Log(tmp_path, console).say(text)
        assert output.getvalue() == text + "\n"
