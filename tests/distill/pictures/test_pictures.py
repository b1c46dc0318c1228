"""Pictures show what they are given."""

import math

import pytest
import torch
from PIL import Image

from mim4dd.distill.pictures import (
    draw_curves,
    draw_grid,
    draw_rows,
    draw_soft_labels,
    save_curves,
    save_figure,
    save_grid,
)

NAMES = ["cat", "dog", "owl"]


def pixels_of(path):
    image = Image.open(path).convert("RGB")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(
        image.height, image.width, 3
    )


def titles(figure):
    return [axis.get_title() for axis in figure.axes]


def caption(figure):
    return figure.get_supxlabel().replace("\n", " ")


def texts_of(axis):
    return [text.get_text() for text in axis.texts]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("ipc", [1, 2])
def test_a_grid_shows_every_image_once_and_alike(channels, ipc, tmp_path):
    labels = torch.arange(3).repeat_interleave(ipc)

    def draw(images):
        save_grid(tmp_path / "grid.png", images, labels, NAMES, "title")
        return pixels_of(tmp_path / "grid.png")

    black = torch.zeros(3 * ipc, channels, 8, 8)
    areas = []
    for index in range(len(black)):
        one_white = black.clone()
        one_white[index] = 1.0
        areas.append((draw(one_white) != draw(black)).any(2).sum().item())
    assert min(areas) > 80**2  # of a picture at 144 dpi
    assert max(areas) - min(areas) < 0.05 * min(areas)
    everything = (draw(black + 1) != draw(black)).any(2).sum().item()
    assert everything == sum(areas)


def shown_images(axis, size):
    """Every image of a mosaic, found by its opaque pixels, in reading order."""
    canvas = torch.as_tensor(axis.images[0].get_array())
    opaque = canvas[..., 3] == 1
    tops = [row for row in range(len(canvas)) if opaque[row].any() and
            (row == 0 or not opaque[row - 1].any())]  # fmt: skip
    images = []
    for top in tops:
        line = opaque[top]
        lefts = [i for i in range(len(line)) if line[i] and (i == 0 or not line[i - 1])]
        images += [canvas[top : top + size, left : left + size, :3] for left in lefts]
    return images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("ipc", [1, 3])
def test_before_and_after_stand_side_by_side(channels, ipc):
    labels = torch.arange(3).repeat_interleave(ipc)
    before, after = torch.rand(2, 3 * ipc, channels, 8, 8)
    order = torch.randperm(3 * ipc)  # a set need not be ordered by class
    panels = {"initial": before[order], "final": after[order]}
    figure = draw_grid(panels, labels[order], NAMES, "title")
    assert titles(figure) == ["initial", "final"]
    assert figure.get_suptitle() == "title"
    for axis, pixels in zip(figure.axes, panels.values(), strict=True):
        by_class = torch.cat([pixels[labels[order] == label] for label in range(3)])
        expected = by_class.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
        assert torch.equal(torch.stack(shown_images(axis, 8)), expected)
    if ipc == 1:
        assert texts_of(figure.axes[0]) == NAMES
    else:
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == NAMES


@pytest.mark.parametrize(
    ("classes", "ipc", "shown", "note"),
    [
        (100, 1, 100, ""),
        (200, 1, 100, "Shown: the first 100 of 200 classes."),
        (10, 50, 100, "Shown: the first 10 of 50 samples per class."),
        (
            200, 50, 200,
            "Shown: the first 20 of 200 classes, the first 10 of 50 samples per class.",
        ),
    ],
)  # fmt: skip
def test_large_sets_are_capped_and_the_caption_says_so(classes, ipc, shown, note):
    labels = torch.arange(classes).repeat_interleave(ipc)
    names = [f"class {label}" for label in range(classes)]
    figure = draw_grid({"": torch.rand(classes * ipc, 1, 4, 4)}, labels, names, "title")
    assert len(shown_images(figure.axes[0], 4)) == shown
    assert caption(figure) == note
    assert max(figure.get_size_inches()) < 16


def test_the_caption_says_how_much_is_clipped_and_averaged():
    pixels = torch.full((2, 3, 4, 4), 0.5)
    pixels[0, 0] = torch.tensor([-1.0, 2.0, 0.0, 1.0])
    figure = draw_grid({"a": pixels.clamp(0, 1), "b": pixels}, torch.arange(2), NAMES[:2], "title")
    share = 8 / pixels.numel()
    assert caption(figure) == f"Pixel values outside 0 to 1, clipped: {100 * share:.1f} % (b)."
    two = draw_grid({"": torch.rand(2, 2, 4, 4)}, torch.arange(2), NAMES[:2], "title")
    assert caption(two) == "The mean of 2 channels is shown."


