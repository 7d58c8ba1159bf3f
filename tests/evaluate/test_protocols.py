"""What is measured, what is left out, and that both are said."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from daybreak.data.sources import Labels
from daybreak.errors import Refused
from daybreak.evaluate import protocols
from daybreak.evaluate.protocols import DEFAULT, PROTOCOLS, Found, Protocol, Skipped, evaluate_features, evaluate_scores
from daybreak.evaluate.tasks import Outside


def some(count: int, seed: int, names=("cat", "dog"), noise: float = 0.3):
    """Vectors around one centre a class, so that they are easy to tell apart."""
    centres = torch.eye(6)[:, :4].repeat(1, 2) + torch.eye(6, 8)
    random = torch.Generator().manual_seed(seed)
    values = torch.arange(count) % len(names)
    vectors = centres[values] + noise * torch.randn(count, 8, generator=random)
    return vectors, Labels("class", values.numpy(), tuple(names))


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    from daybreak.evaluate import linear

    monkeypatch.setattr(linear, "STEPS", 100)


def test_every_number_carries_its_protocol():
    results, skipped = evaluate_features(*some(60, 0), *some(30, 1), backbone="random", data="f00d", seed=3)
    assert not skipped
    names = {(f"{r.protocol}-{r.version}", r.metric) for r in results}
    assert {("knn-v1", "accuracy"), ("knn-v1", "accuracy (standardised)"), ("linear-v1", "macro F1")} <= names
    for r in results:
        assert (r.backbone, r.data, r.seed, r.num_train, r.num_test, r.num_classes) == ("random", "f00d", 3, 60, 30, 2)
        assert 0.9 < r.value <= 1
        assert (r.error is not None) == r.metric.startswith("accuracy")


def test_unknown_images_are_left_out():
    (bank, labels), (queries, truth) = some(60, 0), some(30, 1)
    bank[::2], queries[::3] = 100, -100  # would spoil everything
    labels = Labels("class", np.where(np.arange(60) % 2 == 0, -1, np.arange(60) // 2 % 2), labels.classes)
    bank[1::2] = some(30, 0)[0]
    truth = Labels("class", np.where(np.arange(30) % 3 == 0, -1, truth.values), truth.classes)
    results, _ = evaluate_features(bank, labels, queries, truth, protocols=("knn-v1",))
    assert (results[0].num_train, results[0].num_test) == (30, 20)
    assert results[0].value > 0.9


def test_a_class_of_one_image_is_left_out_and_said():
    bank, labels = some(21, 0, ("cat", "dog"))
    values = labels.values.copy()
    values[20] = 2
    results, skipped = evaluate_features(bank, Labels("class", values, ("cat", "dog", "yak")), *some(10, 1),
                                         protocols=("knn-v1",))
    assert results[0].num_classes == 2 and results[0].num_train == 20
    assert skipped == [Skipped("knn-v1", "1 of 3 classes have fewer than 2 images; left out: yak.")]


def test_classes_of_one_image_each_give_no_accuracy():
    names = tuple("abcdef")
    bank, labels = some(6, 0, names)
    results, skipped = evaluate_features(bank[:4], labels.take(np.arange(4)), bank[4:], labels.take(np.arange(4, 6)))
    assert not results and [s.protocol for s in skipped] == list(DEFAULT)
    assert "0 of 6 classes have at least 2 images" in str(skipped[0])


@pytest.mark.parametrize(("kind", "words"), [("multi", "several labels an image"), ("value", "numbers for labels")])
def test_other_kinds_of_labels_are_skipped_with_the_reason(kind, words):
    bank, _ = some(20, 0)
    labels = Labels(kind, np.zeros((20, 2)), ("a", "b"))
    results, skipped = evaluate_features(bank, labels, bank, labels)
    assert not results and all(words in s.reason for s in skipped)


def test_no_labels_no_accuracy():
    bank, _ = some(20, 0)
    results, skipped = evaluate_features(bank, None, bank, None, protocols=("knn-v1",))
    assert not results and skipped[0].reason.startswith("The images of the bank have no labels")
    results, skipped = evaluate_features(*some(20, 0), bank, None, protocols=("knn-v1",))
    assert not results and skipped[0].reason.startswith("The queries have no labels")


def test_classes_are_matched_by_name():
    queries, truth = some(30, 1)
    turned = Labels("class", 1 - truth.values, ("dog", "cat"))
    right, _ = evaluate_features(*some(60, 0), queries, truth, protocols=("knn-v1",))
    same, _ = evaluate_features(*some(60, 0), queries, turned, protocols=("knn-v1",))
    assert [r.value for r in same] == [r.value for r in right]
    strange = Labels("class", truth.values, ("cow", "cat"))  # the bank holds no cow
    wrong, _ = evaluate_features(*some(60, 0), queries, strange, protocols=("knn-v1",))
    assert wrong[0].value < 0.1 and wrong[0].num_classes == 3


def test_groups_reach_the_split_and_the_error(monkeypatch):
    seen = []
    monkeypatch.setattr(protocols, "standard_error", lambda right, groups, seed: seen.append(groups) or 0.0)
    (bank, labels), (queries, truth) = some(60, 0), some(30, 1)
    labels = Labels("class", np.where(np.arange(60) < 6, -1, labels.values), labels.classes)
    monkeypatch.setitem(PROTOCOLS, "linear-v1", Protocol(lambda task, seed: seen.append(task.train_groups) or Found([])))
    evaluate_features(bank, labels, queries, truth, bank_groups=[f"b{i // 2}" for i in range(60)],
                      query_groups=[f"q{i // 3}" for i in range(30)])
    assert [f"b{i // 2}" for i in range(6, 60)] in seen and [f"q{i // 3}" for i in range(30)] in seen


def test_unknown_protocols_are_refused_with_the_nearest():
    with pytest.raises(Refused, match="did you mean 'knn-v1'"):
        evaluate_features(*some(10, 0), *some(10, 1), protocols=("knn-v2",))


def test_classes_the_bank_lacks_are_said():
    queries, truth = some(30, 1)
    lacking = Labels("class", truth.values, ("cow", "cat"))
    results, skipped = evaluate_features(*some(60, 0), queries, lacking, protocols=("retrieval-v1",))
    assert "1 of 2 classes of the queries are not in the bank; their 15 images count as errors: cow." in str(skipped[0])
    assert {r.metric: r.value for r in results}["recall@1"] <= 0.5
    other = Labels("class", truth.values, ("cow", "yak"))
    results, skipped = evaluate_features(*some(60, 0), queries, other, protocols=("knn-v1",))
    assert not results and str(skipped[0]) == ("knn-v1: No class of the queries (cow, yak) is in the bank (cat, dog); "
                                               "give the same label column for both.")


def test_a_bank_of_one_class_gives_no_number():
    bank, labels = some(60, 0)
    one = Labels("class", np.zeros_like(labels.values), labels.classes)
    results, skipped = evaluate_features(bank, one, *some(30, 1))
    assert not results and skipped[0].reason == "The bank holds one class only, cat; 2 are needed."


def test_a_bank_smaller_than_k_is_said():
    results, skipped = evaluate_features(*some(12, 0), *some(10, 1), protocols=("knn-v1",))
    assert results and skipped == [Skipped("knn-v1", "the bank has 12 images, fewer than k = 20; all of them vote.")]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_give_no_number(bad):
    bank, labels = some(60, 0)
    bank[7, 3] = bad
    results, skipped = evaluate_features(bank, labels, *some(30, 1), protocols=tuple(PROTOCOLS))
    assert not results and len(skipped) == len(PROTOCOLS)
    assert "1 of 60 vectors of the bank are not finite (the first is that of image 7" in skipped[0].reason


def several(count: int, seed: int, names=("edema", "mass")):
    vectors, labels = some(count, seed)
    values = np.stack([labels.values, 1 - labels.values], 1).astype(np.float32)
    return vectors, Labels("multi", values, names)


def test_several_labels_are_matched_by_name_and_unknown_images_left_out():
    bank, queries = several(60, 0), several(30, 1, ("mass", "edema"))
    queries[1].values[:, :] = queries[1].values[:, ::-1].copy()
    queries[1].values[4] = np.nan
    results, skipped = evaluate_features(*bank, *queries, protocols=("multilabel-v1",), seed=2)
    assert not skipped and {r.metric: r.value for r in results}["AUC (mass)"] > 0.9
    assert all((r.num_train, r.num_test, r.num_classes, r.error is not None) == (60, 29, 2, True) for r in results)


def test_labels_of_one_side_or_of_one_value_are_said():
    bank, queries = several(60, 0), several(30, 1, ("edema", "cyst"))
    results, skipped = evaluate_features(*bank, *queries, protocols=("multilabel-v1",))
    assert skipped == [Skipped("multilabel-v1", "2 labels are those of one side only; left out: mass, cyst.")] and results
    queries = several(30, 1)
    queries[1].values[:, 1] = 0
    results, skipped = evaluate_features(*bank, *queries, protocols=("multilabel-v1",))
    assert "1 of 2 labels have one value only" in str(skipped[0]) and "AUC (mass)" not in {r.metric for r in results}
    queries[1].values[:, 0] = 1
    results, skipped = evaluate_features(*bank, *queries, protocols=("multilabel-v1",))
    assert not results and "None of 2 labels has both values" in str(skipped[0])
    results, skipped = evaluate_features(*bank, *several(30, 1, ("a", "b")), protocols=("multilabel-v1",))
    assert not results and "No label of the queries (a, b) is in the bank (edema, mass)" in str(skipped[0])


def test_scores_of_label_tokens_are_matched_by_name_and_must_be_finite():
    _, truth = several(30, 1)
    scores = torch.from_numpy(truth.values[:, ::-1].copy())  # as right as can be, in another order, and a token too many
    scores = torch.cat([scores, torch.zeros(30, 1)], 1)
    results, skipped = evaluate_scores(scores, ("mass", "edema", "cyst"), truth)
    assert {r.metric for r in results} >= {"mean AUC", "AUC (mass)", "AUC (edema)"} and {r.value for r in results} == {1}
    assert len(skipped) == 1 and skipped[0].reason.endswith("not both values in the queries; left out: cyst.")
    assert evaluate_scores(scores[:, :2], ("mass", "edema"), truth)[1] == []
    scores[3, 1] = torch.nan
    results, skipped = evaluate_scores(scores, ("mass", "edema", "cyst"), truth)
    assert not results and "1 of 30 vectors of the queries are not finite" in skipped[0].reason


def test_rank_needs_no_labels_and_ood_other_images():
    bank, queries = some(60, 0)[0], some(30, 1)[0]
    results, _ = evaluate_features(bank, None, queries, None, protocols=("rank-v1",), test_data="q")
    assert {"rankme", "uniformity"} <= {r.metric for r in results} and all(r.num_test == 0 and not r.test_data for r in results)
    results, skipped = evaluate_features(*some(60, 0), *some(30, 1), protocols=("ood-v1", "knn-v1"))
    assert "--ood DATA" in str(skipped[0]) and {r.protocol for r in results} == {"knn"}
    outside = Outside(10 - bank[:20], None, "0dd")
    results, _ = evaluate_features(*some(60, 0), *some(30, 1), protocols=("ood-v1",), outside=outside, test_data="q")
    assert {(r.test_data, r.num_test, r.num_classes) for r in results} == {("q+0dd", 50, 2)}


def test_the_table_of_the_documentation_is_that_of_the_code():
    text = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text()
    first = text.partition("\n## ")[0]  # later tables show numbers
    assert re.findall(r"^\| `([a-z-]+-v\d+)` \|", first, re.MULTILINE) == [*PROTOCOLS, "finetune-v1"]
