"""Thread counts that would end the process are refused."""

import pytest

from asd_policy.cli import images_bench, images_classifier, images_draw
from asd_policy.errors import ConfigError
from asd_policy.threads import MOST_THREADS, check_threads


@pytest.mark.parametrize("threads", [0, -1, MOST_THREADS + 1, 10**8, 10**30])
def test_no_number_of_threads_ends_the_process(threads, tmp_path):
    bench = images_bench.Arguments(tmp_path, tmp_path, threads=threads)
    images = images_draw.Arguments(str(tmp_path), tmp_path / "grid.png", threads=threads)
    digits = images_classifier.Arguments(tmp_path, tmp_path, threads=threads)
    for refuses in (
        lambda: check_threads(threads),
        lambda: images_bench.main(bench),
        lambda: images_draw.main(images),
        lambda: images_classifier.main(digits),
    ):
        with pytest.raises(ConfigError, match="threads"):
            refuses()
