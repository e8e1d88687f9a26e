"""Sources of pictures: `digits`, `folder`, `parquet`, `tars`, `tfds` and `tiny_imagenet` return a `Source`.

The other modules help.
"""
