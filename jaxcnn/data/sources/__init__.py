"""Sources of pictures: `digits`, `folder`, `tars`, `tfds` and `tiny_imagenet` return a `Source`; others help."""
