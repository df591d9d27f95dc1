#!/usr/bin/env python3
"""Writes reference.rs: what transformers' BlipImageProcessor makes of small pictures."""

import json
import warnings
from pathlib import Path

import numpy as np
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

warnings.filterwarnings("ignore")
CASES = [
    (dict(size=dict(height=4, width=3)), (9, 7)),
    (dict(size=dict(height=7, width=5)), (3, 4)),
    (dict(size=dict(height=5, width=5), resample=2, do_normalize=False), (11, 5)),
    (dict(do_resize=False, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.25, 0.2]), (2, 3)),
    (dict(size=dict(height=2, width=9), do_rescale=False, do_normalize=False), (6, 4)),
]
lines = ["// Written by make_reference.py.", "const REFERENCE: [(&str, [usize; 2], &[f32]); 5] = ["]
for settings, (height, width) in CASES:
    i = np.arange(height * width * 3)
    picture = ((i * i * 7 + i * 13) % 251).astype(np.uint8).reshape(height, width, 3)
    pixels = BlipImageProcessorPil(**settings)(picture, return_tensors="np", input_data_format="channels_last")
    numbers = ", ".join(f"{float(x):.7}" if x % 1 else f"{float(x):.1f}" for x in pixels["pixel_values"].flatten())
    lines.append(f'    (r#"{json.dumps(settings)}"#, [{height}, {width}], &[{numbers}]),')
Path(__file__).with_name("reference.rs").write_text("\n".join([*lines, "];", ""]))
