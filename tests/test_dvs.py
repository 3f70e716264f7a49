"""CIFAR10-DVS: its files and whatever else may be in them, the simulated DVS128, splits, and QCFS on recordings."""

from __future__ import annotations

import csv
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from conftest import Done
from snnexp.conversion.frames import PerFrame, stills
from snnexp.conversion.network import Converted, convert
from snnexp.conversion.qcfs import QCFSConversion
from snnexp.conversion.rewrite import rewrite
from snnexp.conversion.walk import walk
from snnexp.dataset import aedat
from snnexp.dataset.cifar10_dvs import CLASSES, Recordings, cifar10_dvs, cifar10_saccade
from snnexp.dataset.dvs128 import DVS128
from snnexp.dataset.events import EventFileError, Events
from snnexp.errors import InvalidValue, UserError
from snnexp.model.convnet import ConvNet
from snnexp.neuron.qcfs import QCFS
from snnexp.session import Session
from snnexp.task.dvs import accumulates, summary
from snnexp.task.train import train_network
from snnexp.testing import TaskContract
from snnexp.timefold import TimeFold, TimeMean
from test_images import composed

one_event = st.tuples(st.integers(0, 2**31), st.integers(0, 127), st.integers(0, 127), st.integers(0, 1))
EVENTS = 200  # a recording of `root`


def as_events(rows: list[tuple[int, ...]]) -> Events:
    return Events(*np.array(rows, np.int64).reshape(-1, 4).T)


def as_rows(events: Events) -> list[tuple[int, ...]]:
    return list(zip(*(column.tolist() for column in events), strict=True))


def words(*pairs: tuple[int, int]) -> bytes:
    return aedat.HEADER + np.array(pairs, ">u4").tobytes()


def test_bits_are_where_the_format_puts_them() -> None:
    data = words((0, 7), (0x7F00, 8), (0x00FE, 9), (0x0001, 10), (0x8000, 11))  # the last is no event of a pixel
    assert as_rows(aedat.decode(data)) == [(7, 127, 127, 1), (8, 0, 127, 1), (9, 127, 0, 1), (10, 127, 127, 0)]


@given(st.lists(one_event))
def test_what_is_written_is_read_back_bit_by_bit(rows) -> None:
    rows.sort(key=lambda row: row[0])
    data = aedat.encode(as_events(rows))
    assert as_rows(aedat.decode(data)) == rows
    assert aedat.encode(aedat.decode(data)) == data


@given(st.lists(one_event, min_size=1), st.integers(1, 7))
def test_a_truncated_file_is_refused(rows, cut) -> None:
    with pytest.raises(EventFileError, match=r"some file: .* bytes after the header are not a whole number of 8-byte"):
        aedat.decode(aedat.encode(as_events(rows))[:-cut], "some file")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04 an archive", "it is not an AEDAT file; an AEDAT 2.0 file starts with the line #!AER-DAT2.0"),
        (b"#!AER-DAT3.1\r\n#Format: RAW\r\n", r"it has another version \(#!AER-DAT3.1\)"),
        (b"#!AER-DAT2.0\r\n# a comment that", "the header is not terminated; the file is truncated"),
        (words((0, 1), (0x0040_1000, 2)), "event 1 has the address 0x00401000, which is outside a DVS128"),
        (words((0, 2**32 - 1), (0, 5)), "the timestamps jump back by more than 35 minutes"),
    ],
)
def test_foreign_and_damaged_files_are_refused_in_words(data, said) -> None:
    with pytest.raises(EventFileError, match=f"^x.aedat: {said}"):
        aedat.decode(data, "x.aedat")


@settings(max_examples=200)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_give_a_clear_error_or_ordered_events_on_the_sensor(data, with_header) -> None:
    try:
        events = aedat.decode((aedat.HEADER if with_header else b"") + data, "noise")
    except EventFileError as error:
        assert str(error).startswith("noise: ")
    else:
        assert len(events.t) <= len(data) // 8
        assert (np.diff(events.t) >= 0).all()
        assert all(0 <= v < 128 for v in (*events.x, *events.y))
        assert set(events.p) <= {0, 1}


