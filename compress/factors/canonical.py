"""Choosing the gauge: the coordinates in which factors are learned, predicted and quantised.

Two adapters can do the same thing with factors that look unrelated. Before anything is learned or
coded, each module is brought into one coordinate system:

- `shared`: adapters that started from the same random A (cosine of their A above 0.5, see
  `group_by_init`) keep their common coordinates, turned once per module by the rotation that
  orders the cohort's B by energy. A is then mostly the cohort's mean, which the generator knows.
- `balanced`: everything else. The SVD of ΔW with its singular values split evenly between the
  factors, signs fixed by the largest entry of each column of b.
- `raw`: as they are in the file, for the paper's architecture.

For quantising, each adapter is turned further into its own principal frame (`principal_frame`),
where an error in row i of `a` and one in row j do not interfere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorareg.compress.factors.weights import Factors, Float64

Coordinates = Literal["shared", "balanced", "raw"]

SAME_INIT_COSINE = 0.5

COMPARED = 1 << 19
"""Entries of A by which larger adapters are told apart: they give a cosine to within 0.001 or so."""


def balanced(factors: Factors) -> Factors:
    """The balanced SVD of a module: b = U sqrt(S), a = sqrt(S) V', components by falling energy."""
    qb, rb = np.linalg.qr(factors.b)
    qa, ra = np.linalg.qr(factors.a.T)
    u, s, vt = np.linalg.svd(rb @ ra.T, full_matrices=False)
    root = np.sqrt(s)
    b, a = (qb @ u) * root, root[:, None] * (vt @ qa.T)
    signs = np.where(b[np.abs(b).argmax(axis=0), np.arange(b.shape[1])] < 0, -1.0, 1.0)
    return _padded(Factors(b=b * signs, a=signs[:, None] * a), factors.rank)


def group_by_init(adapters: Iterable[Sequence[Factors]]) -> list[list[int]]:
    """Split a cohort into groups that share the random A they were initialised with.

    Training moves A little, so the cosine between two adapters of one seed stays high (0.9 for the
    adapters we measured) while different seeds are near orthogonal. Indices keep their order; of
    each group only the first member is held in memory, in single precision, and no more of it than
    `COMPARED` entries, evenly spaced.
    """
    groups: list[list[int]] = []
    firsts: list[NDArray[np.float32]] = []
    for index, modules in enumerate(adapters):
        vector = np.concatenate([f.a.ravel() for f in modules])
        vector = vector[:: -(-len(vector) // COMPARED)]
        vector /= max(float(np.linalg.norm(vector)), np.finfo(float).tiny)
        unit = vector.astype(np.float32)
        home = next((g for g, first in enumerate(firsts) if float(first @ unit) > SAME_INIT_COSINE), None)
        if home is None:
            groups.append([index])
            firsts.append(unit)
        else:
            groups[home].append(index)
    return groups


def shared_frames(adapters: Iterable[Sequence[Factors]]) -> list[Float64]:
    """Per module, the rotation (r, r) that orders the group's B by energy, strongest first."""
    grams: list[Float64] = []
    for modules in adapters:
        own = [f.b.T @ f.b for f in modules]
        grams = [total + gram for total, gram in zip(grams, own, strict=True)] if grams else own
    return [np.linalg.eigh(gram)[1][:, ::-1] for gram in grams]


def turned(factors: Factors, rotation: Float64) -> Factors:
    """The same ΔW in rotated coordinates: b @ q and q' @ a for an orthogonal q (r, r)."""
    return Factors(b=factors.b @ rotation, a=rotation.T @ factors.a)


def aligned(factors: Factors, anchor: Factors) -> Factors:
    """`factors` turned so that its `a` lies as close as it can to the anchor's (Procrustes)."""
    u, _, vt = np.linalg.svd(factors.a @ anchor.a.T)
    return turned(factors, u @ vt)


def principal_frame(b: Float64) -> Float64:
    """The rotation (r, r) into the right singular frame of b (d_out, r), near the identity in sign."""
    _, _, vt = np.linalg.svd(b, full_matrices=False)
    frame = np.eye(b.shape[1])
    frame[:, : vt.shape[0]] = vt.T
    if vt.shape[0] < b.shape[1]:
        frame, _ = np.linalg.qr(np.concatenate([vt.T, np.eye(b.shape[1])], axis=1))
        frame = frame[:, : b.shape[1]]
    signs = np.where(np.diagonal(frame) < 0, -1.0, 1.0)
    return frame * signs


def _padded(factors: Factors, rank: int) -> Factors:
    """Zero components up to `rank`, for modules narrower than their rank."""
    missing = rank - factors.a.shape[0]
    if missing == 0:
        return factors
    return Factors(
        b=np.pad(factors.b, ((0, 0), (0, missing))),
        a=np.pad(factors.a, ((0, missing), (0, 0))),
    )
