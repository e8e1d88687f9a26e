"""Identifies the split of a data set, to detect later that other pictures are held out."""

from dataclasses import dataclass

from jaxcnn.data.resize import STRETCH, Resize

SAMPLE = 256
"""Most training pictures that a fingerprint identifies. A tenth of all pictures has 26 of them on average."""

DIGITS = 12
"""Hexadecimal digits of the SHA-256 of a picture that identify it."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """The split of a data set in a few numbers, which `Dataset.fingerprint` computes.

    Attributes:
      train: number of training pictures.
      validation: number of validation pictures.
      labels: SHA-256 of the labels of both splits, in their order.
      pixels: SHA-256 of the validation pictures. Exchanging or renaming files may leave the labels unchanged, but not
        which pictures are held out.
      side: side in pixels of the pictures that the model sees.
      decoder: version of the decoder; 0 in records that lack it.
      resize: how the pictures became squares; earlier versions stretched them.
      seen: identities of up to `SAMPLE` training pictures, one after the other; empty in records that lack them.
    """

    train: int
    validation: int
    labels: str
    pixels: str
    side: int
    decoder: int = 0
    resize: Resize = STRETCH
    seen: str = ""

    def has_same_split(self, other: "Fingerprint") -> bool:
        """Returns whether the same pictures are held out, as far as the records allow to decide."""
        same_labels = (self.train, self.validation, self.labels) == (other.train, other.validation, other.labels)
        return same_labels and (self.pixels == other.pixels or not self.is_comparable(other))

    def is_comparable(self, other: "Fingerprint") -> bool:
        """Returns whether equal pictures have equal pixels in both: they were decoded and resized alike."""
        return (self.side, self.decoder, self.resize) == (other.side, other.decoder, other.resize)

    def identities(self) -> list[str]:
        """Returns the identities of training pictures that are recorded, each of `DIGITS` digits."""
        return [self.seen[start : start + DIGITS] for start in range(0, len(self.seen), DIGITS)]
