"""The inputs that fuzzing starts from, which this writes: `python -m tests.fuzz.corpus`.

Inputs that have revealed a fault are beside them; their names begin with `found-`, and they are kept. Names that begin
with `attack-` are of small inputs that would take much memory or time if the server did not refuse or shorten them.
"""

import base64
import dataclasses
import gzip
import io
import itertools
import json
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fuzz import FOLDER


def main() -> None:
    """Writes the inputs of every target."""
    makers = {
        "picture": itertools.chain(pictures(), metadata(), picture_attacks()),
        "form": itertools.chain(forms(), form_attacks()),
        "inference": inferences(),
        "base64": texts(),
        "zip": zips(),
        "folder": folders(),
        "safetensors": safetensors(),
        "pth": checkpoints(),
        "onnx": models(),
        "record": records(),
        "http": requests(),
    }
    for target, seeds in makers.items():
        folder = FOLDER / target
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if not path.name.startswith("found-"):
                path.unlink()
        for name, content in seeds:
            (folder / name).write_bytes(content)


type Seeds = Iterator[tuple[str, bytes]]
"""Names of files, and their contents."""


def encode(kind: str, *, mode: str = "RGB", size: tuple[int, int] = (12, 9), **options: object) -> bytes:
    """Returns a picture with an edge in it."""
    channels = np.zeros((size[1], size[0], 3), np.uint8)
    channels[:, size[0] // 2 :] = (200, 60, 30)
    stream = io.BytesIO()
    Image.fromarray(channels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def pictures() -> Seeds:
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        yield kind.lower(), encode(kind)
    yield "jpeg-progressive", encode("JPEG", progressive=True, exif=exif)
    yield "jpeg-cmyk", encode("JPEG", mode="CMYK", quality=40)
    yield "jpeg-large", encode("JPEG", mode="L", size=(160, 120), quality=10)
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        yield f"png-{mode.lower().replace(';', '')}", encode("PNG", mode=mode)
    yield "png-transparent", encode("PNG", mode="P", transparency=0)
    yield "webp-lossless", encode("WEBP", mode="RGBA", lossless=True)
    yield "webp-exif", encode("WEBP", exif=exif)
    frame = Image.new("RGB", (8, 6), "red")
    for kind in ("GIF", "WEBP"):
        yield f"{kind.lower()}-animated", encode(kind, size=(8, 6), save_all=True, append_images=[frame])
    yield "bmp-p", encode("BMP", mode="P")
    yield "tiff", encode("TIFF", size=(4, 4))


def metadata() -> Seeds:
    exif = Image.Exif()
    exif[0x0112] = 6
    profile, text = chunk(b"iCCP", b"a\0\0" + deflate(b"profile")), chunk(b"tEXt", b"Title\0a")
    orientation = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0\0" + deflate(b'tiff:Orientation="6"'))
    yield "png-xmp", png_with(orientation)
    yield "png-texts", png_with(profile, text, raw_profile(exif.tobytes()), orientation)
    resources, notes = segment(0xED, b"Photoshop 3.0\x008BIM\4\4" + bytes(6)), segment(0xFE, b"hi")
    colours = segment(0xE2, b"ICC_PROFILE\0\1\1abc")
    # Two values of a tag that has one.
    table = struct.pack("<HHHLHH", 1, 0x0112, 3, 2, 6, 0) + bytes(4)
    yield "webp-orientations", encode("WEBP", exif=b"II*\0\x08\0\0\0" + table)
    yield "jpeg-segments", jpeg_with(resources + segment(0xE1, exif.tobytes()) + colours + notes)


def picture_attacks() -> Seeds:
    inflated = "\N{GRINNING FACE}".encode() + b"a" * (2**20 - 4)
    texts = (chunk(b"iTXt", b"a\0\1\0\0\0" + deflate(inflated)), chunk(b"zTXt", b"b\0\0" + deflate(bytes(2**20))))
    yield "attack-png-texts", png_with(*texts)
    yield "attack-png-profile", png_with(chunk(b"iCCP", b"a\0\0" + deflate(bytes(2**20))))
    # An orientation of 12,400 fractions.
    table = struct.pack("<HHHLL", 1, 0x0112, 5, 12_400, 26) + bytes(4)
    yield "attack-png-exif", png_with(raw_profile(b"II*\0\x08\0\0\0" + table + struct.pack("<LL", 1, 1) * 12_400))
    # Pillow reads on behind the end of the image. Whoever takes two bytes behind it for a length skips the segments.
    yield "attack-jpeg-end", jpeg_with(b"\xff\xd9" + segment(0xE0, b"") * 3100)
    # In one colour, a pixel takes no bits: the width and the height are 14 bits each, less one.
    webp = bytearray(encode("WEBP", size=(1, 1), lossless=True))
    webp[21:25] = ((int.from_bytes(webp[21:25], "little") >> 28 << 28) | 4999 << 14 | 4999).to_bytes(4, "little")
    yield "attack-webp-canvas", bytes(webp)
    # 65,536 colours, of which a pixel of 8 bits can name 256.
    bmp = bytearray(encode("BMP", mode="P"))
    bmp[46:50] = (2**16).to_bytes(4, "little")
    yield "attack-bmp-palette", bytes(bmp)


def chunk(kind: bytes, content: bytes) -> bytes:
    """Returns a chunk of a PNG."""
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def raw_profile(exif: bytes) -> bytes:
    """Returns EXIF data as ImageMagick writes them into a PNG."""
    text = b"\nexif\n%8d\n%s\n" % (len(exif), exif.hex().encode())
    return chunk(b"zTXt", b"Raw profile type exif\0\0" + deflate(text))


def deflate(content: bytes) -> bytes:
    return zlib.compress(content, 9)


def png_with(*chunks: bytes) -> bytes:
    """Returns a PNG with further chunks before its pixels."""
    whole = encode("PNG")
    return b"".join([whole[:33], *chunks, whole[33:]])


def segment(marker: int, content: bytes) -> bytes:
    """Returns a segment of a JPEG."""
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content


def jpeg_with(first: bytes) -> bytes:
    """Returns a JPEG that begins with something else."""
    whole = encode("JPEG")
    return whole[:2] + first + whole[2:]


def forms() -> Seeds:
    def part(disposition: str, content: bytes) -> bytes:
        return f"--edge\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + content + b"\r\n"

    head, end = b"multipart/form-data; boundary=edge\n", b"--edge--\r\n"
    yield "one", head + part('name="image"; filename="a.png"', b"picture") + end
    yield "several", head + part('name="images"; filename="a"', b"x") + part('name="images"', b"y") + end
    yield "fields", head + part('name="note"', b"text") + part('name="image"; filename=""', b"\r\n--edg") + end
    yield "quoted", b'multipart/form-data; boundary="e d"\n--e d\r\nContent-Disposition: form-data; name=image\r\n\r\nx'
    yield "json", b'application/json; charset=utf-8\n{"image": "QQ=="}'
    yield "json-list", b'application/json\n{"images": ["QQ==", "Qg==", "data:image/png;base64,Qw=="], "id": 1}'
    yield "raw", b"image/png\npicture"
    yield "gzip", b"image/png\tgzip\n" + bytes.fromhex("1f8b08000000000000034b4c4a0600c241243503000000")


def form_attacks() -> Seeds:
    values = b'{"image": "QQ==", "a": [' + b"[]," * 200_000 + b"0]}"
    yield "attack-json", b"application/json\tgzip\n" + gzip.compress(values, mtime=0)
    part = b'--e\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n\r\n'
    body = gzip.compress(part * 8000 + b"--e--\r\n", mtime=0)
    yield "attack-parts", b"multipart/form-data; boundary=e\tgzip\n" + body


def inferences() -> Seeds:
    picture = encode("PNG", size=(3, 2))
    pixels = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": [7] * 192}
    files = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(picture).decode()]}
    wanted = [{"name": "probabilities", "parameters": {"classification": 2, "binary_data": True}}, {"name": "logits"}]
    nested = {**pixels, "datatype": "FP32", "data": np.full((1, 8, 8, 3), 0.5).tolist()}
    yield "pixels", b"\n" + _json({"id": "a", "inputs": [pixels], "parameters": {"binary_data_output": True}})
    yield "files", b"\n" + _json({"inputs": [files], "outputs": wanted})
    yield "nested", b"\n" + _json({"inputs": [nested]})
    for name, tensor, data in (
        ("binary-pixels", pixels, bytes(192)),
        ("binary-floats", {**pixels, "datatype": "FP32"}, np.ones(192, "<f4").tobytes()),
        ("binary-files", files, struct.pack("<I", len(picture)) + picture),
    ):
        described = {**tensor, "parameters": {"binary_data_size": len(data)}}
        del described["data"]
        text = _json({"inputs": [described], "outputs": wanted})
        yield name, f"{len(text)}\n".encode() + text + data
    yield "attack-json", b"\tgzip\n" + gzip.compress(b'{"inputs": [' + b"[]," * 660_000 + b"0]}", mtime=0)


