"""A chart of the LoRA steps: `chart.py BARS.json FILE.png`."""

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

settings = json.load(open(sys.argv[1]))
bars = settings["bars"]
figure, axes = plt.subplots(
    1, 2, figsize=(13, 1.6 + 0.55 * len(bars)), sharey=True, layout="constrained"
)
places = range(len(bars))
panels = (("tok/s", "speed", "{:.2f}×"), ("GB", "memory", "{:.2f}×"))
colours = {"lowrank": "#1f6f8b", "torch": "#c9a227"}
for axis, (unit, key, form) in zip(axes, panels):
    for offset, side in ((-0.2, "lowrank"), (0.2, "torch")):
        values = [bar[key][side] or 0 for bar in bars]
        label = "torch + peft" if side == "torch" else side
        axis.barh([p + offset for p in places], values, 0.38, label=label, color=colours[side])
    for place, bar in zip(places, bars):
        ours, theirs = bar[key]["lowrank"], bar[key]["torch"]
        if ours and theirs:
            text = form.format(ours / theirs)
            axis.text(ours, place - 0.2, f" {text}", va="center", fontsize=8)
    axis.set_xlabel(unit)
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
axes[0].set_yticks(list(places), [bar["label"] for bar in bars], fontsize=8)
axes[0].invert_yaxis()
axes[0].set_title("LoRA step, tokens/s")
axes[1].set_title("peak resident memory, GB")
axes[1].legend(loc="lower right")
figure.suptitle(settings["title"], fontsize=9)
figure.savefig(sys.argv[2], dpi=150)
