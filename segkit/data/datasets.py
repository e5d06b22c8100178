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
from torch.utils.data import Dataset

from segkit.data.cache import DecodedCopy, NoRoom, Source, decoded_copy
from segkit.data.images import (
    IMAGE_SUFFIXES,
    ImageRef,
    resize_image,
    resize_planes,
)
from segkit.data.origin import Origin, find_origin
from segkit.data.reading import ImageReading
from segkit.data.sample import Sample
from segkit.data.splits import find_stems, match_stems
from segkit.formats.classes import classes_to_list
from segkit.formats.codec import Codec
from segkit.formats.mask_format import MaskFormat
from segkit.ops.sizes import Resize, fit_size

_SHOWN = 5
_MAX_FAULTS = 20
# Read to tell how large the decoded samples will be.
_ESTIMATED_FROM = 16


class MaskDataset(Dataset):
    """Images and masks of the same stems, as samples.

    `ds[i]` and `ds[epoch, i]` are resized and augmented, `ds.read(i)` is what the files hold. The augmentation of
    sample i in an epoch depends on (seed, epoch, i) alone, not on workers, ranks or what was read before.

    Args:
        images: folder of images.
        masks: folder of masks, read by `codec`.
        codec: how the files hold the planes.
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
        self.augment, self.resize, self.reading, self.seed = augment, resize, reading, seed
        refs = reading.find(self.images)
        mask_stems = codec.stems(self.masks)
        # A name without an image may mean a mask that has none.
        left_out, self.quarantine_unknown = find_stems(quarantine, [*refs, *mask_stems])
        self.stems, self.quarantined = _paired(
            self, refs, mask_stems, set(left_out), None if stems is None else list(stems)
        )
        self._refs = [refs[stem] for stem in self.stems]
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
        image = self.reading.read(ref)
        return Sample(stem, image, self.codec.read(self.masks, stem), self.reading.spacing_mm(ref))

    def size_of(self, sample: Sample) -> tuple[int, int]:
        """(height, width) that `resize` gives a stored sample."""
        try:
            return fit_size(sample.size_hw, self.resize, sample.spacing_mm)
        except ValueError as error:
            raise ValueError(f"{sample.stem}: {error}") from None

    def image_path(self, index: int) -> Path:
        """File of image `index`."""
        return self._refs[index].path

    def without_augment(self) -> MaskDataset:
        """The same samples, not augmented."""
        other = copy.copy(self)
        other.augment = None
        return other

    def subset(self, stems: Iterable[str]) -> MaskDataset:
        """The samples of these stems, in this order."""
        known = dict(zip(self.stems, self._refs, strict=True))
        other = copy.copy(self)
        other.stems = match_stems(stems, known, self.images)
        other._refs = [known[s] for s in other.stems]
        return other

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
        self, workers: int | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Counter[tuple[int, int]]:
        """Read every sample once and refuse all that are wrong in one message, before training starts.

        Args:
            workers: threads; default one per core.
            progress: called with (samples read, samples in all).

        Returns:
            Number of samples of each (height, width), as `resize` makes them.

        Raises:
            ValueError: names up to 20 samples and what is wrong with each.
        """
        return self._examine(lambda sample: None, workers, progress)

    def _examine(
        self,
        take: Callable[[Sample], None],
        workers: int | None,
        progress: Callable[[int, int], None] | None,
    ) -> Counter[tuple[int, int]]:
        """Hand every sample to `take`, from several threads; see `verify`."""
        sizes: Counter[tuple[int, int]] = Counter()
        kinds: dict[int, tuple[str, str]] = {}
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
                    kinds.setdefault(found[1], (self.stems[index], found[2]))
                if progress is not None:
                    progress(index + 1, len(self))
        finally:
            pool.shutdown(cancel_futures=True)
        # Depths may differ: `collate` and `pixel_statistics` bring them to the widest.
        if len(kinds) > 1:
            faults.append(
                "images differ in bands: "
                + ", ".join(f"{self.images / stem} has {n} of {dtype}" for n, (stem, dtype) in sorted(kinds.items()))
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
            "stems": self.stems,
        }
        mask_files = (path for stem in self.stems for path in self.codec.files(self.masks, stem))
        return find_origin(self.images, (ref.path for ref in self._refs), self.masks, mask_files, options)

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
    return Sample(sample.stem, resize_image(sample.image, size_hw), resize_planes(sample.planes, size_hw), spacing)


def _paired(
    ds: MaskDataset, refs: dict[str, ImageRef], mask_stems: list[str], left_out: set[str], wanted: list[str] | None
) -> tuple[list[str], list[str]]:
    """Stems that have both image and mask, after all that do not were refused; and those left out on purpose."""
    if not refs:
        raise ValueError(f"{ds.images}: no images here (read are {', '.join(IMAGE_SUFFIXES)}, .nii and .nii.gz).")
    if not mask_stems:
        raise ValueError(f"{ds.masks}: no masks here that the codec {ds.codec.name!r} reads.")
    masks = set(mask_stems)
    listed = wanted is not None
    meant = list(refs) if wanted is None else match_stems(wanted, refs, ds.images)
    wanted = [s for s in meant if s not in left_out]
    no_mask = [s for s in wanted if s not in masks]
    # A list says which samples are meant; masks of others may lie beside them.
    no_image = [] if listed else [s for s in mask_stems if s not in refs and s not in left_out]
    if no_mask or no_image:
        raise ValueError(_unpaired_text(ds, wanted, no_mask, no_image))
    if not wanted:
        raise ValueError(f"{ds.images}: all {len(refs)} images are left out by `quarantine` or the list of samples.")
    return wanted, [s for s in meant if s in left_out]


def _unpaired_text(ds: MaskDataset, wanted: list[str], no_mask: list[str], no_image: list[str]) -> str:
    parts = []
    if no_mask:
        parts.append(
            f"{len(no_mask)} of {len(wanted)} images in {ds.images} have no mask in {ds.masks}: {_first(no_mask)}"
        )
    if no_image:
        parts.append(f"{len(no_image)} masks in {ds.masks} have no image in {ds.images}: {_first(no_image)}")
    text = "; ".join(parts)
    if len(no_mask) == len(wanted):
        return f"{text}. Image and mask belong together when their names agree up to the suffix: rename one side."
    return f"{text}. Add what is missing, leave these out with `quarantine`, or name the samples to use in a list."


def _fault_text(ds: MaskDataset, faults: list[str]) -> str:
    shown = "".join(f"\n  {fault}" for fault in faults[:_MAX_FAULTS])
    more = f"\n  ... and {len(faults) - _MAX_FAULTS} more" if len(faults) > _MAX_FAULTS else ""
    head = f"{ds.images}: {len(faults)} faults in {len(ds)} samples; mend them, or name the stems in `quarantine`"
    return f"{head}:{shown}{more}"


def _first(stems: Sequence[str]) -> str:
    return ", ".join(stems[:_SHOWN]) + (f", ... ({len(stems)} in all)" if len(stems) > _SHOWN else "")
