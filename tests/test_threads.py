"""Thread counts that would end the process are refused."""

import pytest

from asd_policy.errors import ConfigError
from asd_policy.threads import MOST_THREADS, check_threads
from scripts import bench_images, generate_images, train_digit_classifier


@pytest.mark.parametrize("threads", [0, -1, MOST_THREADS + 1, 10**8, 10**30])
def test_no_number_of_threads_ends_the_process(threads, tmp_path):
    bench = bench_images.Arguments(tmp_path, tmp_path, threads=threads)
    images = generate_images.Arguments(str(tmp_path), tmp_path / "grid.png", threads=threads)
    digits = train_digit_classifier.Arguments(tmp_path, tmp_path, threads=threads)
    for refuses in (
        lambda: check_threads(threads),
        lambda: bench_images.main(bench),
        lambda: generate_images.main(images),
        lambda: train_digit_classifier.main(digits),
    ):
        with pytest.raises(ConfigError, match="threads"):
            refuses()
