"""Keys that a query leaves out: itself where the keys are not the queries, and others by index."""

import pytest
import torch

from mim4dd import info_nce, log_sum_exp, nce, reference, sup_con

N, M, D = 6, 9, 4


def padded(index, size):
    """Rows of different length with −1 behind them."""
    return torch.tensor([row + [-1] * (size - len(row)) for row in index])


SELF = torch.tensor([8, 3, -1, 0, 5, 2])
FALSE_NEGATIVES = padded([[0, 1], [], [4], [7, 7, 2], [], [1]], 3)


def functions(labels, key_labels):
    def by_index(query, key, **options):
        return info_nce(query, key, positive_index=torch.tensor([1, 2, 3, 4, 0, -1]), **options)

    def by_label(function, **fixed):
        def loss(query, key, **options):
            return function(query, key, labels, key_labels, **fixed, **options)

        return loss

    return {
        "by index": by_index,
        "sup_con": by_label(sup_con),
        "in, decoupled": by_label(sup_con, variant="in", decoupled=True),
        "hard": by_label(sup_con, hardness=0.5, normalize=True),
        "nce": by_label(nce),
    }


LABELS, KEY_LABELS = torch.tensor([0, 1, 2, 0, 1, 3]), torch.tensor([0, 1, 2, 0, 1, 2, -1, 0, 1])
FUNCTIONS = functions(LABELS, KEY_LABELS)


@pytest.fixture
def features(device):
    new = {"dtype": torch.float64, "device": device, "requires_grad": True}
    return torch.randn(N, D, **new), torch.randn(M, D, **new)


def left_out(*indices):
    """(N, M), True where a key is named."""
    mask = torch.zeros(N, M, dtype=torch.bool)
    for index in indices:
        for row, names in enumerate(index.reshape(N, -1).tolist()):
            mask[row, [name for name in names if name >= 0]] = True
    return mask


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(
    ("options", "excluded"),
    [
        ({"self_index": SELF}, left_out(SELF)),
        ({"exclude_index": FALSE_NEGATIVES}, left_out(FALSE_NEGATIVES)),
        ({"self_index": SELF, "exclude_index": FALSE_NEGATIVES}, left_out(SELF, FALSE_NEGATIVES)),
    ],
    ids=["self", "others", "both"],
)
def test_the_normaliser_is_that_of_the_other_keys(options, excluded, backend, features):
    query, key = features
    options = {name: index.to(query.device) for name, index in options.items()}
    logits = (query @ key.T).masked_fill(excluded.to(query.device), -torch.inf)
    actual = log_sum_exp(query, key, temperature=1.0, backend=backend, **options)
    torch.testing.assert_close(actual, logits.logsumexp(1))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_losses_and_derivatives(name, features):
    """Of one query at a time, without the keys that it leaves out, by the same function."""
    loss = FUNCTIONS[name]
    query, key = (side.detach().cpu().requires_grad_() for side in features)
    options = {"self_index": SELF, "exclude_index": FALSE_NEGATIVES, "temperature": 0.5}
    expected = loss(query, key, reduction="none", backend="reference", **options)
    for row in range(N):
        kept = (~left_out(SELF, FALSE_NEGATIVES))[row].nonzero().flatten()
        assert_alone(loss, name, query, key, row, kept, expected[row])

    actual = loss(query, key, reduction="none", **options)
    torch.testing.assert_close(actual, expected)
    upstream, tangents = torch.randn(N).double(), [torch.randn_like(each) for each in (query, key)]
    torch.testing.assert_close(
        *(derivatives(value, (query, key), upstream, tangents) for value in (actual, expected))
    )


def derivatives(value, inputs, upstream, tangents):
    first = torch.autograd.grad(value, inputs, upstream, create_graph=True)
    return first, torch.autograd.grad(first, inputs, tangents)


def assert_alone(loss, name, query, key, row, kept, expected):
    """The definition of ``row`` alone among the ``kept`` keys."""
    if name == "by index":
        positive = [1, 2, 3, 4, 0, -1][row]
        place = (kept == positive).nonzero().flatten()
        index = place if len(place) else torch.tensor([-1])
        if positive == -1 or not len(place):
            assert expected == 0
            return
        alone = info_nce(
            query[[row]], key[kept], positive_index=index, temperature=0.5, reduction="none"
        )
    else:
        alone = functions(LABELS[[row]], KEY_LABELS[kept])[name](
            query[[row]], key[kept], temperature=0.5, reduction="none"
        )
    torch.testing.assert_close(alone[0], expected)


