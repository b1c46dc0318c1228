"""Evaluation judges on the held-out images, with the step size and draws it says."""

import torch
from tiny import make_data, make_network

from mim4dd.distill.data import from_tensors
from mim4dd.distill.evaluate import Evaluation, evaluate, evaluate_full, evaluate_random_real

EVALUATION = Evaluation(num_eval=2, eval_steps=100, eval_dsa_strategy="none")


def test_accuracy_is_of_the_held_out_images():
    data = make_data()
    pixels = data.normalization.inverse(data.image_train)
    wrong = (data.label_train + 1) % 3  # held-out labels that contradict the training ones
    crossed = from_tensors(pixels, data.label_train, test=(pixels, wrong))
    honest = evaluate_full(lambda: make_network(data), 0.05, data, EVALUATION)
    assert honest.mean > 0.9
    assert evaluate_full(lambda: make_network(data), 0.05, crossed, EVALUATION).mean < 0.1


def test_the_step_size_counts():
    data = make_data()
    images, labels = data.sample(2, torch.Generator().manual_seed(0))
    still = evaluate(lambda: make_network(data), images, labels, 1e-12, data, EVALUATION)
    moved = evaluate(lambda: make_network(data), images, labels, 0.05, data, EVALUATION)
    assert moved.mean > still.mean + 0.2


def test_random_real_images_differ_from_network_to_network(monkeypatch):
    data = make_data()
    drawn = []
    sample = type(data).sample

    def spy(self, ipc, generator):
        drawn.append(sample(self, ipc, generator)[0])
        return sample(self, ipc, generator)

    monkeypatch.setattr(type(data), "sample", spy)
    evaluate_random_real(lambda: make_network(data), 1, 0.05, data, EVALUATION)
    assert len(drawn) == 2
    assert not torch.equal(drawn[0], drawn[1])
