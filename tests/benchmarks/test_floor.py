"""The floor of a row is the least over all streams of its footprint, measured in the run of the row."""

from __future__ import annotations

import pytest
import torch

MEGABYTE = 2**20
CPU = torch.device("cpu")


@pytest.fixture
def floor(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import floor

    return floor


@pytest.fixture
def timed(floor, monkeypatch):
    """Calls of ``harness.interleaved``, which says that each variant took as many milliseconds as it is told to."""
    seen, milliseconds = [], {}

    def interleaved(variants, device):
        seen.append(list(variants))
        return {name: floor.harness.Timing(milliseconds.get(name, 100.0), 0.0, 0.0, 1) for name in variants}

    monkeypatch.setattr(floor.harness, "interleaved", interleaved)
    return seen, milliseconds


@pytest.mark.parametrize("fastest", ["copy", "multiply in place", "add in place", "streaming stores"])
def test_the_floor_is_the_least_over_the_forms(floor, timed, fastest):
    seen, milliseconds = timed
    milliseconds |= {"op": 50.0, f"stream: {fastest}": 1.0}
    timings, least = floor.interleaved({"op": lambda: None}, CPU, moved=3 * MEGABYTE, footprint=MEGABYTE)
    forms = floor.streams(CPU, MEGABYTE)
    assert seen == [["op", *(f"stream: {name}" for name in forms)]] and list(timings) == ["op"]
    times = {name: milliseconds.get(f"stream: {name}", 100.0) for name in forms}
    assert least.ms == min(3 * MEGABYTE / counted * times[name] for name, (counted, _) in forms.items())
    assert least.stream == fastest


def test_an_op_that_is_the_fastest_stream_is_at_its_floor(floor, timed):
    _, milliseconds = timed
    milliseconds |= {"op": 2.0, "stream: copy": 2.0}
    timings, least = floor.interleaved({"op": lambda: None}, CPU, moved=MEGABYTE, footprint=MEGABYTE)
    assert least.of(timings["op"])["percent_of_floor"] == 100.0


@pytest.mark.parametrize("threads", [1, 2])
def test_every_stream_passes_over_the_whole_footprint_and_keeps_its_values(floor, threads, monkeypatch):
    made = []
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *a, **k: made.append(ones(*a, **k)) or made[-1])
    torch.set_num_threads(threads)
    forms = floor.streams(CPU, MEGABYTE + 8)
    (whole,) = made
    assert whole.numel() * whole.element_size() == MEGABYTE + 8
    source, target = whole.chunk(2)
    for name in ("copy", "streaming stores"):
        source.copy_(torch.arange(source.numel()))
        target.zero_()
        forms[name][1]()
        assert torch.equal(target, source), name
    for name in ("multiply in place", "add in place"):
        before = whole.clone()
        forms[name][1]()
        assert torch.equal(whole, before), name


def test_a_footprint_names_the_smallest_cache_that_holds_it(floor, tmp_path, monkeypatch):
    levels = [("1", "Data", "48K", "0"), ("1", "Instruction", "64K", "0"), ("2", "Unified", "2M", "0")]
    for i, values in enumerate([*levels, ("3", "Unified", "32M", "0-7")]):
        (tmp_path / f"index{i}").mkdir()
        for name, value in zip(("level", "type", "size", "shared_cpu_list"), values, strict=True):
            (tmp_path / f"index{i}" / name).write_text(f"{value}\n")
    monkeypatch.setattr(floor, "CACHES", tmp_path)
    torch.set_num_threads(2)  # each with caches of its own, but for the last
    sizes = {96 * 2**10: "L1", 97 * 2**10: "L2", 4 * MEGABYTE: "L2", 5 * MEGABYTE: "L3", 33 * MEGABYTE: None}
    assert {size: floor.cache_that_holds(size, CPU) for size in sizes} == sizes