@pytest.mark.parametrize("row", [(2**32, 0, 0, 0), (-1, 0, 0, 0), (0, 128, 0, 0), (0, 0, 128, 0), (0, 0, 0, 2)])
def test_what_the_format_cannot_hold_is_not_written(row) -> None:
    with pytest.raises(ValueError, match="must lie in 0"):
        aedat.encode(as_events([row]))


def test_spikingjelly_reads_what_is_written_and_reads_the_same(tmp_path) -> None:
    from spikingjelly.datasets.cifar10_dvs import _load_origin_data

    recording = DVS128(loops=1).record(np.eye(32, dtype=np.uint8)[None] * 255, [0])[0]
    aedat.write(tmp_path / "a.aedat", recording)
    theirs, ours = _load_origin_data(tmp_path / "a.aedat"), aedat.decode((tmp_path / "a.aedat").read_bytes())
    assert len(ours.t) > 10_000
    for column in "txyp":
        assert np.array_equal(theirs[column], getattr(ours, column))
        assert np.array_equal(getattr(recording, column), getattr(ours, column))


# the simulated DVS128

BAR = np.zeros((2, 32, 32), np.uint8)
BAR[0, 8:24, 12:20] = 255  # and nothing
QUIET = DVS128(noise=0, mismatch=0, loops=1)


