"""The confidence attack against a plain torch and scikit-learn transcription of [Jia2023]'s evaluation, to the record.

Like the released code, the transcription takes the softmax of the float32 logits in float32.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import svm
from torch.nn import functional

import expunge
from expunge.core.request import ForgetRequest
from expunge.evaluation import Parts, Predictions, evaluate, score_legacy


def true_class_probability(outputs: torch.Tensor, classes: torch.Tensor) -> np.ndarray:
    return torch.gather(functional.softmax(outputs, dim=-1), 1, classes.reshape(-1, 1)).numpy()


def attack(known_in: np.ndarray, known_out: np.ndarray) -> svm.SVC:
    truth = np.hstack([np.ones(known_in.shape[0]), np.zeros(known_out.shape[0])])
    return svm.SVC(C=3, gamma="auto", kernel="rbf").fit(np.vstack([known_in, known_out]), truth)


def transcribed(forget, retain, test):
    """MIA-Efficacy and MIA-Privacy in percent; the arguments are pairs of float32 logits and labels, in order."""
    f, r, t = (true_class_probability(*pair) for pair in (forget, retain, test))
    count, half = len(t), len(t) // 2
    efficacy = 1 - attack(r[:count], t).predict(f).mean()
    fitted = attack(r[:half], t[:half])
    privacy = (fitted.predict(r[half:]).mean() + (1 - fitted.predict(t[half:])).mean()) / 2
    return 100 * efficacy, 100 * privacy


def draw(generator: torch.Generator, count: int, ease: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a network that is nearly always sure: most float32 confidences round to a few numbers near 1."""
    labels = torch.randint(0, 10, (count,), generator=generator)
    logits = torch.randn(count, 10, generator=generator) * 2
    logits[torch.arange(count), labels] += ease + 3 * torch.randn(count, generator=generator)
    return logits, labels


def as_predictions(pair: tuple[torch.Tensor, torch.Tensor], prefix: str) -> Predictions:
    return Predictions(pair[0].numpy(), pair[1].numpy(), np.array([f"{prefix}{i}" for i in range(len(pair[1]))]))


@pytest.mark.parametrize("ease", [4.0, 12.0, 17.0])
def test_the_scores_agree_to_the_last_record(ease):
    generator = torch.Generator().manual_seed(int(ease))
    forget, retain, test = draw(generator, 3000, ease), draw(generator, 900, ease + 0.2), draw(generator, 400, ease)
    parts = Parts(
        *(as_predictions(pair, name) for pair, name in ((forget, "f"), (retain, "r"), (test, "v"), (test, "t"))),
        as_predictions(test, "u"),
        class_names=tuple("abcdefghij"),
    )
    scores = {score.name: score.value for score in score_legacy(parts)}
    efficacy, privacy = transcribed(forget, retain, test)
    assert round(scores["MIA-Efficacy"] * 30) == round(efficacy * 30)  # 30 records are 1 %
    assert scores["MIA-Efficacy"] == pytest.approx(efficacy, abs=1e-9)
    assert scores["MIA-Privacy"] == pytest.approx(privacy, abs=1e-9)


def test_the_confidence_is_the_float32_softmax_bit_for_bit():
    logits, labels = draw(torch.Generator().manual_seed(1), 5000, 14.0)
    found = as_predictions((logits, labels), "r")
    expected = true_class_probability(logits, labels)[:, 0]
    assert found.legacy_confidence.dtype == np.float64
    np.testing.assert_array_equal(found.legacy_confidence, expected.astype(np.float64))
    assert (found.legacy_confidence == 1.0).sum() > 10 * (found.confidence == 1.0).sum()
    assert as_predictions((logits[:0], labels[:0]), "r").legacy_confidence.shape == (0,)


def test_a_trained_network_is_scored_as_the_transcription_does():
    """The whole path from records to scores, with batches of another size than the package uses."""
    records = expunge.load_records("digits")
    split = expunge.make_split(records, seed=0)
    network = expunge.architecture("mlp", records, split, widths=(32,))
    recipe = expunge.get_recipe("one-cycle", epochs=12, batch_size=64)
    trained = expunge.train(records, split, network, recipe=recipe, runtime=expunge.Runtime("cpu"))
    request = ForgetRequest(split.retain[::5])
    scores = evaluate(trained, request, records, runtime=expunge.Runtime("cpu"))
    forget = np.isin(records.record_ids, request.record_ids)
    kept = np.isin(records.record_ids, split.retain) & ~forget
    found = []
    for chosen in (forget, kept, np.isin(records.record_ids, split.test)):
        inputs, labels = torch.tensor(records.features[chosen]), torch.tensor(records.labels[chosen])
        with torch.no_grad():
            found.append((torch.cat([trained.model(part) for part in inputs.split(256)]), labels))
    efficacy, privacy = transcribed(*found)
    assert scores["MIA-Efficacy"].value == pytest.approx(efficacy, abs=1e-9)
    assert scores["MIA-Privacy"].value == pytest.approx(privacy, abs=1e-9)
