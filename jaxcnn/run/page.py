"""Pages about runs and pictures: one HTML file each, which needs no network, from a template of `templates/`."""

from typing import Any

import jinja2


def render_page(template: str, **values: Any) -> str:
    """Returns a page as HTML. Values are escaped, unless they are `Markup`.

    Args:
      template: name of the template; it extends `page.html`, which has the head and the common style.
      values: what the template shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxcnn.run"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # A folder's name, and so a class name, may hold bytes that UTF-8 cannot encode.
    return environment.get_template(template).render(values).encode("utf-8", "replace").decode("utf-8")