def test_the_movement_is_a_closed_loop_that_is_repeated() -> None:
    camera = DVS128(loops=3, travel=5.0)
    right, down = camera.centre()
    a_round = camera.period // camera.step
    assert len(right) == 3 * a_round + 1
    corners = np.stack([right, down], 1)[:: a_round // 4]
    assert corners.tolist() == 3 * [[-5, 0], [0, -5], [5, 0], [0, 5]] + [[-5, 0]]
    assert np.allclose(np.hypot(np.diff(right), np.diff(down)), 4 * 5 * 2**0.5 / a_round)  # constant speed
    rows, columns = camera._weights()
    for weights in (rows, columns):
        assert torch.equal(weights[0], weights[-1])
        assert torch.equal(weights[0], weights[a_round])


def test_a_closed_loop_brightens_each_pixel_as_often_as_it_darkens_it() -> None:
    camera = DVS128(noise=0, mismatch=0, loops=3)
    t, x, y, p = camera.record(BAR[:1], [0])[0]
    second, third = (t // camera.period == k for k in (1, 2))  # in the first, pixels start from anywhere
    assert third.sum() == pytest.approx(second.sum(), rel=0.01)
    balance = np.zeros((128, 128))
    np.add.at(balance, (y[third], x[third]), 2 * p[third] - 1)
    assert np.abs(balance).max() <= 1  # a level that comes back to where it was; one event may lie across the seam


def test_a_bright_bar_that_moves_right_brightens_on_its_right() -> None:
    t, x, y, p = QUIET.record(BAR[:1], [0])[0]
    right = (t < QUIET.period // 4) & (y > 50) & (y < 75)  # the first path goes right and up
    assert x[right & (p == 1)].mean() - x[right & (p == 0)].mean() == pytest.approx(32, abs=3)  # the bar's width


def test_a_recording_depends_on_its_image_and_key_alone_and_a_blank_screen_gives_noise_alone() -> None:
    together = QUIET.record(BAR, [5, 6])
    assert len(together[1].t) == 0
    assert as_rows(together[0])[:500] == as_rows(QUIET.record(np.concatenate([BAR[1:], BAR[:1]]), [6, 5])[1])[:500]
    noisy = DVS128(noise=2.0, noise_spread=0.0, loops=1).record(BAR[1:], [0])[0]
    expected = 2.0 * 128**2 * 0.2
    assert abs(len(noisy.t) - expected) < 5 * expected**0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [("loops", 0), ("travel", 0), ("travel", 200), ("period", 1234), ("on", -1), ("refractory", 10), ("blur", 0)],
)
def test_constants_out_of_range_are_refused_by_name(name, value) -> None:
    with pytest.raises(InvalidValue, match=f"^{name}="):
        DVS128(**{name: value})


# datasets


def dvs_files(root: Path) -> Path:
    """A small CIFAR10-DVS: 12 recordings of each of three classes, of random events from 5 s on."""
    draw = np.random.default_rng(0)
    for name in CLASSES[:3]:
        (root / name).mkdir(parents=True)
        for k in range(12):
            x, y = draw.integers(0, 128, (2, EVENTS))
            t = 5_000_000 + np.sort(draw.integers(0, 1_300_000, EVENTS))
            aedat.write(root / name / f"cifar10_{name}_{k}.aedat", Events(t, x, y, draw.integers(0, 2, EVENTS)))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return dvs_files(tmp_path / "dvs")


def read(root: Path, cache: Path, **options: object):
    return cifar10_dvs(root, **{"classes": CLASSES[:3], "cache": cache, "timesteps": 4, "size": 32} | options)


def test_splits_are_disjoint_by_class_and_no_event_is_lost(root, tmp_path) -> None:
    data, other = (read(root, tmp_path / "cache", seed=seed) for seed in (0, 1))
    assert data.train.x.shape == (36, 4, 2, 32, 32)
    assert data.classes == CLASSES[:3]
    parts = [set(split.index.tolist()) for split in (data.train, data.val, data.test)]
    assert set.union(*parts) == set(range(36))
    assert sum(map(len, parts)) == 36
    assert data.test.y[data.test.index].tolist() == [0, 1, 2]  # 9:1 of each class, rounded, at least one
    assert other.test.index.tolist() == data.test.index.tolist()
    assert other.val.index.tolist() != data.val.index.tolist()
    assert data.train.x.sum((1, 2, 3, 4)).tolist() == 36 * [EVENTS]
    half = read(root, tmp_path / "cache", test=0.5)
    assert half.test.y[half.test.index].bincount().tolist() == [6, 6, 6]
    assert len(read(root, tmp_path / "cache", samples=5).train.y) == 15


def test_frames_are_those_of_spikingjelly(root, tmp_path) -> None:
    from spikingjelly.datasets.cifar10_dvs import _load_origin_data
    from spikingjelly.datasets.utils import integrate_events_by_fixed_frames_number

    data = read(root, tmp_path / "cache", size=128, test=0.01)
    theirs = _load_origin_data(root / CLASSES[0] / f"cifar10_{CLASSES[0]}_3.aedat")
    frames = integrate_events_by_fixed_frames_number(theirs, "number", 4, 128, 128)
    assert any(np.array_equal(frames, x.numpy()) for x in data.train.x[data.train.y == 0])


def test_time_starts_with_the_first_event(root, tmp_path) -> None:
    by_time = read(root, tmp_path / "cache", bins="time", duration=1_300_000).train.x.sum((2, 3, 4))
    assert by_time.float().mean(0).tolist() == pytest.approx(4 * [EVENTS / 4], rel=0.1)


def test_archives_as_downloaded_give_what_folders_give(root, tmp_path) -> None:
    (tmp_path / "zips/download").mkdir(parents=True)
    for name, where in zip(CLASSES, ("", "download", ""), strict=False):
        with zipfile.ZipFile(tmp_path / "zips" / where / f"{name}.zip", "w") as archive:
            for path in (root / name).iterdir():
                archive.write(path, f"{name}/{path.name}")
    assert torch.equal(read(root, tmp_path / "c").train.x, read(tmp_path / "zips", tmp_path / "c").train.x)


def test_an_augmentation_changes_all_frames_of_a_recording_alike(root, tmp_path) -> None:
    data = read(root, tmp_path / "cache", crop=3, flip=True)
    x = data.train.x[:8]
    same = x[:, :1].expand_as(x).contiguous()
    changed = data.augment(same, 1)
    assert torch.equal(changed, changed[:, :1].expand_as(changed))
    assert not torch.equal(changed, same)
    assert torch.equal(data.augment(same, 1), changed)


def test_absent_data_say_what_to_download_and_where_it_looked(root, tmp_path) -> None:
    with pytest.raises(UserError, match=r"of the class bird in .*nowhere.*airplane\.zip .* from https://figshare"):
        cifar10_dvs(tmp_path / "nowhere", ["bird", "cat"], cache=tmp_path, timesteps=4)
    (root / "cat").mkdir()
    (root / "cat" / "cifar10_cat_0.aedat4").write_bytes(b"#!AER-DAT4.0\r\n")
    with pytest.raises(UserError, match=r"dvs/cat holds AEDAT 4 files: only the AEDAT 2\.0 files"):
        cifar10_dvs(root, ["bird", "cat"][::-1], cache=tmp_path, timesteps=4)


def test_a_damaged_file_is_named_and_nothing_is_left(root, tmp_path) -> None:
    victim = root / CLASSES[1] / f"cifar10_{CLASSES[1]}_7.aedat"
    whole = victim.read_bytes()
    for broken, said in (
        (whole[:-3], "not a whole number"),
        (b"\0" + whole, "not an AEDAT file"),
        (aedat.HEADER, "no events"),
    ):
        victim.write_bytes(broken)
        with pytest.raises(UserError, match=rf"_7\.aedat: .*{said}"):
            read(root, tmp_path / "cache")
        assert not list((tmp_path / "cache").rglob("frames*.npy"))
    victim.write_bytes(whole)
    assert len(read(root, tmp_path / "cache").train.y) == 36


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timesteps", 0),
        ("size", 48),
        ("size", 256),
        ("test", 0.0),
        ("bins", "x"),
        ("samples", 2),
        ("average", 1),
        ("classes", ["cat", "cow"]),
        ("crop", -1),
        ("validation", 1.0),
    ],
)
def test_values_out_of_range_are_refused_by_name(root, tmp_path, name, value) -> None:
    with pytest.raises(InvalidValue, match=f"^{name}="):
        read(root, tmp_path / "cache", **{name: value})


