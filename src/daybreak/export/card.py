"""README.md of a backbone folder."""

from typing import Any

from jinja2 import Template

FRONT = """\
---
library_name: {{ library }}
tags: [image-feature-extraction, {{ "self-supervised" if unlabelled else "supervised" }}, daybreak]
---
"""

FACTS = """\
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

"""

TIMM = """\
{{ "With timm, which learns of this network from Daybreak:" if ours.is_own else "With timm alone:" }}

```python
{% if ours.is_own %}import daybreak.nn.encoder
{% endif %}import timm

model = timm.create_model("local-dir:PATH/OF/THIS/FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
features = model(transform(image)[None])  # (1, {{ config.num_features }})
```

"""

DAYBREAK = """\
With Daybreak, whose transform is the one of the evaluation (area when shrinking, linear when slightly, cubic when growing):

```python
import daybreak

backbone = daybreak.load("PATH/OF/THIS/FOLDER")
features = backbone.pooled(backbone.transform("image.jpg")[None])
```
"""

TRANSFORMERS = """\
With transformers, as {{ architecture }}:

```python
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("PATH/OF/THIS/FOLDER")
model = AutoModel.from_pretrained("PATH/OF/THIS/FOLDER").eval()
outputs = model(**processor(image, return_tensors="pt"))
features = {{ feature }}  # (1, {{ config.num_features }}), what was trained; use no other
```

The features equal those of Daybreak for the same pixels. The processor resizes by a bicubic filter where Daybreak takes areas
when shrinking, so the pixels differ a little{% if cfg.input_size[1] != cfg.input_size[2] %}; and it resizes the whole image
where Daybreak takes the largest centred box of the shape of training{% endif %}.
"""


def model_card(config: dict[str, Any]) -> str:
    """The text, from what ``config.json`` holds."""
    return render(FRONT + FACTS + TIMM + DAYBREAK, config, library="timm")


def transformers_card(config: dict[str, Any], architecture: str, feature: str) -> str:
    """The text for transformers.

    Args:
        config: what ``config.json`` of the same backbone would hold for timm.
        feature: a line of Python.
    """
    return render(FRONT + FACTS + TRANSFORMERS, config, library="transformers", architecture=architecture, feature=feature)


def render(template: str, config: dict[str, Any], **words: str) -> str:
    return Template(template, keep_trailing_newline=True).render(
        config=config, cfg=config["pretrained_cfg"], ours=config["daybreak"],
        unlabelled=config["daybreak"]["info"].get("labels", "none") == "none", **words)
