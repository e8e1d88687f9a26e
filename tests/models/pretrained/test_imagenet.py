"""The classes of ImageNet-1k: names and WordNet ids in the order of the logits."""

from jaxcnn.models.pretrained.imagenet import imagenet_classes


def test_the_classes_of_imagenet():
    names, wnids = imagenet_classes()
    assert len(names) == len(set(wnids)) == 1000
    assert list(wnids) == sorted(wnids)
    assert names[1] == "goldfish"
    assert wnids[1] == "n01443537"
