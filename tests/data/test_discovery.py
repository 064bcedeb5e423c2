import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretraining.data import DataError, Scan, Skipped, find_scans, leave_out, with_joint_channels
from pretraining.data.scan import summarise_skipped

Write = Callable[..., Path]


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "nnUNet_raw"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_raw", str(folder))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    monkeypatch.delenv("nnUNet_results", raising=False)
    return folder


def make_dataset(folder: Path, files: list[str], channels: dict[str, str], **more: Any) -> Path:
    """A dataset of empty image files: finding scans opens none of them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"channel_names": channels, "file_ending": ".nii.gz", **more}))
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


@pytest.mark.parametrize("source", ["501", "Dataset501_X", "folder"])
def test_dataset_is_found_by_id_name_and_folder(raw: Path, source: str) -> None:
    files = ["imagesTr/b_0000.nii.gz", "imagesTr/a_0000.nii.gz", "imagesTs/c_0000.nii.gz", "imagesTr/._a_0000.nii.gz"]
    folder = make_dataset(raw / "Dataset501_X", files, {"0": "CT"})
    scans, skipped = find_scans([str(folder) if source == "folder" else source])
    assert [scan.name for scan in scans] == ["a", "b", "c"]
    assert skipped == []
    assert {(scan.source, scan.store, scan.channels, scan.is_ct, scan.reader) for scan in scans} == {
        ("Dataset501_X", "Dataset501_X", ("CT",), (True,), "SimpleITKIO")
    }
    assert pickle.loads(pickle.dumps(scans)) == scans


def test_channels_keep_their_order_and_incomplete_cases_are_skipped(raw: Path) -> None:
    files = [
        f"imagesTr/{case}_000{c}.nii.gz" for case, c in [("a", 1), ("a", 0), ("b", 0), ("c", 0), ("c", 1), ("c", 2)]
    ]
    make_dataset(raw / "Dataset002_MR", [*files, "imagesTr/stray.nii.gz"], {"1": "FLAIR", "0": "ct"})
    scans, skipped = find_scans(["2"])
    assert [Path(file).name for file in scans[0].files] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert [(scan.channels, scan.is_ct) for scan in scans] == [(("ct", "FLAIR"), (True, False))]
    reasons = {item.name: item.reason for item in skipped}
    assert "b_0001.nii.gz (FLAIR) is missing" in reasons["b"]
    assert "c_0002.nii.gz" in reasons["c"]
    assert "channel number" in reasons["stray.nii.gz"]


def test_listed_images_are_used_as_nnunet_does(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "one.nii.gz").touch()
    monkeypatch.setenv("ELSEWHERE", str(elsewhere))
    listed = {
        "case1": {"images": ["$ELSEWHERE/one.nii.gz"], "label": "unused.nii.gz"},
        "case2": {"images": ["../Dataset003_L/x.nii.gz"]},
        "case3": {"images": ["gone.nii.gz"]},
    }
    make_dataset(raw / "Dataset003_L", ["x.nii.gz", "imagesTs/t_0000.nii.gz"], {"0": "MRI"}, dataset=listed)
    scans, skipped = find_scans(["Dataset003_L"])
    assert {scan.name: scan.is_ct for scan in scans} == {"case1": (False,), "case2": (False,), "t": (False,)}
    assert all(Path(scan.files[0]).is_file() for scan in scans)
    assert [item.name for item in skipped] == ["case3"]


def test_other_files_of_a_data_set_are_counted(raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = ["imagesTr/a_0000.nii.gz", "imagesTr/notes.txt", "imagesTs/b.dcm", "imagesTr/._a_0000.nii.gz"]
    make_dataset(raw / "Dataset005_O", [*files, "labelsTr/a.nii.gz"], {"0": "CT"})
    with caplog.at_level(logging.WARNING):
        assert len(find_scans(["5"])[0]) == 1
    line = "Dataset005_O: ignored files that are not scans: 1 hidden, 1 .txt, 1 .dcm"
    assert caplog.messages == [line]


def test_modality_overrides_the_channel_names(raw: Path) -> None:
    make_dataset(raw / "Dataset004_C", ["imagesTr/a_0000.nii.gz"], {"0": "CT"})
    assert find_scans(["4"], "mr")[0][0].is_ct == (False,)
    with pytest.raises(DataError, match="pet"):
        find_scans(["4"], "pet")


def test_plain_folder_is_searched_and_labels_are_passed_over(tmp_path: Path) -> None:
    files = ["a.nii.gz", "x/b.nii", "x/c.nrrd", "x/y/d.mha", "e.mhd", "labelsTr/a.nii.gz", "e.raw", "x/.hidden.nii.gz"]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    scans, _ = find_scans([str(tmp_path)])
    assert sorted(scan.name for scan in scans) == ["a", "b", "c", "d", "e"]
    assert {scan.is_ct for scan in scans} == {(True,)}
    assert {scan.is_ct for scan in find_scans([str(tmp_path)], "mr")[0]} == {(False,)}


def test_names_are_safe_unique_and_recognisable(tmp_path: Path) -> None:
    for file in ["one/scan.nii.gz", "one/Müller 1.nii.gz", "two/p1/scan.nii.gz", "two/p2/SCAN.nii.gz"]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    scans, _ = find_scans([str(tmp_path / "one"), str(tmp_path / "two")])
    assert [scan.name for scan in scans] == ["Müller_1", "scan", "p1_scan", "p2_SCAN"]
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "scan.nii.gz").touch()
    pooled, _ = find_scans([str(tmp_path / "one"), str(tmp_path / "three")])
    assert [scan.name for scan in pooled] == ["Müller_1", "one_scan", "three_scan"]
    # The pool must not change which file a scan's volume lies in.
    assert [(s.store, s.identifier) for s in pooled[:2]] == [(s.store, s.identifier) for s in scans[:2]]


def test_dicom_series_are_ordered_in_space_and_kept_apart(
    tmp_path: Path, write_dicom: Write, ct_values: np.ndarray
) -> None:
    write_dicom(tmp_path / "patient" / "thin", ct_values)
    write_dicom(tmp_path / "both", ct_values, uid="1.2.826.0.1.4")
    write_dicom(tmp_path / "both", ct_values[:5], uid="1.2.826.0.1.5")
    write_dicom(tmp_path / "both", ct_values[:1], uid="1.2.826.0.1.6", modality="SEG")
    (tmp_path / "patient" / "notes.txt").write_text("no image")
    scans, skipped = find_scans([str(tmp_path)])
    assert {scan.name: len(scan.files) for scan in scans} == {"both_4": 12, "both_5": 5, "thin": 12}
    assert [(item.name, item.reason.partition(".dcm ")[2]) for item in skipped] == [
        ("both/1.2.826.0.1.6-001.dcm", "holds no image but SEG")
    ]
    # File names count down while positions count up.
    assert list(scans[0].files) == sorted(scans[0].files, reverse=True)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["999"], "dataset 999 does not exist"),
        (["Dataset998_No"], "Dataset998_No does not exist"),
        (["no/such/folder"], "neither an nnU-Net dataset"),
        (["{tmp}/empty"], "holds no scan"),
        (["{tmp}/empty", "{tmp}/empty/../empty"], "named twice"),
        (["{tmp}", "{tmp}/empty"], "one inside the other"),
        ([], "no scans named"),
    ],
)
def test_unusable_sources_are_refused_in_one_line(raw: Path, tmp_path: Path, sources: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message) as error:
        find_scans([source.format(tmp=tmp_path) for source in sources])
    assert "\n" not in str(error.value)


def test_a_test_set_is_left_out_by_the_names_of_its_cases(raw: Path) -> None:
    for dataset in ("Dataset501_A", "Dataset502_B"):
        files = [f"imagesTr/case_{n}_0000.nii.gz" for n in range(3)]
        make_dataset(raw / dataset, files, {"0": "CT"})
    scans, skipped = find_scans(["501", "502"])
    left = leave_out(scans, skipped, ["case_1", "Dataset502_B_case_0"])
    assert [(scan.source, scan.identifier) for scan in left] == [
        ("Dataset501_A", "case_0"),
        ("Dataset501_A", "case_2"),
        ("Dataset502_B", "case_2"),
    ]
    with pytest.raises(
        DataError, match=r"no scan is named case_7 \(1 of 2 names are unknown; one that is known: case_0"
    ):
        leave_out(scans, skipped, ["case_1", "case_7"])
    with pytest.raises(DataError, match="-exclude names every scan: leave at least one"):
        leave_out(scans, skipped, ["case_0", "case_1", "case_2"])


def test_unset_raw_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(DataError, match="export nnUNet_raw="):
        find_scans(["501"])


def test_a_case_among_training_and_test_images_has_the_folder_in_its_name(raw: Path) -> None:
    files = ["imagesTr/a_0000.nii.gz", "imagesTs/a_0000.nii.gz", "imagesTs/b_0000.nii.gz"]
    make_dataset(raw / "Dataset501_X", files, {"0": "CT"})
    scans, _ = find_scans(["501"])
    assert [scan.identifier for scan in scans] == ["imagesTr_a", "imagesTs_a", "b"]


def scan_of(name: str, *channels: str) -> Scan:
    return Scan(name, name, f"of_{channels[0]}", "store", (), channels, (False,) * len(channels))


def test_the_most_common_number_is_kept_and_the_others_are_told() -> None:
    pool = [scan_of("a", "T1", "T2"), scan_of("b", "CT"), scan_of("c", "T1", "T2"), scan_of("d", "1", "2", "3")]
    kept, skipped = with_joint_channels(pool)
    assert [item.name for item in kept] == ["a", "c"]
    assert list(map(str, skipped)) == [
        "of_CT: b skipped: has 1 channel; -channels joint takes scans with 2 channels, the number that most scans have",
        "of_1: d skipped: has 3 channels; -channels joint takes scans with 2 channels, the number that most scans have",
    ]
    assert [item.name for item in with_joint_channels(pool[:2])[0]] == ["a"]  # equally common: the larger


def test_the_plans_number_goes_first() -> None:
    pool = [scan_of("a", "T1", "T2"), scan_of("b", "CT"), scan_of("c", "T1", "T2")]
    kept, skipped = with_joint_channels(pool, planned=1)
    assert [item.name for item in kept] == ["b"]
    assert {item.reason for item in skipped} == {
        "has 2 channels; -channels joint takes scans with 1 channel, the number of the plan"
    }
    with pytest.raises(DataError, match=r"plan is for 4 channels and no scan has as many \(found: 1, 2\)"):
        with_joint_channels(pool, planned=4)


def test_channels_of_other_names_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        with_joint_channels([scan_of("a", "T1", "T2"), scan_of("b", "t1", "t2")])
        assert caplog.text == ""
        with_joint_channels([scan_of("a", "T1", "T2"), scan_of("b", "CT", "PET")])
    assert "of_T1: T1, T2; of_CT: CT, PET" in caplog.text or "of_CT: CT, PET; of_T1: T1, T2" in caplog.text


def test_many_scans_of_one_reason_are_one_line() -> None:
    skipped = [Skipped(str(n), "A", "bad") for n in range(4)] + [Skipped("x", "B", "bad")]
    assert summarise_skipped(skipped) == ["A: 0 and 3 more skipped: bad", "B: x skipped: bad"]
