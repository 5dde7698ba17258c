"""How far single latent codes stand for single known factors, as numbers: MIG, DCI, SAP, BetaVAE, FactorVAE, MCC.

Codes are posterior means, one row a trial, `(n, D)`; factors are what is known of the same trials, `(n, F)`. A factor
of at most 20 distinct values is discrete and its values are levels, named by no order; a factor of more is continuous,
and where a measure asks for levels it gets 10 quantile bins. A code that never varies is allowed: it knows nothing.

**A circular factor** (direction) needs two codes, about its cosine and sine, unless a code jumps where the circle is
cut. A gap between the best and the second code then says nothing: it is 0 for the ideal pair. So give `mig` and `sap`
the other columns only, and judge direction by what counts *per code* or does not count codes at all: the
disentanglement of `dci` (its completeness falls as the gaps do), `beta_vae_score`, `factor_vae_score`,
`probes.label_probe`. The cosine and sine as two factors are no way out: they are not independent, and which two axes
the circle lies along is arbitrary.

All figures depend on the trials at hand; hold models against each other on the same trials only.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import entropy
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import balanced_accuracy_score, mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

__all__ = [
    "DCI",
    "beta_vae_score",
    "dci",
    "factor_vae_score",
    "is_continuous",
    "level_of",
    "mcc",
    "mig",
    "purity",
    "sap",
]

MOST_LEVELS = 20  # of a discrete factor
QUANTILES = 10  # levels of a continuous one
LEAST_TRIALS = 5  # of each level
CONSTANT = 1e-6  # a range below this part of the largest value is rounding in single precision
TREES = 30  # boosting rounds
GROUPS = 600  # that share a factor's level, a half of the trials
PAIRS = 32  # of trials in a group


class DCI(NamedTuple):
    """What `dci` found, each figure at most 1."""

    disentanglement: float
    completeness: float
    informativeness: float


def mig(codes: np.ndarray, factors: np.ndarray, bins: int = 20) -> float:
    """Mutual information gap: how much more the best code knows of a factor than the second (Chen et al. 2018).

        mean over factors of  (I(best code; factor) - I(second code; factor)) / H(factor)

    Codes are cut into equal widths over their range. 1 means one code tells each factor and no other code says
    anything of it; the best and the second share the upward bias that I has in few trials, about
    (bins - 1) (levels - 1) / 2n nats. A circular factor cannot reach 1 (see the module); one factor's own gap is
    `mig(codes, factors[:, [k]])`. Source: arXiv 1802.04942.

    Args:
        codes: posterior means, `(n, D)`, D of at least 2.
        factors: known values, `(n, F)`.
        bins: that a code's range is cut into.

    Returns:
        The gap, in 0 to 1.

    Raises:
        ValueError: shapes differ, values are not finite, or a factor has one level or a level of fewer than 5 trials.

    >>> speed, gain = np.repeat([1.0, 2.0], 20), np.tile([0.5, 1.0], 20)
    >>> round(mig(np.stack([gain, speed], 1), np.stack([speed, gain], 1)), 6)
    1.0
    """
    codes, factors = _checked(codes, factors)
    binned = _equal_widths(codes, bins).T
    gaps = []
    for level in map(level_of, factors.T):
        tables = [contingency_matrix(code, level) for code in binned]
        known = [mutual_info_score(None, None, contingency=table) for table in tables]
        gaps.append(_gap(known) / entropy(np.bincount(level)))
    return float(np.mean(gaps))


def dci(codes: np.ndarray, factors: np.ndarray, seed: int = 0) -> DCI:
    """Disentanglement, completeness and informativeness (Eastwood & Williams 2018).

        R[i, k]          importance of code i when boosted trees predict factor k; each column sums to 1
        disentanglement  purity(R): does a code serve one factor only?
        completeness     purity(R^T): is a factor served by one code only?
        informativeness  mean over factors of the held-out accuracy (discrete) or R2 (continuous, may be below 0)

    The trees are scikit-learn's gradient boosting, depth 3, 30 rounds, on three quarters of the trials, the rest held
    out: about a second for 800 trials, 32 codes and 8 levels. 100 rounds change disentanglement by .05 at most, where
    codes are much mixed; random forests are faster and no good here, since each split sees a few codes only and so
    uses noise (.4 instead of 1 for 4 pure codes among 28 of noise). Importances say which codes the trees used, not
    whether that helped: where informativeness is at chance, the other two figures mean nothing.
    Source: openreview.net/forum?id=By-7dz-AZ.

    Args:
        codes: posterior means, `(n, D)`, D of at least 2.
        factors: known values, `(n, F)`, F of at least 2.
        seed: of the split and the trees.

    Raises:
        ValueError: shapes differ, values are not finite, or a factor has one level or a level of fewer than 5 trials.
    """
    codes, factors = _checked(codes, factors, least_factors=2)
    fits = [_boosted(codes, factor, seed) for factor in factors.T]
    importance = np.stack([column for column, _ in fits], 1)
    return DCI(purity(importance), purity(importance.T), float(np.mean([score for _, score in fits])))


def purity(importance: np.ndarray) -> float:
    """How near each row is to having one entry only, weighted by the rows' sums.

        sum_i rho_i (1 - H_K(R_i / sum R_i)),   rho_i = sum R_i / sum R,   H_K with logarithms to base K

    Args:
        importance: R, `(rows, K)`, K of at least 2, nothing negative.

    Returns:
        0 where all rows are even, 1 where each has one entry; 0 where everything is 0.

    >>> purity(np.array([[1.0, 0.0], [0.0, 3.0]]))
    1.0
    >>> purity(np.array([[1.0, 1.0], [0.0, 2.0]]))  # half of the weight is even, half is pure
    0.5
    """
    total = importance.sum(1)
    used = importance[total > 0]
    if used.size == 0:
        return 0.0
    return float(np.average(1 - entropy(used, axis=1, base=importance.shape[1]), weights=total[total > 0]))


def sap(codes: np.ndarray, factors: np.ndarray, seed: int = 0) -> float:
    """Separated attribute predictability: how much better the best code predicts a factor alone (Kumar et al. 2018).

        mean over factors of  score(best code) - score(second code)

    A code's score is, for a discrete factor, the held-out accuracy of a linear support vector machine (C = 0.01, on the
    standardised code, each level of the same weight however many its trials), and for a continuous one the held-out R2
    of a straight line, at least 0. A code that never varies scores as guessing does, 1/levels: with 0 instead, one code
    of noise among dead ones would have a gap. So the most for a discrete factor is about 1 - 1/levels. A
    circular factor has no gap (see the module). Source: arXiv 1711.00848.

    Args:
        codes: posterior means, `(n, D)`, D of at least 2.
        factors: known values, `(n, F)`.
        seed: of the split: a quarter of the trials is held out.

    Returns:
        The gap, in 0 to 1.

    Raises:
        ValueError: shapes differ, values are not finite, or a factor has one level or a level of fewer than 5 trials.
    """
    codes, factors = _checked(codes, factors)
    columns = _standardised(codes).T[:, :, None]
    return float(np.mean([_gap([_line_score(code, factor, seed) for code in columns]) for factor in factors.T]))


def beta_vae_score(codes: np.ndarray, factors: np.ndarray, seed: int = 0) -> float:
    """How well the differences of pairs of trials tell which factor the pairs share (Higgins et al. 2017).

        feature of a group = mean over 32 pairs of |code - code'|, codes standardised, `(D,)`
        score = held-out accuracy of a logistic regression from features to the shared factor

    The published score draws from a generator; here both trials of a pair are recorded ones that have the same level of
    one factor, and the others vary as they do in the recording: factors should be crossed, not nested. Held-out groups
    are made of held-out trials, half of all, since few trials drawn again and again are known by their noise. Chance
    is 1/F, which is also what codes score that never vary. Source: openreview.net/forum?id=Sy2fzU9gl.

    Args:
        codes: posterior means, `(n, D)`, D of at least 2.
        factors: known values, `(n, F)`, F of at least 2.
        seed: of the halves and the groups.

    Returns:
        The accuracy, in 0 to 1.

    Raises:
        ValueError: shapes differ, values are not finite, or a factor has one level or a level of fewer than 5 trials,
            or of a single one in either half.
    """
    codes, factors = _checked(codes, factors, least_factors=2)
    z = _standardised(codes)
    (seen, shared), (held, held_shared) = [
        (np.abs(z[pairs[..., 0]] - z[pairs[..., 1]]).mean(1), shared) for pairs, shared in _halves(factors, seed)
    ]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(seen, shared)
    return float(classifier.score(held, held_shared))


def factor_vae_score(codes: np.ndarray, factors: np.ndarray, seed: int = 0) -> float:
    """How well the code that varies least in a group of trials tells which factor the group shares (Kim & Mnih 2018).

        vote of a group = argmin over codes of  var(code in the group) / var(code)
        score = held-out accuracy of the classifier that names, for each code, the factor it was most often the vote of

    Groups are of 64 recorded trials, made and held out as for `beta_vae_score`. Codes that never vary are dropped; if
    none varies the score is chance, 1/F. Several codes may stand for one factor: a circular one loses nothing.
    Source: arXiv 1802.05983.

    Args:
        codes: posterior means, `(n, D)`, D of at least 2.
        factors: known values, `(n, F)`, F of at least 2.
        seed: of the halves and the groups.

    Returns:
        The accuracy, in 0 to 1.

    Raises:
        ValueError: shapes differ, values are not finite, or a factor has one level or a level of fewer than 5 trials,
            or of a single one in either half.
    """
    codes, factors = _checked(codes, factors, least_factors=2)
    z = _standardised(codes)
    varies = z.any(0)
    (vote, shared), (held_vote, held_shared) = [
        (np.where(varies, z[pairs].var((1, 2)), np.inf).argmin(1), shared) for pairs, shared in _halves(factors, seed)
    ]
    votes = np.zeros((z.shape[1], factors.shape[1]))
    np.add.at(votes, (vote, shared), 1)
    return float(np.mean(votes.argmax(1)[held_vote] == held_shared))


def mcc(codes: np.ndarray, sources: np.ndarray) -> float:
    """Mean correlation coefficient: each true source against a code of its own (Khemakhem et al. 2020).

        1/F  max over assignments of  sum_k |Pearson correlation(code(k), source k)|,   no code used twice

    Order, sign and scale of the codes do not matter. A source that is left without a code (D < F) counts 0, as does one
    whose code never varies. Source: arXiv 1907.04809.

    Args:
        codes: posterior means, `(n, D)`.
        sources: the true sources' values, `(n, F)`.

    Returns:
        The mean, in 0 to 1.

    Raises:
        ValueError: shapes differ, there are fewer than 3 rows, values are not finite, or a source does not vary.

    >>> sources = np.array([[0.0, 1.0], [1.0, -2.0], [2.0, 1.0]])
    >>> round(mcc(-3 * sources[:, ::-1], sources), 6)
    1.0
    """
    codes, sources = _matrices(codes, sources)
    z, s = _standardised(codes), _standardised(sources)
    if len(z) < 3:
        raise ValueError(f"{len(z)} rows: a correlation needs at least 3")
    if not s.any(0).all():
        raise ValueError(f"source {int(np.argmin(s.any(0)))} does not vary")
    correlation = np.minimum(np.abs(z.T @ s) / len(z), 1)
    return float(correlation[linear_sum_assignment(correlation, maximize=True)].sum() / s.shape[1])


def is_continuous(values: np.ndarray) -> bool:
    """Whether a factor or label is continuous: floats, of more than 20 distinct values. Integers and text are levels.

    >>> is_continuous(np.array([0.0, 45.0, 90.0])), is_continuous(np.arange(30)), is_continuous(np.arange(30.0))
    (False, False, True)
    """
    return bool(np.issubdtype(values.dtype, np.floating) and np.unique(values).size > MOST_LEVELS)


def level_of(values: np.ndarray) -> np.ndarray:
    """Which level each trial has, `(n,)`, integers from 0; a continuous factor's levels are its 10 quantile bins.

    Raises:
        ValueError: there is one level only, or a level has fewer than 5 trials.

    >>> level_of(np.repeat([45.0, 0.0, 90.0], 5))
    array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2])
    """
    if is_continuous(values):
        values = np.searchsorted(np.quantile(values, np.arange(1, QUANTILES) / QUANTILES), values)
    levels, level, trials = np.unique(values, return_inverse=True, return_counts=True)
    if levels.size < 2:
        raise ValueError(f"a factor has one level only, {levels[0]}: there is nothing to tell")
    if trials.min() < LEAST_TRIALS:
        rare = levels[trials.argmin()]
        raise ValueError(f"level {rare} of a factor has {trials.min()} trials: at least {LEAST_TRIALS} are needed")
    return level


def _boosted(codes: np.ndarray, factor: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """Importance of each code for one factor, `(D,)`, and the held-out score."""
    kind = GradientBoostingRegressor if is_continuous(factor) else GradientBoostingClassifier
    x, x_held, y, y_held = _split(codes, factor, seed)
    model = kind(n_estimators=TREES, max_depth=3, random_state=seed).fit(x, y)
    return np.maximum(model.feature_importances_, 0), float(model.score(x_held, y_held))  # -1e-18 is rounding


def _line_score(code: np.ndarray, factor: np.ndarray, seed: int) -> float:
    """Held-out score of one code `(n, 1)`, in 0 to 1."""
    x, x_held, y, y_held = _split(code, factor, seed)
    if is_continuous(factor):
        return max(0.0, float(LinearRegression().fit(x, y).score(x_held, y_held)))
    machine = LinearSVC(C=0.01, class_weight="balanced").fit(x, y)
    return float(balanced_accuracy_score(y_held, machine.predict(x_held)))


def _split(codes: np.ndarray, factor: np.ndarray, seed: int) -> list[np.ndarray]:
    """Codes and targets, three quarters to fit on and a quarter held out, with the same share of each level."""
    level = level_of(factor)
    target = factor if is_continuous(factor) else level
    return train_test_split(codes, target, test_size=0.25, stratify=level, random_state=seed)


def _halves(factors: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """From either half of the trials: groups of pairs, `(GROUPS, PAIRS, 2)`, and which factor each group shares."""
    rng = np.random.default_rng(seed)
    levels = np.stack([level_of(factor) for factor in factors.T])
    shared = np.arange(GROUPS) % len(levels)
    halves = np.array_split(rng.permutation(len(factors)), 2)
    return [(np.stack([_pairs(levels[k], half, rng) for k in shared]), shared) for half in halves]


def _pairs(level: np.ndarray, trials: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pairs of distinct trials of one level, that of a trial drawn from `trials`, `(PAIRS, 2)`.

    A trial is never its own partner: such differences of 0 are rarer where levels are fewer, and would tell the factor.
    """
    same = trials[level[trials] == level[rng.choice(trials)]]
    if same.size < 2:
        raise ValueError("a level of a factor has a single trial in one half of the trials: no pair can be made")
    first = rng.integers(same.size, size=PAIRS)
    second = (first + rng.integers(1, same.size, size=PAIRS)) % same.size
    return same[np.stack([first, second], 1)]


