"""What `make gpu` does first, in small sizes: the kernels on aligned inputs of several tiles."""

import pytest
from stages import triage


@pytest.mark.parametrize(
    ("loss", "dtype", "rows", "columns"),
    [
        ("info_nce", "bfloat16", 160, 128),
        ("info_nce", "bfloat16", 64, 300),
        ("sup_con", "float16", 160, 96),
        ("sup_con in", "bfloat16", 64, 64),
        ("nce", "float16", 64, 256),
        ("normalized", "tf32", 64, 96),
        ("clip_loss", "tf32", 128, 768),
        ("clip_loss", "bfloat16", 160, 128),
    ],
)
def test_large_shapes_in_small(loss, dtype, rows, columns, kernel_device):
    triage.compare(loss, rows, columns, triage.DTYPES[dtype], kernel_device)


def test_what_is_left_unwritten_shows(kernel_device, monkeypatch):
    """Were a kernel to write nothing, the results would be the NaN that was there."""
    from mim4dd.kernels import clip_loss

    class Nothing:
        def __getitem__(self, grid):
            return lambda *args, **options: None

    monkeypatch.setattr(clip_loss, "losses_kernel", Nothing())
    with pytest.raises(AssertionError, match="nan"):
        triage.compare("clip_loss", 40, 16, triage.DTYPES["tf32"], kernel_device)
