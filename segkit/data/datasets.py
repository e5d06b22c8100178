"""Pairs of image and mask, read from files as samples."""

from __future__ import annotations

import contextlib
import copy
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from segkit.data.cache import DecodedCopy, NoRoom, Source, decoded_copy
from segkit.data.images import ImageRef, resize_planes
from segkit.data.origin import Origin, find_origin
from segkit.data.pairing import find_pairs
from segkit.data.patterns import STEM, Pattern
from segkit.data.reading import ImageReading
from segkit.data.sample import Sample
from segkit.data.splits import match_stems
from segkit.formats.classes import classes_to_list
from segkit.formats.codec import Codec
from segkit.formats.mask_format import MaskFormat
from segkit.ops.sizes import Resize, fit_size, resample

_SHOWN = 5
_MAX_FAULTS = 20
# Read to tell how large the decoded samples will be.
_ESTIMATED_FROM = 16


class MaskDataset(Dataset):
    """Images and masks of the same samples.

    A sample's stem is the name that its image and its mask share; where files are named otherwise, patterns say how.

    `ds[i]` and `ds[epoch, i]` are resized and augmented, `ds.read(i)` is what the files hold. The augmentation of
    sample i in an epoch depends on (seed, epoch, i) alone, not on workers, ranks or what was read before.

    Args:
        images: folder of images.
        masks: folder of masks, read by `codec`.
        codec: how the files hold the planes.
        image_pattern, mask_pattern: how files are named after a stem, such as `{stem}_mask`, see `Pattern`; files
            named otherwise are no part of the data. Default for images: that of `reading`.
        bands: names of the bands that lie in a file each, in place of `{band}` in `image_pattern`; default that of
            `reading`.
        stems: take these samples only, in this order, see `match_stems`; each must have an image and a mask.
        augment: called with (sample, random seed); see `build_augment`.
        resize: [height, width], the length of the longer side, or a `Spacing`, see `fit_size`.
        reading: how image files become arrays; masks of volumes are cut like images.
        seed: of the augmentation.
        quarantine: samples to leave out, because something is wrong with them, named as for `match_stems`. Names that
            are not known do nothing, so that the parts of a data set can share one list.

    Attributes:
        quarantined: stems of the images that `quarantine` left out.
        quarantine_unknown: names in `quarantine` that mean no image and no mask here.

    Raises:
        ValueError: an empty folder, images without masks, or masks without images.
    """

    def __init__(
        self,
        images: str | Path,
        masks: str | Path,
        codec: Codec,
        *,
        image_pattern: str | None = None,
        mask_pattern: str = STEM,
        bands: Sequence[str] | None = None,
        stems: Iterable[str] | None = None,
        augment: Callable[[Sample, int], Sample] | None = None,
        resize: Resize = None,
        reading: ImageReading = ImageReading(),
        seed: int = 0,
        quarantine: Iterable[str] = (),
    ) -> None:
        if resize is not None:
            fit_size((1, 1), resize, (1.0, 1.0))
        self.images, self.masks, self.codec = Path(images), Path(masks), codec
        self.augment, self.resize, self.seed = augment, resize, seed
        self.reading = reading.named(image_pattern, bands)
        self.mask_pattern = Pattern(mask_pattern)
        pairs = find_pairs(
            self.images, self.masks, codec, self.reading, self.mask_pattern, stems=stems, quarantine=quarantine
        )
        self.stems, self.quarantined, self.quarantine_unknown = list(pairs.images), pairs.left_out, pairs.unknown
        self._refs, self._mask_names = list(pairs.images.values()), list(pairs.masks.values())
        self._copy: DecodedCopy | None = None

    @property
    def format(self) -> MaskFormat:
        """What the masks mean."""
        return self.codec.format

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample = self.read(index)
        if self.resize is not None:
            sample = _resized(sample, self.size_of(sample))
        if self.augment is None:
            return sample
        return self.augment(sample, sample_seed(self.seed, epoch, index % len(self)))

    def read(self, index: int) -> Sample:
        """Sample `index` as the files hold it, neither resized nor augmented; read-only where it is `cached`."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        ref, stem = self._refs[index], self.stems[index]
        if self._copy is not None:
            return self._copy.read(stem)
        mask = self._mask_names[index]
        self.codec.check_like(self.masks, mask, ref.path)
        image = self.reading.read(ref)
        return Sample(stem, image, self.codec.read(self.masks, mask), self.reading.spacing_mm(ref))

    def read_planes(self, index: int) -> np.ndarray:
        """(H, W, P) planes of sample `index` as they are stored; its image is not decoded."""
        if self._copy is not None:
            return self.read(index).planes
        return self.codec.read(self.masks, self._mask_names[index])

    def size_of(self, sample: Sample) -> tuple[int, int]:
        """(height, width) that `resize` gives a stored sample."""
        try:
            return fit_size(sample.size_hw, self.resize, sample.spacing_mm)
        except ValueError as error:
            raise ValueError(f"{sample.stem}: {error}") from None

    def image_path(self, index: int) -> Path:
        """File of image `index`; the first one where its bands lie in several."""
        return self._refs[index].path

    def prediction_stem(self, index: int) -> str:
        """Name of the mask that `segkit predict` writes for image `index`: that of its file.

        An image whose bands lie in several files has no such name; its sample's takes its place.
        """
        return self.stems[index] if self.reading.bands else self.reading.files.name(self.stems[index])

    def mask_stem(self, index: int) -> str:
        """Name of mask `index` for `codec`."""
        return self._mask_names[index]

    def without_augment(self) -> MaskDataset:
        """The same samples, not augmented."""
        other = copy.copy(self)
        other.augment = None
        return other

    def subset(self, stems: Iterable[str]) -> MaskDataset:
        """The samples of these stems, in this order."""
        known = {stem: index for index, stem in enumerate(self.stems)}
        other = copy.copy(self)
        other.stems = match_stems(stems, known, self.images)
        other._refs = [self._refs[known[s]] for s in other.stems]
        other._mask_names = [self._mask_names[known[s]] for s in other.stems]
        return other

    def across(self, axis: str) -> MaskDataset:
        """Without the slices of volumes across other axes.

        Raises:
            ValueError: nothing is left.
        """
        kept = [stem for stem, ref in zip(self.stems, self._refs, strict=True) if ref.axis in (None, axis)]
        if not kept:
            raise ValueError(
                f"{self.images}: no slices across {axis}, only across {', '.join(self.reading.axis)}. Open the data "
                "with `reading=model.reading`."
            )
        return self if len(kept) == len(self) else self.subset(kept)

    def image_ref(self, index: int) -> ImageRef:
        """Where image `index` lies."""
        return self._refs[index]

    def cached(
        self,
        place: str = "disk",
        *,
        folder: str | Path | None = None,
        max_gib: float | None = None,
        workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> MaskDataset:
        """The same samples, read from a decoded copy, which is made now unless it is there; see `decoded_copy`.

        A copy is used as long as image files, mask files and the way they are read stay as they were. Making it
        finds what `verify` finds.

        Args:
            place: `disk`, or `ram` for memory that all workers share.
            folder: where copies lie on disk; default `$SEGKIT_CACHE`, else `segkit` in the user's cache folder.
            max_gib: refuse samples that take more; default nine tenths of the free disk, or half of the free memory.
            workers, progress: as for `verify`; `progress` is not called where the copy is there.

        Raises:
            ValueError: no room, or samples that cannot be read.
        """

        def fill(take: Callable[[Sample], None]) -> None:
            plain._examine(take, workers, progress)

        plain = copy.copy(self)
        plain._copy = None
        source = Source(plain._origin, self.stems, fill, plain._estimated_bytes, self._packs)
        other = copy.copy(self)
        other._copy = decoded_copy(source, place, folder, max_gib)
        return other

    def verify(
        self,
        workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        take: Callable[[Sample], None] = lambda sample: None,
    ) -> Counter[tuple[int, int]]:
        """Read every sample once and refuse all that are wrong in one message, before training starts.

        Args:
            workers: threads; default one per core.
            progress: called with (samples read, samples in all).
            take: called with every sample as it is stored, from several threads.

        Returns:
            Number of samples of each (height, width), as `resize` makes them.

        Raises:
            ValueError: names up to 20 samples and what is wrong with each.
        """
        return self._examine(take, workers, progress)

    def _examine(
        self,
        take: Callable[[Sample], None],
        workers: int | None,
        progress: Callable[[int, int], None] | None,
    ) -> Counter[tuple[int, int]]:
        """Hand every sample to `take`, from several threads; see `verify`."""
        sizes: Counter[tuple[int, int]] = Counter()
        kinds: dict[int, tuple[Path, str]] = {}
        faults: list[str] = []

        def look(index: int) -> tuple[tuple[int, int], int, str] | str:
            try:
                sample = self.read(index)
                take(sample)
                size_hw = self.size_of(sample)
            except NoRoom:
                raise
            except ValueError as error:
                return str(error)
            return size_hw, sample.image.shape[2], str(sample.image.dtype)

        pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
        try:
            for index, found in enumerate(pool.map(look, range(len(self)))):
                if isinstance(found, str):
                    faults.append(found)
                else:
                    sizes[found[0]] += 1
                    kinds.setdefault(found[1], (self.image_path(index), found[2]))
                if progress is not None:
                    progress(index + 1, len(self))
        finally:
            pool.shutdown(cancel_futures=True)
        # Depths may differ: `collate` and `pixel_statistics` bring them to the widest.
        if len(kinds) > 1:
            faults.append(
                "images differ in bands: "
                + ", ".join(f"{path} has {n} of {dtype}" for n, (path, dtype) in sorted(kinds.items()))
                + ". Store all with the same bands and depth; 8-bit gray counts as 3 bands unless read as gray."
            )
        if faults:
            raise ValueError(_fault_text(self, faults))
        return sizes

    @property
    def _packs(self) -> bool:
        """Whether a decoded copy holds the planes as bits; a single plane would have to be unpacked for nothing."""
        return self.format.planes_are_bits and self.format.num_planes > 1

    def _origin(self) -> Origin:
        """What the samples are read from, as it is now."""
        options = {
            "codec": self.codec.to_spec(),
            "classes": classes_to_list(self.format.classes),  # colours too, which `color_png` reads by
            "planes": [self.format.num_planes, self.format.dtype.name],
            "reading": asdict(self.reading),
            "mask_pattern": self.mask_pattern.text,
            "stems": self.stems,
        }
        image_files = (path for ref in self._refs for path in ref.files)
        mask_files = (path for name in self._mask_names for path in self.codec.files(self.masks, name))
        return find_origin(self.images, image_files, self.masks, mask_files, options)

    def _estimated_bytes(self) -> int:
        """About how large all samples are once decoded, from some of them; what is wrong with those is told later."""
        found = []
        for index in np.unique(np.linspace(0, len(self) - 1, _ESTIMATED_FROM).astype(int)):
            with contextlib.suppress(ValueError):
                sample = self.read(int(index))
                planes = sample.planes
                bits = -(-planes.shape[2] // 8) * planes.shape[0] * planes.shape[1]
                found.append(sample.image.nbytes + (bits if self._packs else planes.nbytes))
        return int(np.mean(found) * len(self)) if found else 0


def check_training_sizes(sizes: Counter[tuple[int, int]], batch_size: int) -> None:
    """Refuse samples of several sizes, which do not fit into one batch.

    Args:
        sizes: number of samples of each (height, width), as training sees them: after resize and crop.

    Raises:
        ValueError: several sizes and a batch of more than one.
    """
    if batch_size == 1 or len(sizes) <= 1:
        return
    shown = ", ".join(f"{h}x{w} ({count})" for (h, w), count in sizes.most_common(_SHOWN))
    more = ", ..." if len(sizes) > _SHOWN else ""
    raise ValueError(
        f"training images come in {len(sizes)} sizes (height x width, with their number): {shown}{more}; a batch of "
        f"{batch_size} needs one size. Set `data.crop` (random crops of one size), `data.resize: [height, width]`, "
        "or `train.batch_size=1`."
    )


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Seed of the augmentation of one sample in one epoch: neighbours in any argument give unrelated streams."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0])


def _resized(sample: Sample, size_hw: tuple[int, int]) -> Sample:
    spacing = sample.spacing_mm
    if spacing is not None:
        spacing = tuple(s * old / new for s, old, new in zip(spacing, sample.size_hw, size_hw, strict=True))
    return Sample(sample.stem, _resampled(sample.image, size_hw), resize_planes(sample.planes, size_hw), spacing)


def _resampled(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """(h, w, B) image of the same dtype, by the filter of `Segmenter.resized`: training sees what prediction sees.

    Averages over areas, as of `resize_image`, have up to a fifth more of the finest detail.
    """
    if image.shape[:2] == size_hw:
        return image
    stored = torch.tensor(image).permute(2, 0, 1)[None]
    resized = resample(stored if image.dtype == np.uint8 else stored.float(), size_hw)[0].permute(1, 2, 0).numpy()
    return np.ascontiguousarray(resized.round() if image.dtype == np.uint16 else resized, dtype=image.dtype)


def _fault_text(ds: MaskDataset, faults: list[str]) -> str:
    shown = "".join(f"\n  {fault}" for fault in faults[:_MAX_FAULTS])
    more = f"\n  ... and {len(faults) - _MAX_FAULTS} more" if len(faults) > _MAX_FAULTS else ""
    head = f"{ds.images}: {len(faults)} faults in {len(ds)} samples; mend them, or name the stems in `quarantine`"
    return f"{head}:{shown}{more}"