def test_sets_that_do_not_fit_are_refused():
    pixels = torch.rand(3, 1, 4, 4)
    with pytest.raises(ValueError, match="equally many images of one size"):
        draw_grid({"a": pixels, "b": pixels[:2]}, torch.arange(3), NAMES, "title")
    with pytest.raises(ValueError, match="at least one set"):
        draw_grid({}, torch.arange(3), NAMES, "title")
    with pytest.raises(ValueError, match="labels must be classes from 0 to 2, got 0 to 3"):
        draw_grid({"a": pixels}, torch.tensor([0, 1, 3]), NAMES, "title")
    with pytest.raises(ValueError, match=r"labels must be one per row of 'a', got 2"):
        draw_rows({"a": torch.rand(3, 5)}, torch.arange(2), NAMES, "title")
    with pytest.raises(ValueError, match=r"probabilities must be \(3, 3\).* got \(3, 2\)"):
        draw_soft_labels(torch.rand(3, 2), torch.arange(3), NAMES, "title")


def test_names_are_no_formulas(tmp_path):
    """Two dollar signs begin mathematics in matplotlib, and a bad formula raises."""
    names = [r"$\frac$", "_cat", "a" * 200]
    save_grid(tmp_path / "grid.png", torch.rand(3, 1, 4, 4), torch.arange(3), names, r"$\frac$")
    rows = [{"iteration": step, "loss": 1.0 / (1 + step)} for step in range(3)]
    figure = draw_curves(dict.fromkeys(names, rows), 3)
    save_figure(tmp_path / "curves.png", figure)
    (legend,) = figure.legends
    assert [text.get_text().replace("\n", "") for text in legend.get_texts()] == names


def test_rows_are_drawn_class_by_class_on_one_scale():
    labels = torch.tensor([2, 0, 1, 0])
    before, after = torch.randn(2, 4, 7)
    figure = draw_rows({"initial": before, "final": after}, labels, NAMES, "title")
    order = [1, 3, 2, 0]
    images = [axis.images[0] for axis in figure.axes[:2]]
    for image, rows in zip(images, (before, after), strict=True):
        torch.testing.assert_close(torch.as_tensor(image.get_array()), rows[order])
    largest = pytest.approx(max(before.abs().max().item(), after.abs().max().item()))
    for image in images:
        assert image.get_clim() == (-largest.expected, largest)


def test_soft_labels_are_a_row_each_and_name_the_own_class():
    labels = torch.tensor([1, 0, 2, 1])
    probabilities = torch.randn(4, 3).softmax(1)
    figure = draw_soft_labels(probabilities, labels, NAMES, "title")
    shown = torch.as_tensor(figure.axes[0].images[0].get_array())
    torch.testing.assert_close(shown, probabilities[[1, 0, 3, 2]])
    own = sum(probabilities[row, label].item() for row, label in enumerate(labels.tolist())) / 4
    assert caption(figure) == f"Mean probability of the own class: {own:.2f}."


def metrics(steps=30, **values):
    return [
        {"iteration": step, **{key.replace("_k", "/"): value for key, value in values.items()}}
        for step in range(steps)
    ]


def test_panels_are_what_is_there_in_order():
    rows = metrics(
        syn_lr=0.1, accuracy=0.5, accuracy_std=0.1, cosine=0.3, loss=3.0, contrastive_loss=2.0,
        gradient_loss=1.0, mi_lower_bound=1.0, mi_lower_bound_k0=0.5, mi_lower_bound_k1=1.0,
    )  # fmt: skip
    single = ["loss", "gradient loss", "contrastive loss [nats]", "MI lower bound [nats]",
              "cosine", "step size that comes with the set", "test accuracy"]  # fmt: skip
    assert titles(draw_curves({"one": rows}, 10)) == single
    several = [*single[:4], "MI lower bound [nats], layer 0", *single[4:]]
    assert titles(draw_curves({"one": rows, "two": metrics(syn_lr=0.1)}, 10)) == several


def test_a_loss_that_is_its_only_part_is_drawn_once():
    assert titles(draw_curves({"one": metrics(loss=1.0, mean_loss=1.0)}, 3)) == ["mean loss"]
    runs = {"one": metrics(loss=1.0, mean_loss=1.0), "two": metrics(loss=2.0, mean_loss=1.0)}
    assert titles(draw_curves(runs, 3)) == ["loss", "mean loss"]


