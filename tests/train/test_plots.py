"""Plots appear for whatever a run's results allow, are the same every time, and touch no display or global state."""

from __future__ import annotations

import threading

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.image import imread
from tolerances import FP64, SHARES_ROUNDED_7, steps

from pgm_fast.data.feature_set import DataSpec, ModalitySpec
from pgm_fast.errors import CheckpointError, ConfigError
from pgm_fast.train.report.contents import build_report
from pgm_fast.train.report.plots import draw_competition, draw_run
from pgm_fast.train.report.plots.canvas import colours, label_text
from pgm_fast.train.report.plots.curves import learning_curves
from pgm_fast.train.report.plots.dimensions import competition_curves, effective_map
from pgm_fast.train.report.plots.outcome import confusion_matrix, match_curves
from pgm_fast.train.report.plots.shares import EXPECTED, Shares, class_map, compared_shares, share_bars
from pgm_fast.train.run.json_files import json_line, write_json
from pgm_fast.train.scores.metrics import METRICS, evaluate_predictions, primary_metric
from pgm_fast.train.scores.predictions import Predictions
from pgm_fast.train.scores.shares import PARTITIONS, class_shares, mean_shares, share_intervals

OUTCOME = {"classification": "confusion", "multilabel": "labels", "regression": "scatter", "retrieval": "ranks"}


def finished_run(
    task: str, modalities=("left", "right"), outputs: int = 3, partitions: int = 2, n: int = 40, epochs: int = 3
):
    """Records, report, predictions and spec of a run that never took place."""
    rng = np.random.default_rng(0)
    spec = DataSpec({m: ModalitySpec(4) for m in modalities}, task, outputs)
    truth = rng.normal(size=(n, max(outputs, 2)))
    predictions = Predictions(np.arange(n))
    if task == "retrieval":
        for m in modalities:
            embedding = truth + rng.normal(size=truth.shape)
            predictions.embeddings[m] = (embedding / np.linalg.norm(embedding, axis=1, keepdims=True)).astype(
                np.float32
            )
    else:
        predictions.labels = {
            "classification": truth.argmax(axis=1) % outputs,
            "multilabel": (truth > 0).astype(np.float32)[:, :outputs],
            "regression": truth.astype(np.float32)[:, :outputs].squeeze(),
        }[task]
        predictions.logits = (truth + 0.5 * rng.normal(size=truth.shape)).astype(np.float32)[:, :outputs]
        predictions.unimodal = {m: predictions.logits for m in modalities}
    predictions.shares = {m: rng.dirichlet(np.ones(partitions), n) for m in modalities}
    predictions.features = {f"{m}/{p}": rng.normal(size=(n, 5)) for m in modalities for p in ("uni", "paired")}
    scores = evaluate_predictions(task, predictions, outputs)
    shares = mean_shares(predictions)
    records = [
        {
            "stage": "first" if epoch < 2 else "second",
            "epoch": epoch,
            "train": {"total": 1 / epoch, "task": 0.5 / epoch},
            "valid": {**scores, "losses": {"total": 1.1 / epoch}},
            "shares": shares,
            "lr": {"all": 1e-3},
            "samples_per_s": 10.0,
            "skipped_steps": 0,
            "seconds": 1.0,
        }
        for epoch in range(1, epochs + 1)
    ]
    report = build_report(
        method="pgm",
        data="made",
        task=task,
        seed=0,
        epochs=epochs,
        best_epoch=epochs,
        backend="torch",
        valid=scores,
        test=scores,
        shares=shares,
        timing={"seconds": 1.0},
    )
    return records, report, predictions, spec


