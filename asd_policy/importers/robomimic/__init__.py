"""robomimic 0.5 (https://github.com/ARISE-Initiative/robomimic): `.pth` files of DiffusionPolicyUNet."""

from functools import partial

from asd_policy.importers.format import Format
from asd_policy.importers.robomimic.reading import NAME, read
from asd_policy.importers.robomimic.writing import write

FORMAT = Format(
    name=NAME,
    place="file",
    marks=frozenset({"algo_name", "shape_metadata", "env_metadata"}),
    read=read,
    read_trusted=partial(read, trust_pickle=True),
    write=write,
)