def test_curves_hold_the_values_their_median_and_the_ceiling():
    values = torch.randn(50, dtype=torch.float64)
    rows = [{"iteration": i, "mi_lower_bound": v} for i, v in enumerate(values.tolist())]
    axis = draw_curves({"run": rows}, num_classes=7).axes[0]
    raw, median, ceiling = axis.lines
    assert raw.get_ydata().tolist() == values.tolist()
    expected = [values[max(0, i - 10) : i + 11].median().item() for i in range(50)]
    assert median.get_ydata().tolist() == expected
    assert set(ceiling.get_ydata()) == {math.log(7)}
    assert texts_of(axis) == [f"log C = {math.log(7):.2f}"]


def test_accuracy_has_a_band_of_one_deviation():
    rows = [{"iteration": i, "accuracy": 0.1 * i, "accuracy_std": 0.02} for i in range(3)]
    axis = draw_curves({"run": rows}, 3).axes[0]
    corners = torch.as_tensor(axis.collections[0].get_paths()[0].vertices)
    for step in range(3):
        heights = corners[corners[:, 0] == step, 1]
        torch.testing.assert_close(heights.min().item(), 0.1 * step - 0.02)
        torch.testing.assert_close(heights.max().item(), 0.1 * step + 0.02)


def test_thirteen_runs_differ_in_look_and_gaps_stay_gaps(tmp_path):
    runs = {f"runs/{'long/' * (i % 4 * 10)}{i}": metrics(loss=1.0 + i) for i in range(11)}
    runs["single"] = metrics(1, loss=2.0, accuracy=0.5, accuracy_std=0.1)
    runs["gap"] = [
        {"iteration": step, "loss": math.nan if step == 15 else math.inf if step == 3 else 2.0}
        for step in range(30)
    ]
    figure = draw_curves(runs, 3)
    (legend,) = figure.legends
    looks = {(line.get_color(), line.get_linestyle()) for line in legend.get_lines()}
    assert len(looks) == len(runs) == 13
    assert titles(figure) == ["loss", "test accuracy"]
    gap = torch.as_tensor(figure.axes[0].lines[-2].get_ydata())
    assert gap[15].isnan()
    assert gap[3].isinf()
    save_figure(tmp_path / "curves.png", figure)


def test_losses_over_magnitudes_are_on_a_logarithmic_axis():
    falling = [{"iteration": i, "loss": 100.0 / (i + 1), "cosine": i + 1} for i in range(200)]
    scales = [axis.get_yscale() for axis in draw_curves({"run": falling}, 3).axes]
    assert scales == ["log", "linear"]
    falling[5]["loss"] = -1.0
    assert draw_curves({"run": falling}, 3).axes[0].get_yscale() == "linear"


def test_curves_draw_what_is_there(tmp_path):
    rows = metrics(trajectory_loss=1.0, syn_lr=0.1, mi_lower_bound=1.0)
    save_curves(tmp_path / "one.png", {"run": rows}, num_classes=3)
    save_curves(tmp_path / "less.png", {"run": metrics(trajectory_loss=1.0)}, num_classes=3)
    one, less = pixels_of(tmp_path / "one.png"), pixels_of(tmp_path / "less.png")
    assert one.shape[1] > 2 * less.shape[1]  # three panels against one
    coloured = (less.float().std(2) > 20).sum()
    assert coloured > 200


def test_no_finite_value_still_leaves_a_picture_and_no_metric_is_refused(tmp_path):
    save_curves(tmp_path / "none.png", {"run": [{"iteration": 0, "syn_lr": math.nan}]}, 3)
    assert (tmp_path / "none.png").stat().st_size > 0
    with pytest.raises(ValueError, match="runs must hold at least one metric, got none in run"):
        draw_curves({"run": [{"iteration": 0}]}, 3)


def test_a_users_own_style_changes_nothing(tmp_path):
    import matplotlib

    images = torch.rand(3, 1, 4, 4)
    save_grid(tmp_path / "plain.png", images, torch.arange(3), NAMES, "title")
    backend = dict.__getitem__(matplotlib.rcParams, "backend")  # without choosing one
    with matplotlib.rc_context({"font.size": 30, "figure.facecolor": "black"}):
        save_grid(tmp_path / "styled.png", images, torch.arange(3), NAMES, "title")
        assert matplotlib.rcParams["font.size"] == 30
    assert dict.__getitem__(matplotlib.rcParams, "backend") == backend
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "styled.png").read_bytes()