@pytest.mark.parametrize("task", METRICS)
def test_every_task_gets_its_plots_and_the_same_ones_again(tmp_path, task):
    run = finished_run(task, partitions=4 if task == "retrieval" else 2)
    drawn = draw_run(tmp_path / "a", *run)
    assert drawn == [f"plots/{name}.png" for name in ("learning_curves", "shares", OUTCOME[task], "projection")]
    for plot in drawn:
        picture = imread(tmp_path / "a" / plot)
        assert min(picture.shape[:2]) > 200 and picture[..., :3].std() > 0.01, f"{plot} is empty"  # a blank page has 0
    assert sorted(f"plots/{path.name}" for path in (tmp_path / "a" / "plots").iterdir()) == sorted(drawn)
    if task == "classification":
        assert draw_run(tmp_path / "b", *run) == drawn
        for plot in drawn:
            assert (tmp_path / "a" / plot).read_bytes() == (tmp_path / "b" / plot).read_bytes()


def test_what_is_missing_is_skipped(tmp_path):
    records, report, predictions, spec = finished_run("classification")
    bare = Predictions(predictions.index, predictions.labels, predictions.logits)
    assert draw_run(tmp_path, records, {**report, "shares": {}}, bare, spec) == [
        "plots/learning_curves.png",
        "plots/confusion.png",
    ]
    assert (
        draw_run(tmp_path / "none", [], {**report, "shares": {}}, Predictions(np.zeros(0, dtype=np.int64)), spec) == []
    )
    assert not (tmp_path / "none").exists()


def test_odd_values_and_names_are_drawn(tmp_path):
    modalities = ("a$b$", "with/slash", "x" * 60)
    records, report, predictions, spec = finished_run("classification", modalities, epochs=2)
    records[0]["train"]["total"] = None
    records[1]["valid"] = {"fused": {}, "unimodal": {}, "losses": {}}
    predictions.presence = {"with/slash": np.zeros(40, dtype=bool)}
    predictions.features["a$b$/uni"] = np.zeros((40, 1))
    assert len(draw_run(tmp_path, records, report, predictions, spec, ["$", "\\frac", "très long " * 9])) == 4
    assert label_text("$x$") == r"\$x\$" and len(label_text("x" * 60)) == 24


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_many_modalities_and_outputs_stay_one_readable_page(tmp_path, task):
    run = finished_run(task, [f"m{i}" for i in range(9)], outputs=70, n=150, epochs=1)
    for plot in draw_run(tmp_path, *run):
        height, width = imread(tmp_path / plot).shape[:2]
        assert width < 1600 and height < 4000


def test_confusion_shows_the_counts():
    _, _, predictions, spec = finished_run("classification")
    figure = confusion_matrix(predictions, spec, ["0", "1", "2"])
    shown = {
        (int(text.get_position()[1]), int(text.get_position()[0])): int(text.get_text())
        for text in figure.axes[0].texts
    }
    for true in range(3):
        for guess in range(3):
            count = int(((predictions.labels == true) & (predictions.logits.argmax(axis=1) == guess)).sum())
            assert shown.get((true, guess), 0) == count


def test_learning_curves_show_the_records():
    records, report, _, _ = finished_run("regression")
    figure = learning_curves(records, report)
    lines = {line.get_label(): line.get_ydata() for axes in figure.axes for line in axes.get_lines()}
    assert lines["training"] == pytest.approx([1.0, 1 / 2, 1 / 3], abs=FP64)
    assert lines["validation"] == pytest.approx([1.1, 1.1 / 2, 1.1 / 3], abs=FP64)
    name, _ = primary_metric("regression")
    for modality in ("left", "right"):
        assert lines[modality] == pytest.approx([records[0]["valid"]["unimodal"][modality][name]] * 3, abs=FP64)
    assert all(" second" in [text.get_text() for text in axes.texts] for axes in figure.axes), (
        "the second stage is marked"
    )


def test_match_curve_passes_through_the_recalls():
    _, report, predictions, spec = finished_run("retrieval")
    lines = {line.get_label(): line for line in match_curves(predictions, spec, []).axes[0].get_lines()}
    found = dict(zip(*lines["left → right"].get_data(), strict=True))
    for k in (1, 5, 10):
        assert found[k] == pytest.approx(report["test"]["pairs"]["left->right"][f"recall_at_{k}"], abs=FP64)