def texts() -> Seeds:
    yield "plain", b"QUJDRA=="
    yield "lines", b"QUJD\r\n RUY=\n"
    yield "url", b"data:image/png;base64,QUJD"
    yield "unicode", "QUJD\u00e9".encode()


def zips() -> Seeds:
    picture = encode("PNG", size=(2, 2))
    trees = {
        "classes": ["cat/1.png", "cat/2.png", "dog/3.png"],
        "splits": ["pets/train/cat/1.png", "pets/val/cat/2.png", "pets/train/dog/3.png"],
        "junk": ["__MACOSX/cat/._1.png", "a/cat/1.png", "a/d\u00f6g/2.png", "a/dog/notes.txt", "a/dog/empty/"],
    }
    for name, paths in trees.items():
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if name == "splits" else zipfile.ZIP_STORED) as archive:
            for path in paths:
                archive.writestr(zipfile.ZipInfo(path), b"" if path.endswith("/") else picture)
        yield name, stream.getvalue()


def folders() -> Seeds:
    yield "classes", b"cat/1.png\ncat/2.png\ndog/3.png\nempty/\n"
    yield "splits", b"pets/train/cat/1.png\npets/val/cat/2.png\npets/train/dog/3.png\npets/notes.txt"
    yield "words", b"training set/cat/1.jpg\ntest set/cat/2.jpg\ntraining set/dog/3.jpg\n.hidden/x\ncafe\xcc\x81/1.png"
    yield "nested", b"train/train/cat/1.png\ntest/1.png\n\xff/1.gif"


