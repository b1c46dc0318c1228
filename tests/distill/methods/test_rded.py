"""RDED against its definition: the crops of least cross entropy, side by side."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from tiny import doubled, make_data, maker, same_after_a_stop, stream

from mim4dd import MIM4DDLoss
from mim4dd.distill.add_ons.mutual_information import MIM4DD
from mim4dd.distill.data import from_tensors
from mim4dd.distill.loop import LoopSettings, distill
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.methods.rded import RDED, RDEDSettings, random_crop
from mim4dd.distill.methods.teachers import Teachers
from mim4dd.distill.runs import RunDirectory, SyntheticSet

SETTINGS = RDEDSettings(squeeze_epochs=3, squeeze_batch=16, candidates=9, crops=3)


def test_the_set_is_the_definition():
    """Each candidate's crop of least −log p_y amid zeros, of those the least, tile by tile."""
    data = doubled(make_data(size=12))
    method = RDED(maker(data, "batch"), data, 0, dataclasses.replace(SETTINGS, mosaic=2))
    initial = method.initial(RealData(data, stream()), ipc=2)

    (teacher,) = method.teachers.networks
    assert not teacher.training
    real = RealData(data, stream())
    expected = torch.zeros(6, 1, 12, 12, dtype=torch.float64)
    for label in range(3):
        best = []
        for image in real.sample_class(label, 9):
            scored = []
            for _ in range(3):
                crop = random_crop(image, 6, real.generator)
                canvas = torch.zeros(1, 1, 12, 12, dtype=torch.float64)
                canvas[..., 3:9, 3:9] = crop
                with torch.no_grad():
                    p = teacher(canvas)[0].exp()
                scored.append(((p.sum() / p[label]).log().item(), crop))
            best.append(min(scored, key=lambda each: each[0]))
        best.sort(key=lambda each: each[0])
        for k, (down, right) in enumerate([(0, 0), (0, 6), (6, 0), (6, 6)]):
            for r in range(2):
                image = expected[2 * label + r, :, down : down + 6, right : right + 6]
                image.copy_(best[2 * k + r][1])
    assert torch.equal(initial.image_syn, expected)
    assert initial.label_logits is None


def test_a_crop_is_a_square_of_the_image():
    """Of an area from 8 to 100 % and anywhere: seen where each pixel tells its place."""
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    image, sides, corners = torch.stack([rows, columns]), [], []
    for seed in range(300):
        crop = random_crop(image, 20, torch.Generator().manual_seed(seed))
        assert crop.shape == (2, 20, 20)
        # The interior of a linear ramp that is enlarged by s grows by 1/s from pixel to pixel.
        grows = crop[0, 11, 0] - crop[0, 10, 0]
        sides.append(round(20 * grows.item()))
        middle = (crop[:, 9, 9] + crop[:, 10, 10]) / 2
        corners.append((middle - sides[-1] / 2 + 0.5).round().int().tolist())
    assert min(sides) == 6  # √0.08 · 20 is 5.7
    assert max(sides) in (19, 20)
    for side, (top, left) in zip(sides, corners, strict=True):
        assert 0 <= top <= 20 - side
        assert 0 <= left <= 20 - side
    assert {top == left for top, left in corners} == {True, False}
    areas = torch.tensor(sides).double().square() / 400
    assert abs(areas.mean() - 0.54) < 0.06  # uniform: ± 0.015


def test_a_crop_is_resized_without_aliasing():
    image = torch.rand(3, 16, 16)
    drawn = torch.rand(3, generator=stream(), dtype=torch.float64)
    side = round(16 * (0.08 + 0.92 * drawn[0].item()) ** 0.5)
    top, left = (int(part * (16 - side + 1)) for part in drawn[1:].tolist())
    expected = F.interpolate(
        image[None, :, top : top + side, left : left + side], size=(8, 8), mode="bilinear",
        antialias=True, align_corners=False,
    )  # fmt: skip
    torch.testing.assert_close(random_crop(image, 8, stream()), expected[0])