def bars_of(figure):
    """[column][row] -> length, of the bars; None for a heading."""
    columns = [axes for axes in figure.axes if axes.patches]
    rows = len(columns[0].get_yticks())
    return [
        [
            next((bar.get_width() for bar in axes.patches if bar.get_y() < row < bar.get_y() + 1), None)
            for axes in columns
        ]
        for row in range(rows)
    ]


@pytest.mark.parametrize("partitions", [2, 4])
def test_share_bars_of_a_modality_make_one_and_show_the_random_expectation(partitions):
    records, report, _, _ = finished_run("classification", partitions=partitions)
    figure = share_bars(records, report)
    assert [sum(row) for row in bars_of(figure)] == pytest.approx([1.0, 1.0], abs=SHARES_ROUNDED_7)
    assert bars_of(figure)[0] == list(report["shares"]["left"].values())
    lines = [axes.get_lines()[0].get_xdata()[0] for axes in figure.axes[:partitions]]
    assert lines == pytest.approx([1 / 2] * 2 if partitions == 2 else [1 / 3, 1 / 3, 1 / 6, 1 / 6], abs=FP64)


def test_measured_shares_have_their_meaning_their_intervals_and_their_way_there():
    records, report, predictions, _ = finished_run("classification", partitions=4)
    report |= {"calibration": {"temperature": {"task": 1.0}}, "share_intervals": share_intervals(predictions)}
    figure = share_bars(records, report)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:4] == ["unique", "synergistic", "redundant", "unused"]
    for axes, name in zip(figure.axes[:4], PARTITIONS[4], strict=True):
        low, high = axes.collections[0].get_segments()[0][:, 0]
        mean, half = report["shares"]["left"][name], report["share_intervals"]["left"][name]
        assert (low, high) == pytest.approx((mean - half, mean + half), abs=FP64)
    for axes, name in zip(figure.axes[4:], PARTITIONS[4], strict=True):
        lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
        assert lines["right"] == pytest.approx([record["shares"]["right"][name] for record in records], abs=FP64)


def test_shares_by_class_are_those_of_the_rows_of_each_class():
    _, report, predictions, _ = finished_run("classification", partitions=4)
    predictions.presence = {"left": np.arange(40) % 3 > 0}
    report["shares_by_class"] = class_shares(predictions, "classification", ["x", "y", "z"])
    figure = class_map(report)
    shown = figure.axes[2].images[0].get_array()  # of the mass "shared"
    for k in range(3):
        rows = predictions.labels == k
        want = (
            predictions.shares["right"][rows].mean(0)[2],
            predictions.shares["left"][rows & predictions.presence["left"]].mean(0)[2],
        )
        assert (shown[k, 1], shown[k, 0]) == pytest.approx(want, abs=SHARES_ROUNDED_7)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["x", "y", "z"]
    assert class_map(report | {"shares_by_class": {}}) is None
    assert class_shares(predictions, "regression") == {}


def test_runs_of_any_partitions_are_compared_in_one_picture():
    means = {"a": {"uni_only": 0.5, "paired_only": 0.1, "shared": 0.2, "unused": 0.2}}
    figure = compared_shares(
        {"one": Shares(means), "plain": Shares({}), "two": Shares({"b": {"uni": 0.3, "paired": 0.7}})}
    )
    assert bars_of(figure) == [[None] * 6, [0.5, 0.1, 0.2, 0.2, None, None], [None] * 6, [None] * 4 + [0.3, 0.7]]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["one", "a", "two", "b"]
    assert compared_shares({"plain": Shares({})}) is None


