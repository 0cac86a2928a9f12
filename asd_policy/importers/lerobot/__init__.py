"""lerobot (https://github.com/huggingface/lerobot): folders of diffusion policies on states and images."""

from asd_policy.importers.format import Format
from asd_policy.importers.lerobot.reading import NAME, read
from asd_policy.importers.lerobot.writing import write

FORMAT = Format(
    name=NAME,
    place="folder",
    marks=frozenset({"input_features", "output_features"}),
    read=read,
    write=write,
)