def coloured(root: Path, side: int) -> None:
    """Images in folders: 4 + 4 of each of two classes."""
    for part in ("train", "test"):
        for label, colour in (("blue", (0, 0, 255)), ("green", (0, 255, 0))):
            (root / part / label).mkdir(parents=True)
            for k in range(4):
                Image.new("RGB", (side, side), colour).save(root / part / label / f"{k}.png")


SMALL = {"timesteps": 4, "size": 16, "samples": 4, "camera": DVS128(loops=1)}


def test_simulated_recordings_lie_in_the_real_format_and_go_through_the_same_reader(cache) -> None:
    data = cifar10_saccade("digits", "", cache=cache, **SMALL)
    assert data.classes == tuple("0123456789")
    assert data.train.x.shape == (40, 4, 2, 16, 16)
    assert data.test.y[data.test.index].bincount().tolist() == 10 * [1]
    (folder,) = {p.parent.parent for p in (cache / "cifar10_saccade").glob("recordings-*/3/cifar10_3_0.aedat")}
    events = Recordings(1, [(folder / "3" / "cifar10_3_0.aedat", "")], [3]).read(0)
    assert 5_000 < len(events.t) < 100_000
    averaged = cifar10_saccade("digits", "", cache=cache, average=True, **SMALL)
    assert (averaged.temporal, averaged.averaged) == (False, True)
    assert torch.equal(averaged.train.x, data.train.x)


def test_any_images_can_move_before_the_camera(tmp_path) -> None:
    coloured(tmp_path, side=40)
    data = cifar10_saccade("image_folder", tmp_path, cache=tmp_path / "cache", **SMALL)
    assert data.classes == ("blue", "green")
    assert len(data.train.y) == 8
    events = data.train.x.flatten(1).sum(1).float()
    assert events[data.train.y == 1].min() > 1.2 * events[data.train.y == 0].max()  # green is brighter: its border


# conversion


def network(frames: int) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net = ConvNet((2, 8, 8), 10, lambda: QCFS(L=4, lam=1.0), width=4, pooling="average", readout="current").eval()
    return net, torch.poisson(torch.rand(6, frames, 2, 8, 8) * 2).byte()


def test_frames_as_the_input_sequence_have_the_mean_that_the_ann_saw() -> None:
    net, x = network(8)
    ann = nn.Sequential(OrderedDict(mean=TimeMean(), network=net))
    assert torch.equal(ann(x), net(x.float().mean(1)))
    source, spiking = rewrite(ann, x[:2])
    walk(source, spiking, x, 16, QCFSConversion())
    snn = Converted(spiking, 16)
    for T in (8, 16):  # whole recordings: what the first layer hears is the ANN's on average
        first, *_ = snn.examine(source, x, T)[0]
        assert first.propagated == pytest.approx(0, abs=1e-9)
        assert first.error > 0
    assert snn.examine(source, x, 4)[0][0].propagated > 1e-4  # half a recording


