"""Sources of pictures: `digits`, `folder`, `tfds` and `tiny_imagenet` return a `Source`; the others serve them."""