def safetensors() -> Seeds:
    from jaxcnn.config import Config, ModelConfig
    from jaxcnn.metadata import Metadata
    from jaxcnn.run.earlier_trainings import Training
    from jaxcnn.weights import write_weights

    metadata = Metadata(
        names=("cat", "dog"),
        wnids=(),
        image_size=(8, 8),
        config=Config(model=ModelConfig(widths=(4,), blocks=(1,))),
        dataset="pets",
        trainings=(Training("pets", "unknown", {"epochs": "9"}),),
    )
    variables = {"params": {"classifier": {"kernel": np.ones((4, 2), np.float32), "bias": np.zeros(2, np.float32)}}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        write_weights(path, variables, metadata)
        yield "ours", path.read_bytes()
    tensor = {"layer1.0.conv1.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    header = _json({"__metadata__": {"format": "pt"}, **tensor})
    yield "torch", struct.pack("<Q", len(header)) + header + bytes(8)


def checkpoints() -> Seeds:
    from tests.models.pretrained.test_pth import tensor, write_legacy, write_zip

    arrays = {"0": np.arange(6, dtype=np.float32).reshape(2, 3), "1": np.ones(2, np.int64)}
    tree = {"state_dict": {"module.weight": tensor(arrays["0"], "0"), "steps": tensor(arrays["1"], "1")}, "epoch": 3}
    with tempfile.TemporaryDirectory() as folder:
        for name, write in (("zip", write_zip), ("legacy", write_legacy)):
            yield name, write(Path(folder) / name, tree, arrays).read_bytes()


def models() -> Seeds:
    from tests.server.conftest import build_model

    with tempfile.TemporaryDirectory() as folder:
        yield "colours", build_model(Path(folder) / "model.onnx").read_bytes()
        yield "heatmap", build_model(Path(folder) / "model.onnx", heatmap=True).read_bytes()


def records() -> Seeds:
    from jaxcnn import config
    from jaxcnn.calibration import Calibration
    from jaxcnn.checksum import seal
    from jaxcnn.data import Fingerprint
    from jaxcnn.data.decoding import DECODER
    from jaxcnn.run.earlier_trainings import Training

    settings = json.loads(config.to_json(config.Config()))
    training = dataclasses.asdict(Training("pets", "unknown", {"epochs": "9"}))
    scores = dict.fromkeys(("top1", "top5", "loss", "ece"), 0.5) | {"count": 10, "per_class": []}
    entry = {"version": 1, "decoder": DECODER, "name": "pets", "names": ["cat"], "bytes": {}, "checksums": {}}
    values = {
        "config.json": seal(settings),
        "classes.json": {"names": ["cat", "dog"], "wnids": [], "dataset": "pets", "license": "unknown"},
        "pictures.json": dataclasses.asdict(Fingerprint(train=9, validation=3, labels="aa", pixels="bb", side=8)),
        "environment.json": seal({"jax": "0.11", "directory": "/tmp"}),
        "earlier_sessions.json": [{"end": 5, "config": settings, "environment": {"jax": "0.11"}}],
        "earlier_trainings.json": [training],
        "calibration.json": seal(
            dataclasses.asdict(Calibration(step=1, temperature=1.5, count=100, ece_before=0.1, ece_after=0.05))
        ),
        "evaluation.json": scores,
        "other.json": scores,
        "entry.json": seal(entry),
        "checksums.json": seal({"files": {"params/a": "00000000"}, "arrays": {"params/b": "00000000"}}),
        "settings.json": {"epochs": 3, "optim": {"lr": 0.1}, "data": {"source": "pets"}},
        "model.json": {"file": "model.onnx", "sha256": "aa"},
    }
    for name, value in values.items():
        yield name, name.encode() + b"\n" + _json(value)
    start = {"kind": "start", "step": 0, "epoch": 0.0, "time": 1.0}
    train = start | {"kind": "train", "step": 4, "loss": 1.5, "top1": 0.4, "learning_rate": 0.1, "images_per_second": 9}
    validation = start | {"kind": "validation", "step": 4, "epoch": 1, "loss": 1, "top1": 1, "top5": 1, "ece": 0}
    yield "metrics.jsonl", b"metrics.jsonl\n" + b"\n".join(map(_json, (start, train, validation, {"kind": "new"})))
    yield "settings.toml", b'settings.toml\nepochs = 3\n[optim]\nlr = 0.1\n[data]\nsource = "pets"\n'
    row = {"file": "a.png", "predicted_class": "cat"}
    yield "predictions.jsonl", b"predictions.jsonl\n" + _json(row) + b"\n" + _json(row)[:-5]


def requests() -> Seeds:
    host = b"Host: a\r\n"
    yield "get", b"GET /a?b=c HTTP/1.1\r\n" + host + b"\r\n"
    yield "post", b"POST / HTTP/1.1\r\n" + host + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\nhello"
    chunks = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nTrailer: x\r\n\r\n"
    yield "chunked", b"POST / HTTP/1.1\r\n" + host + chunks + b"GET / HTTP/1.1\r\n" + host + b"\r\n"
    yield "old", b"GET / HTTP/1.0\r\n\r\n"
    yield "pipelined", (b"GET / HTTP/1.1\r\n" + host + b"\r\n") * 20
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    yield "upgrade", b"GET / HTTP/1.1\r\n" + host + upgrade + b"GET / HTTP/1.1\r\n" + host + b"\r\n"
    yield "connect", b"CONNECT a:1 HTTP/1.1\r\n" + host + b"\r\nrest"
    yield "two-hosts", b"GET / HTTP/1.1\r\n" + host + host + b"\r\n"
    yield "codings", b"POST / HTTP/1.1\r\n" + host + b"Transfer-Encoding: gzip, chunked\r\n\r\n"


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


if __name__ == "__main__":
    main()