def test_equal_frames_are_a_still_image_in_any_block_of_steps() -> None:
    net, x = network(1)
    by_image, _ = convert(net, x[:, 0].float(), QCFSConversion(), 8)
    same, (again, _) = x.expand(-1, 4, -1, -1, -1), convert(nn.Sequential(TimeMean(), net), x, QCFSConversion(), 8)
    for rows in (128, 3, 1):
        again.rows = rows
        for a, b in zip(again.at(same, [1, 4, 8]), by_image.at(x[:, 0].float(), [1, 4, 8]), strict=True):
            assert torch.allclose(a, b, atol=1e-5)
    different = network(4)[1]
    once, *_ = again.at(different, [8])
    again.rows = 128
    assert torch.allclose(again.at(different, [8])[0], once, atol=1e-5)


def test_per_frame_is_the_mean_over_frames() -> None:
    net, x = network(4)
    snn, _ = convert(net, stills(x), QCFSConversion(), 4)
    expected = torch.stack([snn(x[:, k].float()) for k in range(4)]).mean(0)
    assert torch.allclose(PerFrame(snn).at(x, [4])[0], expected, atol=1e-6)
    assert torch.allclose(PerFrame(net)(x), torch.stack([net(x[:, k].float()) for k in range(4)]).mean(0), atol=1e-6)


def test_accumulates_by_hand() -> None:
    x = torch.zeros(1, 2, 3)
    x[0, 0, 0] = x[0, 1, :2] = 1  # 1 + 2 spikes, each to 5 neurons
    net = TimeFold(nn.Linear(3, 5), 2, temporal=True)
    assert accumulates(net, x) == pytest.approx(3 * 5)


# the command line

DIGITS = (
    "dataset=cifar10_saccade",
    "dataset.samples=4",
    "dataset.size=16",
    "dataset.camera.loops=1",
    "dataset.timesteps=4",
    "model=convnet",
    "model.width=2",
    "neuron=qcfs",
    "loss=cross_entropy",
    "trainer.epochs=1",
    "trainer.threads=1",
    "tracking=none",
)


