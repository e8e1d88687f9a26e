"""Makes pictures in the layouts that users bring; this repository contains no picture of a real data set."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def make_picture(label: int, *, seed: int, size: int = 16) -> Image.Image:
    """Draws stripes whose direction and colour depend on the class, with noise that differs from picture to picture."""
    rng = np.random.default_rng([label, seed])
    y, x = np.mgrid[:size, :size] / size
    angle = np.pi * label / 7
    wave = np.sin(4 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 2 * np.pi))
    colour = np.random.default_rng([label]).uniform(40, 200, size=3)
    pixels = colour + 50 * wave[..., None] + rng.normal(0, 8, size=(size, size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """Returns the content of a picture's file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def write_class_folders(
    root: Path, names: Sequence[str] = ("cat", "dog"), *, count: int = 4, size: int = 16, seed: int = 0
) -> Path:
    """Writes `root/NAME/0.png` and so on, `count` pictures for each class; returns `root`."""
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for index in range(count):
            make_picture(label, seed=seed + index, size=size).save(root / name / f"{index}.png")
    return root


def write_zip(path: Path, members: Mapping[str, bytes]) -> Path:
    """Writes a zip with these members; returns its path."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def zip_folder(folder: Path, path: Path) -> Path:
    """Writes a zip of the content of a folder, without the name of the folder; returns its path."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return write_zip(path, {file.relative_to(folder).as_posix(): file.read_bytes() for file in files})


def tiny_imagenet_members(*, classes: int = 3, train: int = 4, validation: int = 2, size: int = 64) -> dict[str, bytes]:
    """Returns the members of a zip in the layout of tiny-imagenet-200.zip, with fewer classes and pictures.

    Class `i` has the WordNet id `n0000000i` and the words `thing i, other word`; wnids.txt is not sorted.
    """
    wnids = [f"n{index:08d}" for index in range(classes)]
    members, annotations = {}, []
    for label, wnid in enumerate(wnids):
        members[f"train/{wnid}/{wnid}_boxes.txt"] = b"x_0.JPEG\t0\t0\t63\t63\n"
        for index in range(train):
            picture = make_picture(label, seed=index, size=size)
            members[f"train/{wnid}/images/{wnid}_{index}.JPEG"] = encode(picture, "JPEG")
        for index in range(validation):
            name = f"val_{index * classes + label}.JPEG"
            members[f"val/images/{name}"] = encode(make_picture(label, seed=1000 + index, size=size), "JPEG")
            annotations.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    members["val/val_annotations.txt"] = "".join(annotations).encode()
    members["wnids.txt"] = "\n".join(reversed(wnids)).encode()
    words = [f"{wnid}\tthing {index}, other word\n" for index, wnid in enumerate(wnids)]
    members["words.txt"] = "".join(["n99999999\tabstraction, abstract entity\n", *words]).encode()
    return {f"tiny-imagenet-200/{name}": content for name, content in members.items()}


def write_tiny_imagenet_zip(
    path: Path, *, classes: int = 3, train: int = 4, validation: int = 2, size: int = 64
) -> Path:
    """Writes a zip of `tiny_imagenet_members`; returns its path."""
    return write_zip(path, tiny_imagenet_members(classes=classes, train=train, validation=validation, size=size))