def test_alone_the_images_stay_and_the_teacher_labels_them(tmp_path):
    data = make_data()
    run = RunDirectory(tmp_path / "run")
    run.create({})
    method = RDED(maker(data, "batch"), data, 0, SETTINGS)
    result = distill(method, data, LoopSettings(ipc=2, iterations=3), run)
    assert torch.equal(result.image_syn, SyntheticSet.load(run.initial).image_syn)
    (teacher,) = method.teachers.networks
    with torch.no_grad():
        torch.testing.assert_close(result.label_syn, teacher(result.image_syn).softmax(1))
    assert result.class_syn.tolist() == [0, 0, 1, 1, 2, 2]
    assert result.tiles == 1  # a mosaic is trained on as it is


def test_mim4dd_moves_the_images(tmp_path):
    data = make_data()
    run = RunDirectory(tmp_path / "run")
    run.create({})
    method = MIM4DD(
        RDED(maker(data, "batch"), data, 0, SETTINGS), MIM4DDLoss(), weight=1.0, num_keys=12
    )
    result = distill(method, data, LoopSettings(iterations=2, lr_img=1.0), run)
    assert not torch.equal(result.image_syn, SyntheticSet.load(run.initial).image_syn)
    first = run.read_metrics()[0]
    assert first["loss"] == pytest.approx(first["contrastive_loss"])


def test_a_stopped_run_continues_bit_for_bit(tmp_path):
    data = make_data()
    settings = LoopSettings(iterations=5, checkpoint_every=2, lr_img=0.1)

    def make():
        base = RDED(maker(data, "batch"), data, 0, SETTINGS)
        return MIM4DD(base, MIM4DDLoss(), weight=0.1, num_keys=12)

    assert same_after_a_stop(make, data, settings, tmp_path)


def test_a_resumed_run_trains_no_teacher_again(tmp_path, monkeypatch):
    data, run = make_data(), RunDirectory(tmp_path / "run")
    run.create({})
    distill(RDED(maker(data, "batch"), data, 0, SETTINGS), data, LoopSettings(iterations=1), run)
    monkeypatch.setattr(Teachers, "_train", lambda *_: pytest.fail("trained again"))
    distill(
        RDED(maker(data, "batch"), data, 0, SETTINGS),
        data,
        LoopSettings(iterations=2),
        run,
        resume=True,
    )


def test_what_cannot_be_used_is_refused():
    data = make_data()
    few = RDED(maker(data, "batch"), data, 0, dataclasses.replace(SETTINGS, mosaic=2))
    with pytest.raises(ValueError, match=r"candidates must be at least ipc · mosaic², which is 12"):
        few.require_per_class([3, 1, 3])
    lacking = RDED(
        maker(data, "batch"), data, 0, dataclasses.replace(SETTINGS, mosaic=2, candidates=20)
    )
    with pytest.raises(ValueError, match=r"ipc · mosaic² .* 16 were asked for .* has 12"):
        lacking.initial(RealData(data, stream()), ipc=4)
    with pytest.raises(ValueError, match="mosaic must divide the size of the images, 8, got 3"):
        RDED(maker(data, "batch"), data, 0, dataclasses.replace(SETTINGS, mosaic=3)).require_data(
            data
        )
    other = dataclasses.replace(data, label_train=data.label_train.flip(0))
    with pytest.raises(ValueError, match="data must be what the teachers are trained on"):
        few.require_data(other)
    images = torch.rand(30, 1, 8, 8)
    whitened = from_tensors(images, torch.arange(30) % 3, name="white", zca=True)
    with pytest.raises(ValueError, match="'rded' scales images, white holds images whitened"):
        RDED(maker(whitened, "batch"), whitened, 0, SETTINGS).require_data(whitened)
    rows = from_tensors(torch.rand(30, 5), torch.arange(30) % 3, name="table")
    with pytest.raises(ValueError, match="'rded' scales images, table holds rows"):
        few.require_data(rows)
    for change in ({"candidates": 0}, {"crops": 0}, {"mosaic": 0}, {"squeeze_batch": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(change))} must be at least 1"):
            dataclasses.replace(SETTINGS, **change)