@pytest.mark.usefixtures("environment")
class TestThreeWays(TaskContract):
    compared = ("task.seeds=[1]", "task.rounds=[1,2]", "task.per_frame=[2]", "task.images=2")
    command = ("task=dvs", *DIGITS, "timesteps=4", *compared)

    @pytest.fixture(autouse=True)
    def _terminal(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.terminal = capfd

    def kept(self, run: Path, result: dict[str, float]) -> None:
        with (run / "tables/ways.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [(r["way"], r["network"], r["steps"]) for r in rows] == [
            ("average", "ANN", "1"),
            ("average", "SNN", "4"),
            ("average", "SNN", "8"),
            ("per frame", "ANN", "4"),
            ("per frame", "SNN", "8"),
            ("per frame, no reset", "SNN", "4"),
            ("per frame, no reset", "SNN", "8"),
            ("direct", "SNN", "4"),
        ]
        assert {r["updates"] for r in rows} == {"1"}  # one epoch of one batch, in all ways
        images = {r["way"]: int(float(r["train_images"])) for r in rows}
        assert images == {"average": 27, "per frame": 108, "per frame, no reset": 108, "direct": 108}  # 4 frames
        assert all(float(r["energy_nj"]) > 0 and float(r["train_s"]) > 0 for r in rows)
        assert float(rows[3]["energy_nj"]) == pytest.approx(4 * float(rows[0]["energy_nj"]), rel=1e-4)  # each frame
        assert result["test/direct_snn_accuracy_T4"] == pytest.approx(float(rows[-1]["accuracy"]), abs=1e-5)
        assert (run / "tables/seeds.csv").read_text().splitlines()[1].startswith("1,average,ANN,1,")
        assert (run / "figures/ways.png").stat().st_size > 10_000
        assert "per frame, no reset" in self.terminal.readouterr().out


def test_the_summary_is_the_mean_over_seeds() -> None:
    row = {
        "way": "direct",
        "network": "SNN",
        "steps": 4,
        "energy_nj": 1.0,
        "train_s": 2.0,
        "updates": 3,
        "train_images": 5,
    }
    first, second = summary(
        [row | {"accuracy": 0.5}, row | {"accuracy": 0.7, "train_s": 4.0}, row | {"accuracy": 0.1, "steps": 8}]
    )
    assert (first["seeds"], first["train_s"], second["seeds"], second["sd"]) == (2, 3.0, 1, 0.0)
    assert (first["accuracy"], first["sd"]) == pytest.approx((0.6, 0.02**0.5))


def test_convert_takes_recordings_averaged_or_by_frame(snnexp: Callable[..., Done]) -> None:
    common = ("task=convert", *DIGITS, "conversion=qcfs", "calibration.images=8")
    done = snnexp(*common, "dataset.average=true", "timesteps=[2,4,8]")
    assert done.code == 0, done.err
    averaged = done.result()
    assert averaged["val/spikes_T8"] > averaged["val/spikes_T4"] > 0
    done = snnexp(*common, "timesteps=[2,3]", "resume=false")
    assert done.code == 0, done.err
    by_frame = done.runs()[-1]
    assert '"val/snn_accuracy_T3"' in (by_frame / "result.json").read_text()
    refused = snnexp(*common, "dataset.average=true", "timesteps=[2,6]")
    assert "timesteps=6 is not allowed" in refused.err
    assert "must be a multiple of 4" in refused.err


def test_mitigations_are_compared_on_whole_recordings(snnexp: Callable[..., Done]) -> None:
    done = snnexp(
        "task=mitigations",
        *DIGITS,
        "conversion=qcfs",
        "calibration.images=8",
        "dataset.average=true",
        "timesteps=[8]",
        "task.compare.residual_membrane.rehearse=4",
        "trainer.epochs=1",
    )
    assert done.code == 0, done.err
    with (done.runs()[-1] / "tables/mitigations.csv").open() as file:
        rows = {row["mitigation"]: row["T"] for row in csv.DictReader(file)}
    assert rows == {"none": "8", "residual_membrane": "4", "signed": "8", "signed_at_0": "8", "waiting": "8"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dataset=digits"], "choose dataset=cifar10_dvs or dataset=cifar10_saccade"),
        (["neuron=lif"], "neuron=lif spikes: task=dvs trains ANNs"),
        (["neuron@task.direct=relu"], "task.direct=torch.nn.ReLU does not spike"),
        (["task.seeds=3"], "task.seeds=3 is not allowed: it must be a list"),
        (["task.rounds=[0]"], "task.rounds=0 is not allowed"),
        (["neuron=relu"], "conversion=qcfs takes its thresholds"),
    ],
)
def test_what_cannot_be_compared_is_refused(snnexp: Callable[..., Done], arguments: list[str], said: str) -> None:
    kept = [d for d in DIGITS if not (arguments == ["dataset=digits"] and d.startswith("dataset"))]
    done = snnexp("task=dvs", *kept, "timesteps=4", *arguments)
    assert done.code == 1
    assert said in done.err
    assert not done.runs()


@pytest.mark.parametrize("preset", ["cifar10_dspike_resnet18", "cifar10_dvs_dspike"])
def test_the_dspike_presets_train_in_small(preset: str, root: Path, tmp_path: Path) -> None:
    coloured(root / "images", side=16)
    data = (
        ("dataset.classes=[airplane,automobile,bird]", f"dataset.root={root}", "dataset.size=16")
        if "dvs" in preset
        else ("dataset=image_folder", f"dataset.root={root / 'images'}")
    )
    config = composed(
        f"experiment={preset}",
        *data,
        "model.width=2",
        "trainer.epochs=1",
        "timesteps=2",
        "trainer.threads=1",
        "tracking=none",
        f"cache_dir={tmp_path}",
    )
    session = Session(config, {})
    net = session.network()
    assert {type(site).__name__ for site in net.sites().values()} == {"LIF"}
    assert len(net.sites()) == 17  # ResNet-18: 17 convolutions with a neuron each
    assert {type(site.surrogate).__name__ for site in net.sites().values()} == {"Dspike"}
    before = next(net.network.parameters()).clone()
    progress = train_network(session.trainer.fabric(), session, net, tmp_path)
    assert np.isfinite(progress.history[0]["train/loss"])
    assert not torch.equal(before, next(net.network.parameters()))
