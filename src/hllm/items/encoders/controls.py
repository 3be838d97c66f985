"""Encoders without a language model, to show what the language model adds.

`tfidf` knows which words items share and nothing of what they mean; `random` knows only that two
items with the same text are the same. Both are deterministic and read the item's fields without the
prompt.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter

import numpy as np
import torch
from torch import Tensor

DIM = 256
_WORD = re.compile(r"\w+")
_OVERSAMPLE, _ITERATIONS = 16, 8


class TfidfEncoder:
    """Rows of U S of the truncated SVD of the TF-IDF matrix (latent semantic analysis, Deerwester 1990).

    Terms are lower-case words; tf = 1 + ln count, idf = ln(1 + n / df), rows of unit length. The
    vectors depend on all texts of the catalogue, so a change of one text changes all of them.
    dim = min(256, texts, distinct words), known after `prepare`.
    """

    budget: int | None = None

    def __init__(self) -> None:
        self.dim = DIM
        self.truncated = np.zeros(0, dtype=bool)
        self.vectors = np.zeros((0, DIM), dtype=np.float32)

    def prepare(self, texts: list[str]) -> np.ndarray:
        matrix = tfidf_matrix(texts)
        self.vectors = truncated_svd(matrix, min(DIM, *matrix.shape)).float().numpy()
        self.dim = self.vectors.shape[1]
        self.truncated = np.zeros(len(texts), dtype=bool)
        return np.ones(len(texts), dtype=np.int64)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        return self.vectors[rows]


class RandomEncoder:
    """Standard normal vectors (256,) drawn from the text's own hash."""

    dim = DIM
    budget: int | None = None

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.truncated = np.zeros(0, dtype=bool)

    def prepare(self, texts: list[str]) -> np.ndarray:
        self.texts = texts
        self.truncated = np.zeros(len(texts), dtype=bool)
        return np.ones(len(texts), dtype=np.int64)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([random_vector(self.texts[i]) for i in rows])


def random_vector(text: str) -> np.ndarray:
    """The vector float32 (256,) of `text`: the same on every machine."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest(), "little")
    return np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)


def tfidf_matrix(texts: list[str]) -> Tensor:
    """TF-IDF of `texts` as a sparse CSR float64 tensor (n, words), rows of unit length."""
    counts = [Counter(_WORD.findall(text.lower())) for text in texts]
    frequency = Counter(word for row in counts for word in row)
    column = {word: i for i, word in enumerate(sorted(frequency))}
    columns, values, offsets = [], [], [0]
    for row in counts:
        words = sorted(row)
        weights = np.array([(1 + np.log(row[w])) * np.log(1 + len(texts) / frequency[w]) for w in words])
        columns += [column[w] for w in words]
        values.append(weights / max(float(np.linalg.norm(weights)), 1e-12))
        offsets.append(len(columns))
    flat = torch.from_numpy(np.concatenate([*values, np.zeros(0)]))
    index = torch.tensor(offsets), torch.tensor(columns, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once that sparse tensors are in beta
        return torch.sparse_csr_tensor(*index, flat, (len(texts), max(len(column), 1)))


def truncated_svd(matrix: Tensor, rank: int) -> Tensor:
    """U S float64 (n, rank) of a sparse float64 matrix, by randomised subspace iteration
    (Halko, Martinsson and Tropp, 2011) from a fixed start; signs fixed so that two runs agree."""
    width = min(rank + _OVERSAMPLE, *matrix.shape)
    transposed = matrix.t().to_sparse_csr()
    start = torch.randn(
        matrix.shape[1], width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(transposed @ basis).Q).Q
    u, s, _ = torch.linalg.svd((transposed @ basis).T, full_matrices=False)
    rows = (basis @ u[:, :rank]) * s[:rank]
    return rows * torch.sign(rows[rows.abs().argmax(0), torch.arange(rows.shape[1])])