def test_exclude_self_is_its_default(features):
    query, _ = features
    own = torch.arange(N, device=query.device)
    for name, loss in functions(LABELS.to(query.device), LABELS.to(query.device)).items():
        if name == "by index":
            continue
        values = [
            loss(query, query, **option) for option in ({"exclude_self": True}, {"self_index": own})
        ]
        assert torch.equal(*values)


def test_an_index_of_no_column_leaves_out_nothing(features):
    query, key = features
    none = torch.empty(N, 0, dtype=torch.long, device=query.device)
    assert torch.equal(log_sum_exp(query, key, exclude_index=none), log_sum_exp(query, key))


def test_what_is_left_out_may_hold_no_nan_of_its_row(features):
    """A bad key reaches the queries that it is a key of, and no other."""
    query, key = (side.detach().clone() for side in features)
    key[7] = torch.nan
    index = torch.full((N, 1), 7, device=query.device)
    index[2] = -1
    lse = log_sum_exp(query, key, exclude_index=index)
    assert lse.isnan().tolist() == [row == 2 for row in range(N)]


def test_a_memory_that_holds_the_batch(device):
    """Pushed first and then compared: every row leaves out its own place, and sees the others."""
    bank, labels = torch.randn(7, D, device=device), torch.arange(7, device=device) % 3
    batch, batch_labels = torch.randn(3, D, device=device), torch.tensor([0, 1, 0], device=device)
    places = torch.tensor([5, 6, 0], device=device)
    bank[places], labels[places] = batch, batch_labels
    actual = sup_con(batch, bank, batch_labels, labels, self_index=places, reduction="none")
    for row, place in enumerate(places.tolist()):
        others = torch.arange(7, device=device) != place
        one = [row]
        alone = sup_con(
            batch[one], bank[others], batch_labels[one], labels[others], reduction="none"
        )
        torch.testing.assert_close(actual[one], alone)


def test_memory_is_that_of_the_index(device):
    """The op takes (N, K): no (N, M) tensor is formed of it."""
    query, key = torch.randn(4, D, device=device), torch.randn(6, D, device=device)
    index = torch.zeros(4, 2, dtype=torch.long, device=device)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            flat = torch.utils._pytree.tree_leaves(result)
            seen.extend(each.shape for each in flat if isinstance(each, torch.Tensor))
            return result

    with Watch():
        log_sum_exp(query, key, exclude_index=index)
    assert seen
    assert all(shape.numel() <= index.numel() for shape in seen)


BAD = [
    ({"self_index": torch.zeros(3, dtype=torch.long)}, ValueError, "one row per query"),
    ({"self_index": torch.zeros(N, 1, dtype=torch.long)}, ValueError, "self_index must be 1-d"),
    ({"self_index": torch.zeros(N)}, TypeError, "self_index must have an integer dtype"),
    ({"self_index": torch.full((N,), M)}, ValueError, r"must lie in \[0, 9\), or be -1"),
    ({"exclude_index": torch.full((N, 2), -2)}, ValueError, "got values from -2 to -2"),
    ({"exclude_index": torch.zeros(N, dtype=torch.long)}, ValueError, "exclude_index must be 2-d"),
    ({"exclude_index": [[1]] * N}, TypeError, "exclude_index must be a torch.Tensor"),
    ({"exclude_self": True}, ValueError, "self_index names the key"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        log_sum_exp(torch.zeros(N, D), torch.zeros(M, D), **options)


def test_two_ways_to_say_the_same_are_refused():
    rows = torch.zeros(N, D)
    with pytest.raises(ValueError, match="exclude_self and self_index both say"):
        log_sum_exp(rows, rows, exclude_self=True, self_index=torch.arange(N))


def test_a_compiled_index_out_of_range_is_not_missed():
    query, key = torch.randn(N, D), torch.randn(M, D)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def normaliser(index):
        return log_sum_exp(query, key, self_index=index)

    torch.testing.assert_close(normaliser(SELF), log_sum_exp(query, key, self_index=SELF))
    with pytest.raises(RuntimeError, match=r"self_index must lie in \[0, M\)"):
        normaliser(SELF + 5)


def test_numbers_that_name_nothing_are_refused_by_the_op():
    rows, scale = torch.zeros(N, D), torch.tensor(1.0)
    pairs = ([rows], [rows], torch.arange(N), None, None, scale, None)
    for kind, reduction in ((3, 1), (-1, 1), (0, 3)):
        arguments = (kind, False, 0.0, False, reduction, [False] * 4)
        with pytest.raises(RuntimeError, match=r"must lie in \[0, 2\]"):
            torch.ops.mim4dd.contrastive(*pairs, *arguments)


def test_the_definition_reads_only_named_columns():
    excluded = reference._contrastive._among(torch.tensor([[0, -1], [2, 2]]), 3)
    assert excluded.tolist() == [[True, False, False], [False, False, True]]
