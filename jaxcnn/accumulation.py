"""Batches in parts, whose gradients are added: which settings allow them."""

from jaxcnn.config import Config
from jaxcnn.errors import UserError
from jaxcnn.models import registry
from jaxcnn.state import describe_variables


def check_parts(config: Config, *, classes: int, devices: int) -> None:
    """Raises a `UserError` if a batch cannot be split into the parts and groups that the settings ask for."""
    group, parts = config.model.norm_group, config.parallel.accumulate
    share = config.batch_size // devices if parts > 1 else config.batch_size
    if share % ((group or 1) * parts):
        raise UserError(
            f"{share} pictures of a batch cannot be split into {parts} parts for parallel.accumulate, of whole groups "
            f"of {group or 1} for model.norm_group; change one of the three"
        )
    if parts > 1 and group is None:
        model, side = registry.build(config.model, classes=classes), config.data.image_size
        variables = describe_variables(model, side)
        if variables["batch_stats"]:
            raise UserError(
                f"parallel.accumulate is {parts}, but the network takes statistics over the whole batch; give the "
                "number of pictures for them with --model.norm_group"
            )