def test_random_expectation_is_that_of_equal_gate_logits():
    paired = np.arange(1, 4097) / 4096  # cumsoftmax of equal logits
    entry = 1 - paired
    single = [1 - paired, paired]
    dual = [entry * (1 - paired), (1 - entry) * paired, entry * paired, (1 - entry) * (1 - paired)]
    for masses in (single, dual):
        assert [mass.mean() for mass in masses] == pytest.approx(EXPECTED[PARTITIONS[len(masses)]], abs=steps(4096))


def test_colours_are_distinct():
    for count in (1, 6, 7, 10, 20, 40):
        assert len({to_hex(colour) for colour in colours(count)}) == count


def test_threads_draw_at_the_same_time(tmp_path):
    run = finished_run("regression", outputs=1)
    draw_run(tmp_path / "alone", *run)
    threads = [threading.Thread(target=draw_run, args=(tmp_path / str(i), *run)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for path in (tmp_path / "alone" / "plots").iterdir():
        for i in range(2):
            assert (tmp_path / str(i) / "plots" / path.name).read_bytes() == path.read_bytes()


def test_drawing_touches_no_global_state_and_no_display(tmp_path, monkeypatch):
    settings = dict(matplotlib.rcParams)
    monkeypatch.setattr(pyplot, "new_figure_manager", lambda *args, **kwargs: pytest.fail("a window was opened"))
    assert draw_run(tmp_path, *finished_run("regression", outputs=1))
    assert dict(matplotlib.rcParams) == settings
    assert pyplot.get_fignums() == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "plots").write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match=r"plots/learning_curves\.png"):
        draw_run(tmp_path, *finished_run("regression"))


def test_effective_dimensions_are_drawn_where_they_were_measured(tmp_path):
    records, report, predictions, spec = finished_run("classification")
    assert "plots/effective_dimensions.png" not in draw_run(tmp_path, records, report, predictions, spec)
    found = {"accuracy": [0.2, 0.9, 0.4], "effective": [False, True, False]}
    report["effective_dimensions"] = {"left": found, "right": found}
    assert "plots/effective_dimensions.png" in draw_run(tmp_path, records, report, predictions, spec)
    figure = effective_map(report)
    assert figure.axes[1].get_title(loc="left") == "Effective: above the modality's mean (left 1, right 1)"
    shown = [image.get_array() for axes in figure.axes for image in axes.get_images()]
    assert np.array_equal(shown[0], [found["accuracy"]] * 2) and np.array_equal(shown[1], [found["effective"]] * 2)


def test_competition_is_drawn_from_run_folders(tmp_path):
    for name, method in (("alone", "unimodal"), ("one", "joint"), ("two", "joint"), ("other", "pgm")):
        records, report, _, _ = finished_run("classification")
        report["method"] = method
        report["data"] = "made otherwise" if name == "other" else "made"
        write_json(tmp_path / name / "report.json", report)
        (tmp_path / name / "metrics.jsonl").write_text("".join(map(json_line, records)))
    out = tmp_path / "competition.png"
    draw_competition([tmp_path / "one", tmp_path / "two"], tmp_path / "alone", out)
    assert imread(out).shape[2] == 4
    with pytest.raises(ConfigError, match="differ in data: made, made otherwise"):
        draw_competition([tmp_path / "other"], tmp_path / "alone", out)
    with pytest.raises(ConfigError, match="is a run of joint, must be of unimodal"):
        draw_competition([tmp_path / "one"], tmp_path / "two", out)


def test_competition_has_a_panel_per_modality_with_every_run_and_alone():
    records, _, _, _ = finished_run("classification")
    figure = competition_curves(
        {"joint": records, "dimml": records}, {"left": records, "right": records}, "classification"
    )
    assert [[line.get_label() for line in axes.get_lines()[:3]] for axes in figure.axes] == [
        ["joint", "dimml", "alone"]
    ] * 2
    want = [record["valid"]["unimodal"]["left"]["accuracy"] for record in records]
    assert figure.axes[0].get_lines()[0].get_ydata().tolist() == want
    assert competition_curves({"joint": records}, {}, "classification") is None
