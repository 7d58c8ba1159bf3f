"""README.md of a backbone folder."""

from typing import Any

from jinja2 import Template

CARD = """\
---
library_name: timm
tags: [image-feature-extraction, {{ "self-supervised" if unlabelled else "supervised" }}, daybreak]
---
# {{ config.architecture }}, pretrained {{ "without" if unlabelled else "with" }} labels

A backbone of {{ config.num_features }} features, written by Daybreak {{ ours.version }}.

| | |
|---|---|
| channels, height and width | {{ cfg.input_size | join(", ") }} |
| mean | {{ cfg.mean | join(", ") }} |
| standard deviation | {{ cfg.std | join(", ") }} |
| pooling | {{ "class token" if ours.pooling == "cls" else "mean over the map" }}, after the last norm |
{%- for name, value in ours.info.items() %}
| {{ name }} | {{ value | string | replace("|", "\\\\|") | replace("\\n", " ") }} |
{%- endfor %}

{{ "With timm, which learns of this network from Daybreak:" if ours.is_own else "With timm alone:" }}

```python
{% if ours.is_own %}import daybreak.nn.encoder
{% endif %}import timm

model = timm.create_model("local-dir:PATH/OF/THIS/FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
features = model(transform(image)[None])  # (1, {{ config.num_features }})
```

With Daybreak, whose transform is the one of the evaluation (area when shrinking, linear when slightly, cubic when growing):

```python
import daybreak

backbone = daybreak.load("PATH/OF/THIS/FOLDER")
features = backbone.pooled(backbone.transform("image.jpg")[None])
```
"""


def model_card(config: dict[str, Any]) -> str:
    """The text, from what ``config.json`` holds."""
    return Template(CARD, keep_trailing_newline=True).render(
        config=config, cfg=config["pretrained_cfg"], ours=config["daybreak"],
        unlabelled=config["daybreak"]["info"].get("labels", "none") == "none")
