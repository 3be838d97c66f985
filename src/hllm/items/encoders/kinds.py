"""The kinds of encoder, and what a request needs to know of each before one is made (make.py)."""

from __future__ import annotations

from dataclasses import dataclass

VECTORS = "vectors:"  # begins the name of vectors that were brought in, not made here


@dataclass(frozen=True)
class Kind:
    """What decides the vectors of this kind of encoder.

    title             for messages
    is_language_model prompt, pooling, precision and max_tokens have a meaning for it
    separator         stands between an item's fields
    of_catalogue      its vectors depend on all texts of the catalogue, not on their own text alone
    """

    title: str
    is_language_model: bool = False
    separator: str = " "  # a control splits texts into words, so fields must not run into each other
    of_catalogue: bool = False


BROUGHT = Kind("vectors of others")
LANGUAGE_MODEL = Kind("language model", is_language_model=True, separator="")
CONTROLS = {"tfidf": Kind("TF-IDF", of_catalogue=True), "random": Kind("random")}


def kind_of(model: str) -> Kind:
    """The kind of the encoder with this canonical name."""
    return BROUGHT if model.startswith(VECTORS) else CONTROLS.get(model, LANGUAGE_MODEL)
