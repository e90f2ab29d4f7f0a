"""The method table says what its result files say, and the files are completed, not repeated."""

from __future__ import annotations

import importlib.util
import json
import shlex
import statistics
import sys

import pytest

from pgm_fast.train.configure import make_config, to_dict


@pytest.fixture(scope="module")
def method_table(repository):
    spec = importlib.util.spec_from_file_location("method_table", repository / "benchmarks" / "method_table.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "method_table", module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def small(method_table, tmp_path):
    """Two methods, two seeds, one epoch on digits."""
    asked = ["--tasks", "digits", "--methods", "joint", "pgm-dual", "--seeds", "0", "1"]
    quick = ["--set", "train.epochs=1", "model.dim=8", "model.hidden=8", "model.heads=2"]
    return [*asked, "--out", str(tmp_path / "methods"), *quick]


def test_results_of_record_agree_with_their_table(method_table):
    if not list(method_table.RESULTS.glob("*.json")):
        pytest.skip(f"no results of record in {method_table.RESULTS}")
    assert method_table.main(["--check"]) == 0


def test_table_is_made_completed_and_checked(method_table, small, tmp_path, monkeypatch):
    out = tmp_path / "methods"
    assert method_table.main(small) == 0
    content = json.loads((out / "digits.json").read_text())
    assert [(run["method"], run["seed"]) for run in content["runs"]] == [
        ("joint", 0),
        ("joint", 1),
        ("pgm-dual", 0),
        ("pgm-dual", 1),
    ]
    for run in content["runs"]:
        assert (
            run["config"]["train"]["epochs"] == 1 and run["versions"]["torch"] and run["report"]["seed"] == run["seed"]
        )
    assert str(tmp_path) not in (out / "digits.json").read_text(), "no path of this machine is kept"

    row = next(line for line in (out / "table.md").read_text().splitlines() if line.startswith("| digits"))
    reached = [100 * run["report"]["test"]["fused"]["accuracy"] for run in content["runs"] if run["method"] == "joint"]
    expected = f"{statistics.mean(reached):.1f} ± {statistics.stdev(reached):.1f}"
    assert [cell.strip() for cell in row.split("|")[3:8]][:3] == ["–", expected, "–"]

    trained = []
    fit = method_table.fit

    def counted(config):
        trained.append((config.method, config.train.seed))
        return fit(config)

    monkeypatch.setattr(method_table, "fit", counted)
    assert method_table.main(small) == 0 and trained == [], "what is there is not trained again"
    more = [argument if argument != "1" else "2" for argument in small[: small.index("--out")]] + small[
        small.index("--out") :
    ]
    assert method_table.main(more) == 0 and trained == [("joint", 2), ("pgm", 2)]
    assert "joint --seeds 0 1 2" in (out / "table.md").read_text()

    assert method_table.main(["--check", "--out", str(out)]) == 0
    content["runs"][0]["report"]["test"]["fused"]["accuracy"] += 0.5
    (out / "digits.json").write_text(json.dumps(content))
    assert method_table.main(["--check", "--out", str(out)]) == 1
    assert method_table.main(["--tasks", "--out", str(out)]) == 0
    assert method_table.main(["--check", "--out", str(out)]) == 0


def test_another_configuration_is_trained_again(method_table, small, tmp_path):
    once = ["--seeds", "0", "--methods", "joint"]
    assert method_table.main([*small, *once]) == 0
    assert (
        method_table.main([*small, *once, "--set", "train.epochs=1", "model.dim=4", "model.hidden=4", "model.heads=2"])
        == 0
    )
    (run,) = json.loads((tmp_path / "methods" / "digits.json").read_text())["runs"]
    assert run["config"]["model"]["dim"] == 4


def test_a_task_without_its_file_is_skipped_by_name(method_table, small, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PGM_FAST_DATA", str(tmp_path / "nowhere"))
    assert method_table.main([*small, "--tasks", "mosi", "mfeat-retrieval"]) == 0
    said = capsys.readouterr().out
    assert "mosi: skipped, mosi.npz is not in" in said and "mfeat-retrieval: skipped" in said
    assert list((tmp_path / "methods").glob("*.json")) == []


def test_every_command_gives_the_configuration_that_was_run(method_table):
    for task, what in method_table.TASKS.items():
        for method in method_table.METHODS:
            settings = method_table.settings_of(task, method)
            words = shlex.split(method_table.command_of(task, method, [{"seed": 0, "settings": settings}]))
            options = {word: words[number + 1] for number, word in enumerate(words) if word.startswith("--")}
            overrides = [word for word in words if "=" in word]
            assert options["--data"].endswith(what.source) and options["--seeds"] == "0"
            by_hand = make_config(None, [*overrides, f"method={options['--method']}"])
            assert to_dict(by_hand) == to_dict(make_config(None, settings))


@pytest.mark.parametrize("task", ["mfeat-fou-mor", "mosi", "mosi-context", "mfeat-retrieval"])
def test_real_tasks_are_read_and_scored(method_table, task, real_data, tmp_path, monkeypatch):
    monkeypatch.setenv("PGM_FAST_DATA", str(real_data))
    asked = ["--tasks", task, "--methods", "unimodal", "pgm-single", "--seeds", "0", "--out", str(tmp_path)]
    quick = ["--set", "train.epochs=1", "model.dim=8", "model.hidden=8", "model.heads=2"]
    assert method_table.main([*asked, *quick]) == 0
    runs = json.loads((tmp_path / f"{task}.json").read_text())["runs"]
    # Retrieval has no labels, so a single modality has nothing to learn from.
    assert [run["method"] for run in runs] == (
        ["pgm-single"] if task == "mfeat-retrieval" else ["unimodal", "pgm-single"]
    )
    assert "(one seed)" in (tmp_path / "table.md").read_text()
