"""A data set as its source provides it."""

from dataclasses import dataclass

from jaxcnn.data.pictures import Pictures


@dataclass(frozen=True, kw_only=True)
class EncodedDataset:
    """A data set whose pictures are still encoded.

    Attributes:
      name: of the data set, for people.
      names: class names; the position is the class index.
      wnids: WordNet ids in the order of `names`; empty if the classes have none.
      license: terms of use, or `unknown`.
      train: training pictures.
      validation: validation pictures; empty if the source has none.
      passed_over: files among them that are no pictures.
      in_records: whether they lie in ArrayRecord files, which give any picture in any order.
    """

    name: str
    names: tuple[str, ...]
    wnids: tuple[str, ...] = ()
    license: str
    train: Pictures
    validation: Pictures
    passed_over: tuple[str, ...] = ()
    in_records: bool = False

    @property
    def count(self) -> int:
        """Number of all pictures."""
        return len(self.train) + len(self.validation)
