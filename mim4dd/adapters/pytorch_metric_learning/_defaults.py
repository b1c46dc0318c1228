"""Which distances, reducers and other options of the peer's losses are what they do by default."""


def check_defaults(
    loss: str,
    default_reducer: str,
    *,
    distance: object,
    reducer: object,
    embedding_regularizer: object,
    collect_stats: object,
) -> None:
    """Refuse what would change the loss; what says a default explicitly does not."""
    if distance is not None and not _is_cosine(distance):
        raise ValueError(
            f"distance must be CosineSimilarity(), {loss}'s default, got {distance!r}: for others "
            f"use pytorch_metric_learning's own loss"
        )
    if reducer is not None and not _is_of_peer(reducer, "reducers", default_reducer):
        raise ValueError(
            f"reducer must be {default_reducer}(), {loss}'s default, got {reducer!r}: for others "
            f"use pytorch_metric_learning's own loss"
        )
    if embedding_regularizer is not None:
        raise ValueError(
            f"embedding_regularizer must be None, got {embedding_regularizer!r}: add its value "
            f"to that of {loss}"
        )
    if collect_stats:
        raise ValueError(f"collect_stats must be off, got {collect_stats}: no statistics are kept")


def _is_cosine(distance: object) -> bool:
    """CosineSimilarity, also as the dot product of what is normalised; p and power as they are."""
    named = any(
        _is_of_peer(distance, "distances", name)
        for name in ("CosineSimilarity", "DotProductSimilarity")
    )
    options = [getattr(distance, name, None) for name in ("normalize_embeddings", "p", "power")]
    return named and options == [True, 2, 1]


def _is_of_peer(value: object, package: str, name: str) -> bool:
    # By name, as the peer need not be installed; a class of one's own below it is another.
    kind = type(value)
    return kind.__name__ == name and kind.__module__.startswith(
        f"pytorch_metric_learning.{package}."
    )
