"""What a network sees in real and synthetic samples: similarity and maps in the plane."""

import pytest
import torch
import torch.nn.functional as F

from mim4dd.distill.pictures import class_similarity, draw_embedding, draw_similarity, save_figure

NAMES = ["cat", "dog", "owl"]


def test_similarity_is_the_mean_cosine_of_all_pairs():
    syn, real = (torch.randn(count, 5, dtype=torch.float64) for count in (7, 20))
    class_syn = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    label_real = torch.randint(3, (20,))
    label_real[:3] = torch.arange(3)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for row in range(3):
        for column in range(3):
            pairs = [
                F.cosine_similarity(a, b, dim=0)
                for a, of_a in zip(syn, class_syn, strict=True)
                for b, of_b in zip(real, label_real, strict=True)
                if (of_a, of_b) == (row, column)
            ]
            expected[row, column] = torch.stack(pairs).mean()
    torch.testing.assert_close(class_similarity(syn, class_syn, real, label_real, 3), expected)


def test_a_class_without_samples_has_no_similarity():
    features, labels = torch.eye(4)[:2], torch.tensor([0, 2])
    similarity = class_similarity(features, labels, features, torch.tensor([0, 1]), 3)
    assert similarity.isnan().tolist() == [
        [False, False, True], [True, True, True], [False, False, True]
    ]  # fmt: skip
    figure = draw_similarity({"last": similarity}, NAMES, "title")
    assert len(figure.axes[0].texts) == 4  # numbers for what is there alone


def test_similarity_pictures_number_the_cells_and_sum_up(tmp_path):
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.0, 0.8, 0.3], [0.4, 0.2, 0.7]])
    figure = draw_similarity({"early": similarity - 0.5, "late": similarity}, NAMES, "title")
    late = figure.axes[1]
    assert late.get_title() == "late\nsame class 0.80, other classes 0.20"
    assert [text.get_text() for text in late.texts] == [
        f"{value:.2f}" for value in similarity.flatten().tolist()
    ]
    assert [label.get_text() for label in late.get_xticklabels()] == NAMES
    many = torch.rand(30, 30)
    assert draw_similarity({"": many}, list(map(str, range(30))), "title").axes[0].texts[:] == []
    save_figure(tmp_path / "similarity.png", figure)


def clusters(classes, each, spread=0.1):
    labels = torch.arange(classes).repeat_interleave(each)
    return 10 * torch.eye(classes)[labels] + spread * torch.randn(len(labels), classes), labels


def test_a_map_keeps_classes_together(tmp_path):
    real, label_real = clusters(3, 40)
    syn, class_syn = clusters(3, 2)
    figure = draw_embedding({"last": (syn, real)}, class_syn, label_real, NAMES, "title")
    for axis in figure.axes:
        real_places, syn_places = (
            torch.tensor(axis.collections[index].get_offsets().tolist()) for index in (0, 1)
        )
        assert (len(real_places), len(syn_places)) == (120, 6)
        nearest = torch.cdist(syn_places, real_places).argmin(1)
        assert label_real[nearest].tolist() == class_syn.tolist()
        assert [text.get_text() for text in axis.texts] == NAMES
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [*NAMES, "real", "synthetic"]
    save_figure(tmp_path / "embedding.png", figure)


def test_a_map_shows_ten_classes_and_few_samples_and_says_so():
    real, label_real = clusters(12, 70)
    syn, class_syn = clusters(12, 1)
    names = [f"class {label}" for label in range(12)]
    figure = draw_embedding({"a": (syn, real)}, class_syn, label_real, names, "title")
    assert len(figure.axes[0].collections[0].get_offsets()) == 600
    note = figure.get_supxlabel().replace("\n", " ")
    assert "the first 10 of 12 classes, the first 60 of 70 samples per class (real)." in note
    assert "Shown: the first 10 of 12 classes (synthetic)." in note
    figure = draw_embedding({"a": (syn, syn)}, class_syn, class_syn, names, "title")
    assert figure.get_supxlabel().endswith("a meaning. Shown: the first 10 of 12 classes.")


def test_small_sets_have_a_small_perplexity():
    real, label_real = clusters(3, 2)
    syn, class_syn = clusters(3, 1)
    layers = {"a": (syn, real), "b": (syn, real)}
    figure = draw_embedding(layers, class_syn, label_real, NAMES, "title")
    assert [axis.get_title() for axis in figure.axes] == [
        "a, PCA", "a, t-SNE, perplexity 3", "b, PCA", "b, t-SNE, perplexity 3"
    ]  # fmt: skip


def test_features_that_have_no_map_are_refused():
    real, label_real = clusters(3, 5)
    syn, class_syn = clusters(3, 1)
    with pytest.raises(ValueError, match="real features of last must be finite"):
        draw_embedding({"last": (syn, real / 0)}, class_syn, label_real, NAMES, "title")
    with pytest.raises(ValueError, match=r"2 features to be mapped, got \(15, 1\)"):
        draw_embedding({"last": (syn[:, :1], real[:, :1])}, class_syn, label_real, NAMES, "title")
