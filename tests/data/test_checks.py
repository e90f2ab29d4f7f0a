"""Everything wrong with a source is found at once; messages name the file, the key, the row and what would be right."""

from __future__ import annotations

import numpy as np
import pytest

from pgm_fast.data import check, load
from pgm_fast.errors import DataError


def good(rows: int = 12) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "text": rng.standard_normal((rows, 3)),
        "audio": rng.standard_normal((rows, 5, 2)),
        "audio_lengths": np.arange(rows) % 5 + 1,
        "label": np.arange(rows) % 3,
        "split": np.array(["train", "valid", "test"])[np.arange(rows) // 4],
        "id": np.arange(rows),
        "speaker": np.arange(rows) // 2,
    }


def spoil(arrays, key, row, value):
    arrays[key] = arrays[key].astype(np.array([value]).dtype) if arrays[key].dtype.kind == "i" else arrays[key].copy()
    arrays[key][row] = value


BAD = {
    "unequal N": (lambda a: a.update(text=a["text"][:9]), {}, "text: 9 rows .* where audio has 12"),
    "label too few": (lambda a: a.update(label=a["label"][:9]), {}, "label: 9 rows .* has 12"),
    "negative label": (lambda a: spoil(a, "label", 4, -1), {}, "label, row 4: label -1 out of range"),
    "class beyond names": (
        lambda a: (a.update(class_names=np.array(list("abc"))), spoil(a, "label", 7, 3)),
        {},
        r"label, row 7: label 3 out of range: there are 3 classes, 0\.\.2",
    ),
    "gap in classes": (lambda a: spoil(a, "label", 5, 9), {}, "label, row 5: label 9 but no row holds class 3"),
    "classes from one": (
        lambda a: a.update(label=a["label"] + 1),
        {},
        "row 0: label 1 but no row holds class 0.*subtract 1",
    ),
    "fraction as class": (
        lambda a: a.update(label=np.full(12, 0.5)),
        {"task": "classification"},
        "label 0.5 is no class number.*task=regression",
    ),
    "multilabel value": (
        lambda a: a.update(label=np.arange(24).reshape(12, 2) // 6),
        {"task": "multilabel"},
        "row 6: label 2 out of range: multilabel needs 0 and 1",
    ),
    "label NaN": (
        lambda a: a.update(label=np.where(np.arange(12) == 3, np.nan, 1.0)),
        {},
        "label, row 3: 1 labels are NaN",
    ),
    "NaN": (
        lambda a: spoil(a, "text", (6, 1), np.nan),
        {},
        r"text, row 6: 1 NaN in shape \(12, 3\).*data.nonfinite=zero",
    ),
    "infinities": (
        lambda a: (spoil(a, "audio", (4, 3, 0), -np.inf), spoil(a, "audio", (9, 0, 1), np.inf)),
        {},
        r"audio, row 4: 1 \+inf, 1 -inf in shape \(12, 5, 2\)",
    ),
    "beyond float32": (lambda a: spoil(a, "text", (2, 0), 1e300), {}, r"text, row 2: 1 \+inf"),
    "length zero": (
        lambda a: spoil(a, "audio_lengths", 3, 0),
        {},
        r"audio_lengths, row 3: length 0 out of range.*1\.\.5",
    ),
    "length beyond": (lambda a: spoil(a, "audio_lengths", 8, 6), {}, r"audio_lengths, row 8: length 6 out of range"),
    "lengths of a vector": (lambda a: a.update(text_lengths=np.ones(12, int)), {}, "text_lengths: .*no sequence"),
    "repeated id": (lambda a: spoil(a, "id", 10, 2), {}, "id, row 10: id '2' is already in row 2"),
    "unknown split": (
        lambda a: spoil(a, "split", 5, "tests"),
        {},
        "split, row 5: 'tests' is not one of train, valid, test",
    ),
    "too few to split": (
        lambda a: [a.update({k: v[:2]}) for k, v in good().items()] and a.pop("split"),
        {},
        "2 rows: too few",
    ),
    "no train": (lambda a: a.update(split=np.repeat(["valid", "test"], 6)), {}, "split: no train rows"),
    "name of an attribute": (lambda a: a.update(train=a.pop("text")), {}, "modality name 'train' is reserved"),
    "name of a method": (lambda a: a.update(type=a.pop("text")), {}, "modality name 'type' is reserved"),
    "reserved name": (lambda a: a.update(shared=a.pop("text")), {}, "modality name 'shared' is reserved"),
    "four axes": (
        lambda a: a.update(image=np.ones((12, 2, 2, 2))),
        {},
        r"image: shape \(12, 2, 2, 2\): a modality is \[N, d\]",
    ),
    "name with dot": (lambda a: a.update({"a.b": np.ones((12, 2))}), {}, "modality name 'a.b' holds '.'"),
    "nothing present": (
        lambda a: a.update(presence=np.arange(24).reshape(12, 2) >= 4),
        {},
        r"presence, row 0: no modality is present \(2 such rows\)",
    ),
    "presence shape": (
        lambda a: a.update(presence=np.ones((12, 3), bool)),
        {},
        r"presence: shape \(12, 3\).*text, audio",
    ),
    "wrong label key": (
        lambda a: None,
        {"label": "lable"},
        r"no key 'lable'.*did you mean label\?.*holds text, audio",
    ),
    "wrong modality": (
        lambda a: None,
        {"modalities": ["txt"]},
        r"txt: no such modality \(did you mean text\?\); .* text, audio",
    ),
    "modality twice": (lambda a: None, {"modalities": ["text", "text"]}, "name each modality once"),
    "wrong task": (
        lambda a: None,
        {"task": "clasification"},
        "unknown task 'clasification'.*did you mean classification",
    ),
    "wrong format": (lambda a: None, {"format": "nzp"}, "unknown format 'nzp'.*did you mean npz"),
    "wrong nonfinite": (lambda a: None, {"nonfinite": "drop"}, "'drop' is not one of error, zero"),
    "options": (lambda a: None, {"options": {"kind": "xor"}}, "options.*'synthetic'"),
    "wrong group": (
        lambda a: a.pop("audio"),
        {"group_by": "speakr"},
        r"speakr: no such column for group_by \(did you mean speaker\?\); columns are",
    ),
    "group of sequences": (
        lambda a: None,
        {"group_by": "speaker"},
        r"audio: shape .*group_by makes sequences of vectors",
    ),
    "group in two splits": (
        lambda a: (a.pop("audio"), spoil(a, "speaker", 4, 1)),
        {"group_by": "speaker"},
        "split, row 4: group 1 holds train in row 2 and valid here: a group in two splits",
    ),
    "order alone": (lambda a: None, {"order_by": "id"}, "'id' orders nothing without group_by"),
    "no modality": (lambda a: (a.pop("text"), a.pop("audio")), {}, "no modality: no array of numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_each_mistake_is_named(tmp_path, case):
    change, arguments, message = BAD[case]
    arrays = good()
    change(arrays)
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match=message) as raised:
        load(tmp_path / "set.npz", **arguments)
    assert "set.npz" in str(raised.value) and "\n" not in str(raised.value)
    problems = check(tmp_path / "set.npz", **arguments)
    assert str(raised.value).startswith(str(problems[0]))


def test_a_good_file_has_no_problems(tmp_path):
    np.savez(tmp_path / "set.npz", **good())
    assert check(tmp_path / "set.npz") == []
    load(tmp_path / "set.npz")


def test_all_problems_are_found_at_once_and_loading_says_how_many(tmp_path):
    arrays = good()
    spoil(arrays, "label", 4, -1)
    spoil(arrays, "text", (6, 1), np.nan)
    spoil(arrays, "audio", (2, 0, 1), np.inf)
    spoil(arrays, "audio_lengths", 8, 6)
    spoil(arrays, "id", 10, 2)
    spoil(arrays, "split", 5, "tests")
    np.savez(tmp_path / "set.npz", **arrays)
    found = {(problem.key, problem.row) for problem in check(tmp_path / "set.npz")}
    assert found == {("label", 4), ("text", 6), ("audio", 2), ("audio_lengths", 8), ("id", 10), ("split", 5)}
    with pytest.raises(DataError, match=r"\(5 more problems; `pgm-fast check-data .*set.npz` lists all\)"):
        load(tmp_path / "set.npz")


def test_padding_and_absent_rows_may_hold_anything(tmp_path):
    arrays = good()
    arrays["presence"] = np.ones((12, 2), bool)
    arrays["presence"][3, 0] = arrays["presence"][5, 1] = False
    arrays["text"][3] = np.nan
    arrays["audio"][5] = np.inf
    arrays["audio_lengths"][5] = 0
    arrays["audio"][0, 1:] = np.nan
    np.savez(tmp_path / "set.npz", **arrays)
    assert check(tmp_path / "set.npz") == []
    assert load(tmp_path / "set.npz").lengths["audio"].min() == 1


def test_nonfinite_zero_reads_them_as_zero(tmp_path):
    arrays = good()
    expected = arrays["text"].copy()
    for row, value in ((1, np.nan), (2, np.inf), (3, -np.inf)):
        arrays["text"][row, 0] = value
        expected[row, 0] = 0
    np.savez(tmp_path / "set.npz", **arrays)
    assert [problem.severity for problem in check(tmp_path / "set.npz", nonfinite="zero")] == ["note"]
    assert np.array_equal(load(tmp_path / "set.npz", nonfinite="zero").modalities["text"], expected)


def test_constant_features_are_a_note(tmp_path):
    arrays = good()
    arrays["text"][:, 1] = 0.1
    np.savez(tmp_path / "set.npz", **arrays)
    [problem] = check(tmp_path / "set.npz")
    assert problem.severity == "note" and problem.key == "text" and "1 of 3 features" in problem.message
    load(tmp_path / "set.npz")


def test_integer_arrays_are_not_taken_silently(tmp_path):
    arrays = {**good(), "pixels": np.arange(48, dtype=np.uint8).reshape(12, 4)}
    np.savez(tmp_path / "set.npz", **arrays)
    [problem] = check(tmp_path / "set.npz")
    assert problem.severity == "warning" and "data.modalities=[...]" in problem.message
    features = load(tmp_path / "set.npz", modalities=["pixels", "text"])
    assert np.array_equal(features.modalities["pixels"], arrays["pixels"])


def test_fractions_one_per_row_are_said_to_be_no_modality(tmp_path):
    arrays = {**good(), "age": np.linspace(0, 1, 12), "year": np.arange(12)}
    np.savez(tmp_path / "set.npz", **arrays)
    [problem] = check(tmp_path / "set.npz")
    assert (problem.severity, problem.key) == ("warning", "age") and "store [N, 1]" in problem.message
    assert check(tmp_path / "set.npz", ignore=["age"]) == []
    np.savez(tmp_path / "set.npz", **{**arrays, "age": arrays["age"][:, None]})
    assert "age" in load(tmp_path / "set.npz").modalities


@pytest.mark.parametrize("label", [np.arange(12), np.array(list("abcdefghijkl"))], ids=["numbers", "names"])
def test_a_class_for_every_row_is_doubted(tmp_path, label):
    np.savez(tmp_path / "set.npz", **{**good(), "label": label})
    [problem] = check(tmp_path / "set.npz")
    assert problem.severity == "warning" and "data.task=regression?" in problem.message


def test_rows_that_lack_a_modality_are_no_nan_beside_another_error(tmp_path):
    arrays = good()
    arrays["text"][[2, 7]] = np.nan
    np.savez(tmp_path / "set.npz", **{**arrays, "label": arrays["label"][:9]})
    assert [problem.key for problem in check(tmp_path / "set.npz")] == ["label"]


def test_a_file_that_may_not_be_read_is_said_to_be_one(monkeypatch, tmp_path):
    np.savez(tmp_path / "set.npz", **good())

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pgm_fast.data.readers.generic.unpack_npz", refused)
    with pytest.raises(DataError, match="may not be read by this user; change its permissions"):
        load(tmp_path / "set.npz")


def test_a_missing_file_is_named_with_near_names(tmp_path):
    np.savez(tmp_path / "features.npz", **good())
    with pytest.raises(DataError, match=r"fetures.npz: no such file or folder \(did you mean features.npz\?\)"):
        load(tmp_path / "fetures.npz")
    with pytest.raises(DataError, match="did you mean digits"):
        load("digit")
    with pytest.raises(DataError, match="nor its folder"):
        load(tmp_path / "nowhere" / "features.npz")
    assert len(check(tmp_path / "fetures.npz")) == 1


def test_a_problem_in_a_folder_names_the_array_s_own_file(tmp_path):
    arrays = good()
    spoil(arrays, "text", (6, 1), np.nan)
    for key, array in arrays.items():
        np.save(tmp_path / f"{key}.npy", array)
    with pytest.raises(DataError, match=r"text\.npy: text, row 6: 1 NaN"):
        load(tmp_path)


def test_other_kinds_of_files_are_refused_with_the_kinds_that_are_read(tmp_path):
    (tmp_path / "a.xyz").write_text("1,2\n")
    with pytest.raises(DataError, match=r"unknown kind of file '\.xyz'.*\.npz.*one of npz"):
        load(tmp_path / "a.xyz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"a folder without \.npy files"):
        load(tmp_path / "empty")
    with pytest.raises(DataError, match="format 'folder' is a folder, and this is none"):
        load(tmp_path / "a.xyz", format="folder")
    with pytest.raises(DataError, match="unknown option 'nose'.*did you mean noise"):
        load("synthetic", options={"nose": 1})


def test_a_set_without_test_rows_loads_with_a_note(tmp_path):
    np.savez(tmp_path / "set.npz", **{**good(), "split": np.repeat(["train", "valid"], 6)})
    [problem] = check(tmp_path / "set.npz")
    assert problem.severity == "note" and "no test rows" in problem.message
    assert not len(load(tmp_path / "set.npz").rows("test"))


@pytest.mark.parametrize(
    ("label", "advice"),
    [
        (np.arange(12) % 3.0, "data.task=classification?"),
        (np.eye(3, dtype=int)[np.arange(12) % 3], "data.labels=onehot for classes?"),
        (np.eye(3)[np.arange(12) % 3], "data.labels=onehot for classes?"),
    ],
)
def test_labels_that_look_like_classes_are_a_warning_until_the_task_is_named(tmp_path, label, advice):
    np.savez(tmp_path / "set.npz", **{**good(), "label": label})
    [problem] = check(tmp_path / "set.npz")
    assert problem.severity == "warning" and advice in problem.message
    task = "regression" if label.dtype.kind == "f" else "multilabel"
    assert load(tmp_path / "set.npz").task == task
    assert check(tmp_path / "set.npz", task=task) == []


@pytest.mark.parametrize("label", [np.arange(12) / 2, np.arange(12.0), np.arange(24).reshape(12, 2) % 3 % 2])
def test_other_labels_raise_no_doubt(tmp_path, label):
    np.savez(tmp_path / "set.npz", **{**good(), "label": label})
    assert check(tmp_path / "set.npz") == []


UNREAD = {
    "text of two axes": np.full((12, 2), "a"),
    "truth values": np.ones((12, 2), bool),
    "a single number": np.array(3.0),
    "a column of another length": np.arange(5),
}


@pytest.mark.parametrize("case", UNREAD)
def test_an_array_that_is_not_read_is_an_error_whose_advice_works(tmp_path, case):
    np.savez(tmp_path / "set.npz", **good(), extra=UNREAD[case])
    [problem] = check(tmp_path / "set.npz")
    assert problem.severity == "error" and problem.key == "extra" and "data.ignore=[extra]" in problem.message
    assert check(tmp_path / "set.npz", ignore=["extra"]) == []
    assert list(load(tmp_path / "set.npz", modalities=["text"]).modalities) == ["text"]
    # a trained model says what it needs: whatever else lies in the file does no harm, but is said
    assert [p.severity for p in check(tmp_path / "set.npz", apply=True)] == ["warning"]


def test_what_is_ignored_must_be_there(tmp_path):
    np.savez(tmp_path / "set.npz", **good())
    with pytest.raises(DataError, match=r"audo: to be ignored.*did you mean audio"):
        load(tmp_path / "set.npz", ignore=["audo"])
    assert list(load(tmp_path / "set.npz", ignore=["audio"]).modalities) == ["text"]


@pytest.mark.parametrize("nonfinite", ["error", "zero"])
def test_rows_of_nan_lack_the_modality(tmp_path, nonfinite):
    arrays = good()
    arrays["text"][[2, 7]] = np.nan
    arrays["audio"][3] = np.nan
    arrays["audio"][4, arrays["audio_lengths"][4] :] = 7
    arrays["audio"][4, : arrays["audio_lengths"][4]] = np.nan
    np.savez(tmp_path / "set.npz", **arrays)
    found = check(tmp_path / "set.npz", nonfinite=nonfinite)
    assert [(p.severity, p.key, p.row) for p in found] == [("warning", "text", 2), ("warning", "audio", 3)]
    presence = load(tmp_path / "set.npz", nonfinite=nonfinite).presence
    assert np.argwhere(~presence).tolist() == [[2, 0], [3, 1], [4, 1], [7, 0]]


def test_rows_of_nan_in_every_modality_and_a_modality_of_nan_alone_are_errors(tmp_path):
    arrays = good()
    arrays["text"][2], arrays["audio"][2] = np.nan, np.nan
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match="row 2: no modality is present"):
        load(tmp_path / "set.npz")
    arrays = good()
    arrays["text"][:] = np.nan
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match=r"text: every row is NaN; leave it out by data\.ignore=\[text\]"):
        load(tmp_path / "set.npz")
    assert check(tmp_path / "set.npz", ignore=["text"]) == []


def test_a_row_of_nan_inside_of_a_sequence_is_a_gap_and_a_whole_one_is_absent(tmp_path):
    arrays = good()
    arrays["video"] = arrays.pop("audio")[:, 0].copy()
    arrays.pop("audio_lengths")
    arrays["text"][[2, 3, 6]] = np.nan  # speaker 1, and half of speaker 3
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match="text, row 6: 1 rows are NaN and others with the same 'speaker' are not"):
        load(tmp_path / "set.npz", group_by="speaker")
    features = load(tmp_path / "set.npz", group_by="speaker", nonfinite="zero")
    assert np.argwhere(~features.presence).tolist() == [[1, 0]]
    assert not features.modalities["text"][3, 0].any() and features.modalities["text"][3, 1].any()
