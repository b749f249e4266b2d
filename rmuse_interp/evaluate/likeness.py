"""Can a method's responses be distinguished from another model's? A classifier's AUROC on the texts."""

from collections.abc import Sequence

import numpy as np

from rmuse_interp import RMuseError
from rmuse_interp.maths.statistics import Estimate, auroc_clustered


def likeness(
    ours: Sequence[str],
    theirs: Sequence[str],
    people: Sequence[str],
    their_people: Sequence[str],
    *,
    folds: int = 5,
    seed: int = 0,
) -> Estimate:
    """AUROC of distinguishing two sets of responses: 0.5 if they are alike. Intervals resample people.

    The classifier is a logistic regression on TF-IDF of words and word pairs and on the length, cross-validated by
    person: each response is scored by a fit that has seen no response about the same person.

    Args:
        ours: responses of the method.
        theirs: responses of the reference model, for instance the gold standard.
        people: IDs of the people our responses are about, one per response; nobody is in training and scoring at once.
        their_people: IDs of the people their responses are about, one per response.
        folds: the maximum number of folds; never more than there are people.
        seed: seed for resampling.

    Raises:
        RMuseError: a side is empty, responses and people differ in number, or there are fewer than two people.
    """
    owners = np.array([*people, *their_people])
    if not ours or not theirs or len(owners) != len(ours) + len(theirs) or len(set(owners)) < 2:
        raise RMuseError(
            f"responses of both sides, about two people or more, were required, got {len(ours)} and {len(theirs)} about "
            f"{len(set(owners))}"
        )
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    texts = np.array([*ours, *theirs], dtype=object)
    label = np.array([1] * len(ours) + [0] * len(theirs))
    length = np.array([[np.log1p(len(str(text).split()))] for text in texts])
    scores = np.zeros(len(texts))
    for train, test in GroupKFold(min(folds, len(set(owners)))).split(texts, label, owners):
        if len(set(label[train])) < 2:
            raise RMuseError("responses of both sides about most people were required: give the same people")
        words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+")
        seen, new = words.fit_transform(texts[train]), words.transform(texts[test])
        model = LogisticRegression(max_iter=1000).fit(hstack([seen, csr_matrix(length[train])]), label[train])
        scores[test] = model.decision_function(hstack([new, csr_matrix(length[test])]))
    mine, rest = scores[: len(ours)].tolist(), scores[len(ours) :].tolist()
    return auroc_clustered(mine, rest, people, their_people, together=True, seed=seed)