def _gap(scores: list[float]) -> float:
    second, best = sorted(scores)[-2:]
    return best - second


def _equal_widths(codes: np.ndarray, bins: int) -> np.ndarray:
    """Which of `bins` equal widths of its code's range each value lies in."""
    span = np.ptp(codes, 0)
    part = (codes - codes.min(0)) / np.where(span > 0, span, 1)
    return np.minimum(part * bins, bins - 1).astype(int)


def _standardised(columns: np.ndarray) -> np.ndarray:
    """Each column less its mean, over its standard deviation; 0 for a column that does not vary."""
    varies = np.ptp(columns, 0) > CONSTANT * np.abs(columns).max(0)
    return np.where(varies, columns - columns.mean(0), 0) / np.where(varies, columns.std(0), 1)


def _checked(codes: np.ndarray, factors: np.ndarray, least_factors: int = 1) -> tuple[np.ndarray, np.ndarray]:
    codes, factors = _matrices(codes, factors)
    if codes.shape[1] < 2 or factors.shape[1] < least_factors:
        found = f"{codes.shape[1]} codes, {factors.shape[1]} factors"
        raise ValueError(f"{found}: at least 2 codes and {least_factors} factors are needed")
    return codes, factors


def _matrices(codes: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    codes, factors = np.asarray(codes, float), np.asarray(factors, float)
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors) or 0 in (codes.size, factors.size):
        raise ValueError(f"shapes {codes.shape} and {factors.shape}: both must be (trials, columns), with equal trials")
    if not (np.isfinite(codes).all() and np.isfinite(factors).all()):
        raise ValueError("codes and factors must be finite")
    return codes, factors
