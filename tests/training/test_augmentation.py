"""What happens to the images that are trained on."""

from __future__ import annotations

import pytest
import torch

from bnfold.training.augmentation import augment, cut_out, flip, shift
from bnfold.training.recipe import Augmentation


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_shifting_moves_an_image_and_brings_in_zeros() -> None:
    images = torch.arange(1.0, 10).reshape(1, 1, 3, 3).repeat(200, 1, 1, 1)
    found = {tuple(row) for row in shift(images, 1, seeded()).reshape(200, -1).tolist()}
    assert len(found) == 9
    assert tuple(range(1, 10)) in found, "no shift"
    assert (5, 6, 0, 8, 9, 0, 0, 0, 0) in found, "up and left by one"


def test_flipping_mirrors_about_half_of_the_images_left_to_right() -> None:
    images = torch.arange(1.0, 13).reshape(1, 2, 2, 3).repeat(400, 1, 1, 1)
    flipped = flip(images, seeded())
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert torch.equal(mirrored, (flipped != images).flatten(1).any(1))
    assert 150 < int(mirrored.sum()) < 250


def test_cutout_clears_one_square_in_all_channels_anywhere_in_the_image() -> None:
    cut = cut_out(torch.ones(500, 2, 8, 6), 3, seeded())
    assert torch.equal(cut[:, 0], cut[:, 1])
    zeros = cut[:, 0] == 0
    rows, columns = zeros.any(2), zeros.any(1)
    assert torch.equal(zeros, rows[:, :, None] & columns[:, None, :]), "a rectangle"
    assert set(rows.sum(1).tolist()) == {2, 3}, "at the border a part of it"
    assert set(columns.sum(1).tolist()) == {2, 3}
    assert bool(zeros.any(0).all()), "everywhere"


def test_nothing_wanted_leaves_the_images_and_the_random_numbers_alone() -> None:
    images, generator = torch.rand(3, 1, 4, 4), seeded()
    before = generator.get_state()
    assert augment(images, Augmentation(), generator) is images
    assert torch.equal(generator.get_state(), before)


def shifted_pixel_by_pixel(images: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """The pixel (y, x) of each image from (y + dy, x + dx), with dy and dx drawn for all images at once."""
    offsets = torch.randint(0, 2 * most + 1, (2, len(images)), generator=generator) - most
    moved = torch.zeros_like(images)
    for image, (down, right) in enumerate(offsets.T.tolist()):
        for y in range(images.shape[2]):
            for x in range(images.shape[3]):
                if 0 <= y + down < images.shape[2] and 0 <= x + right < images.shape[3]:
                    moved[image, :, y, x] = images[image, :, y + down, x + right]
    return moved


@pytest.mark.parametrize("most", [1, 2, 7])
@pytest.mark.parametrize("shape", [(9, 1, 8, 8), (5, 3, 4, 7), (2, 2, 1, 5)])
def test_the_pixels_of_a_seed_stay_what_they_were(most: int, shape: tuple[int, ...]) -> None:
    images = torch.randn(shape)
    assert torch.equal(shift(images, most, seeded()), shifted_pixel_by_pixel(images, most, seeded()))


@pytest.mark.parametrize("wanted", [Augmentation(shift=2), Augmentation(flip=True), Augmentation(cutout=3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_that_come_last_stay_last_with_the_same_pixels(wanted: Augmentation, dtype: torch.dtype) -> None:
    images = torch.randn(6, 3, 8, 8).to(dtype)
    plain, last = (
        augment(images.contiguous(memory_format=order), wanted, seeded())
        for order in (torch.contiguous_format, torch.channels_last)
    )
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert plain.is_contiguous()
    assert plain.dtype == last.dtype == dtype
    assert torch.equal(plain, last)


def test_each_option_reaches_the_images() -> None:
    images = torch.rand(64, 1, 8, 8) + 1
    made = [
        augment(images, wanted, seeded())
        for wanted in (Augmentation(shift=2), Augmentation(flip=True), Augmentation(cutout=4))
    ]
    assert all(each.shape == images.shape and not torch.equal(each, images) for each in made)
    assert bool((made[1] > 0).all()), "a mirrored image has no zeros"
