"""Images that are read when they are taken: data sets that are larger than memory."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

__all__ = ["SAMPLED", "FileNames", "StreamedPixels", "num_readers"]

# Images, evenly over the classes, that stand for all where a number of all of them is wanted: mean
# and deviation, and what data are known by. Where the means of images have a deviation of 0.2, that
# of 5000 has one of 0.003.
SAMPLED = 5000

_MOST_READERS = 32


def num_readers() -> int:
    """Threads to read image files with: a core each, whatever torch's operators have."""
    return min(len(os.sched_getaffinity(0)), _MOST_READERS)


class FileNames(Sequence[str]):
    """Many names, in a tenth of the memory that a list of them takes; processes share it.

    Args:
        names: Paths, absolute or below a folder.

    Example:
        >>> from mim4dd.distill.data.streamed import FileNames
        >>> names = FileNames(["cat/1.png", "dog/7.png"])
        >>> len(names), names[1]
        (2, 'dog/7.png')
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded, ends = bytearray(), [0]
        for name in names:
            encoded += os.fsencode(name)
            ends.append(len(encoded))
        # Tensors, which torch passes on to other processes by shared memory.
        self._encoded = torch.frombuffer(encoded or bytearray(1), dtype=torch.uint8)
        self._ends = torch.tensor(ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        first = index % len(self)
        start, end = self._ends[first : first + 2].tolist()
        return os.fsdecode(self._encoded[start:end].numpy().tobytes())


class StreamedPixels:
    """Images as bytes that are read when they are taken, by several threads.

    It stands where a tensor (N, channels, H, W) uint8 would that rows are taken from. Rows may be
    announced by :meth:`expect`; then they are read while something else is computed.

    Args:
        read: Makes the image of a number from 0 to ``count`` - 1, (channels, H, W) uint8. It is
            called by several threads at the same time where there are several. Worker processes
            get it pickled.
        count: How many images there are, N.
        size: (channels, H, W)
        readers: Threads.
        device: Where the images go.

    Example:
        >>> import torch
        >>> from mim4dd.distill.data.streamed import StreamedPixels
        >>> images = StreamedPixels(lambda row: torch.full((1, 2, 2), row).byte(), 200, (1, 2, 2))
        >>> images[torch.tensor([7, 150])].flatten(1)
        tensor([[  7,   7,   7,   7],
                [150, 150, 150, 150]], dtype=torch.uint8)
    """

    def __init__(
        self,
        read: Callable[[int], Tensor],
        count: int,
        size: tuple[int, int, int],
        readers: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.read = read
        self._size = size
        self.shape = torch.Size((count, *size))
        self.readers = readers
        self.device = torch.device(device)
        self._threads: ThreadPoolExecutor | None = None
        self._expected: _Reading | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All but the threads, and what they are at."""
        return vars(self) | {"_threads": None, "_expected": None}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The image of one number (), or the images of several (n,).

        Raises:
            ValueError: If one cannot be read.
        """
        wanted = rows.flatten().tolist()
        reading, self._expected = self._expected, None
        if reading is not None and reading.rows != wanted:
            reading.cancel()
            reading = None
        pixels = (reading or self._begin(wanted)).wait().to(self.device)
        return pixels if rows.dim() else pixels[0]

    def expect(self, rows: Tensor) -> None:
        """Begin to read what is taken next. (n,)"""
        if self._expected is not None:
            self._expected.cancel()
        self._expected = self._begin(rows.tolist())

    def to(self, device: torch.device | str) -> "StreamedPixels":
        """The same images, which go to another device."""
        return StreamedPixels(self.read, len(self), self._size, self.readers, device)

    def _begin(self, rows: list[int]) -> "_Reading":
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.readers, thread_name_prefix="mim4dd-reader")
        return _Reading(self, rows, self._threads)


class _Reading:
    """Images of some rows, on their way from the files."""

    def __init__(
        self, images: StreamedPixels, rows: list[int], threads: ThreadPoolExecutor
    ) -> None:
        self.rows = rows
        self._pixels = torch.empty(len(rows), *images.shape[1:], dtype=torch.uint8)
        # Threads share the images in pieces: one each would cost more than small ones take.
        size = max(1, min(16, -(-len(rows) // (4 * images.readers))))
        self._pieces: list[Future[None]] = [
            threads.submit(_fill, images, rows[first : first + size], part)
            for first, part in zip(
                range(0, len(rows), size), self._pixels.split(size) if rows else (), strict=True
            )
        ]

    def wait(self) -> Tensor:
        """The images, once they are read. (n, channels, H, W)"""
        try:
            for piece in self._pieces:
                piece.result()
        finally:
            self.cancel()
        return self._pixels

    def cancel(self) -> None:
        """Leave out what no thread is at."""
        for piece in self._pieces:
            piece.cancel()


def _fill(images: StreamedPixels, rows: list[int], pixels: Tensor) -> None:
    for row, place in zip(rows, pixels, strict=True):
        image = images.read(row)
        if image.shape != place.shape or image.dtype != torch.uint8:
            raise ValueError(
                f"streamed images must all be uint8 {tuple(place.shape)}, image {row} is "
                f"{image.dtype} {tuple(image.shape)}"
            )
        place.copy_(image)
