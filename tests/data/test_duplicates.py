"""Pictures that occur more than once: all that were planted are found, and no others."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from jaxcnn.data import duplicates
from jaxcnn.data.duplicates import find_groups, look_at, make_thumbnail


def draw(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture like a photograph out of focus."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def saved(image: Image.Image, **options: object) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return Image.open(file)


def groups_of(images: list[Image.Image]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The rows of the groups with the same pixels, and of those that are alike."""
    squares = [np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)) for image in images]
    looks = [look_at(pixels, shorter_side=min(image.size)) for pixels, image in zip(squares, images, strict=True)]
    same, alike = find_groups(looks, lambda row: make_thumbnail(squares[row]))
    assert all(group.distance is None for group in same)
    return [group.rows for group in same], [group.rows for group in alike]


@pytest.mark.parametrize(
    "change",
    [
        lambda image: saved(image, quality=30),
        lambda image: image.resize((97, 73), Image.Resampling.BILINEAR),
        lambda image: image.resize((640, 480), Image.Resampling.LANCZOS),
        lambda image: ImageEnhance.Brightness(image).enhance(0.85),
        lambda image: ImageEnhance.Contrast(image).enhance(0.8),
        lambda image: image.crop((1, 1, 159, 119)),
    ],
    ids=["saved again", "smaller", "larger", "darker", "less contrast", "cropped by a pixel"],
)
def test_a_changed_copy_is_nearly_the_same(change):
    images = [draw(seed) for seed in range(5)]
    assert groups_of([*images, change(images[3])]) == ([], [(3, 5)])


def test_the_same_pixels_and_nearly_the_same_ones_are_one_group():
    images = [draw(seed) for seed in range(4)]
    same, alike = groups_of([*images, images[1], saved(images[1], quality=50), images[2]])
    assert same == [(1, 4), (2, 6)]
    assert alike == [(1, 4, 5), (2, 6)]


def test_different_pictures_are_never_grouped():
    assert groups_of([draw(seed) for seed in range(400)]) == ([], [])
    noise = [np.random.default_rng(seed).integers(0, 256, (48, 48, 3), np.uint8) for seed in range(100)]
    assert groups_of([Image.fromarray(pixels) for pixels in noise]) == ([], [])


def test_another_colour_is_another_picture():
    shape = np.zeros((64, 64, 3), np.uint8) + 255
    red, green = shape.copy(), shape.copy()
    red[16:48, 16:48, 1:] = 0
    green[16:48, 16:48, ::2] = 0
    assert groups_of([Image.fromarray(red), Image.fromarray(green)]) == ([], [])


def test_tiny_and_flat_pictures_are_compared_exactly():
    tiny = [draw(1, (20, 20)), saved(draw(1, (20, 20)), quality=90), draw(1, (20, 20))]
    assert groups_of(tiny) == ([(0, 2)], [(0, 2)])
    flat = [Image.new("RGB", (64, 64), (level, 100, 100)) for level in (100, 101, 101)]
    assert groups_of(flat) == ([(1, 2)], [(1, 2)])


def test_gray_pictures_are_recognised():
    pixels = np.asarray(draw(0))
    gray = np.asarray(saved(draw(0).convert("L")).convert("RGB"))
    assert look_at(gray, shorter_side=64).is_gray
    assert not look_at(pixels, shorter_side=64).is_gray


def test_pairs_are_found_in_all_tiles(monkeypatch):
    """Planted pairs in random places, with tiles smaller than the number of pictures."""
    monkeypatch.setattr(duplicates, "TILE", (8, 16))
    random = np.random.default_rng(0)
    order = random.permutation(60)
    images = [draw(int(seed) // 2) if seed % 2 else saved(draw(int(seed) // 2), quality=60) for seed in order]
    _, alike = groups_of(images)
    expected = sorted(tuple(sorted(int(place) for place in np.flatnonzero(order // 2 == pair))) for pair in range(30))
    assert sorted(alike) == expected


def test_the_distance_is_the_largest_of_the_pairs():
    bits = [0b0, 0b11, 0b11111]
    looks = [duplicates.Look(bytes([number]), value, True, False) for number, value in enumerate(bits)]
    _, (group,) = find_groups(looks, lambda row: make_thumbnail(np.asarray(draw(0))))
    assert (group.rows, group.distance) == ((0, 1, 2), 5)


def random_looks(count: int, *, bits: int) -> list[duplicates.Look]:
    """Different pictures whose hashes differ in at most some bits."""
    random = np.random.default_rng(0)
    return [
        duplicates.Look(number.to_bytes(4), int(value), True, False)
        for number, value in enumerate(random.integers(0, 2**bits, count))
    ]


def test_groups_are_the_connected_pairs():
    """Compared with all pairs, one by one, of which some have thumbnails too different."""
    looks = random_looks(150, bits=22)
    thumbnails = [make_thumbnail(np.asarray(draw(number % 3))) for number in range(150)]
    near = {}
    for one in range(150):
        for other in range(one):
            distance = (looks[one].bits ^ looks[other].bits).bit_count()
            if distance <= duplicates.RADIUS and one % 3 == other % 3:
                near[one, other] = distance
    _, groups = find_groups(looks, lambda row: thumbnails[row])
    # Every pair is in one group, whose distance is the largest of its pairs.
    place = {row: number for number, group in enumerate(groups) for row in group.rows}
    assert all(place[one] == place[other] for one, other in near)
    for number, group in enumerate(groups):
        assert group.distance == max(distance for (one, _), distance in near.items() if place[one] == number)
        # No group falls apart.
        reached, found = {group.rows[0]}, 0
        while len(reached) > found:
            found = len(reached)
            reached |= {row for pair in near if reached.intersection(pair) for row in pair}
        assert reached == set(group.rows)
    assert [group.rows for group in groups] == sorted(group.rows for group in groups)


def test_many_pictures_that_are_all_alike_take_little_time():
    """Two million pairs, each of which is a near duplicate: compared one by one they would take a minute."""
    made: list[int] = []
    picture = make_thumbnail(np.asarray(draw(0)))

    def thumbnail(row: int) -> np.ndarray:
        made.append(row)
        return picture

    calls = []
    _, (group,) = find_groups(
        random_looks(2000, bits=8), thumbnail, advance=lambda done, total: calls.append((done, total))
    )
    assert group.rows == tuple(range(2000))
    assert group.distance == 8
    # Two threads may make the same one at the same time.
    assert len(made) < 2 * 2000
    assert calls[-1] == (len(calls), len(calls))
