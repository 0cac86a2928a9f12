"""asd-policy import: the table, conversion, and refusals."""

import re
from pathlib import Path

import pytest

from asd_policy.cli import main as run
from asd_policy.cli.import_checkpoint import Arguments, main
from asd_policy.errors import ConfigError
from asd_policy.importers import FORMATS, read_checkpoint

GOLDEN = Path(__file__).parents[1] / "importers" / "golden"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (
            "lerobot",
            ["lerobot", "(16, 32)", "state 9, environment_state 14", "chunk[1:6]", "clipped to ±1.5", "62,999"],
        ),
        (
            "real_stanford/transformer.ckpt",
            [
                "diffusion_policy",
                "asd/SquareWorldPose-v0",
                "2 layers, 4 heads",
                "causal",
                "10 -> 7: keep 3, rot6d 6, keep 1",
            ],
        ),
    ],
)
def test_inspect(path, shown, capsys):
    main(Arguments(GOLDEN / path, inspect=True))
    found = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    for text in shown:
        assert text in found
    assert ("note: Trained in robosuite 1.2" in found) == path.endswith("ckpt")


def test_convert(tmp_path, capsys):
    keys = {"robot0_eef_pos": 9, "object": 14}
    main(Arguments(GOLDEN / "lerobot", out=tmp_path / "native", obs_keys=keys, env_id="asd/Square-v0"))
    config = read_checkpoint(tmp_path / "native").config
    assert (dict(config.obs_keys), config.env_id) == (keys, "asd/Square-v0")
    main(Arguments(tmp_path / "native", out=tmp_path / "again", to="lerobot"))
    assert read_checkpoint(tmp_path / "again").config == config


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match="either --inspect or --out"):
        main(Arguments(GOLDEN / "lerobot"))
    with pytest.raises(ConfigError, match="exists already"):
        main(Arguments(GOLDEN / "lerobot", out=tmp_path))
    with pytest.raises(ConfigError, match=r"obs_keys .* have 3 entries, but .* observes 23"):
        main(Arguments(GOLDEN / "lerobot", inspect=True, obs_keys={"object": 3}))
    with pytest.raises(ConfigError, match="cannot express the network"):
        main(Arguments(GOLDEN / "real_stanford" / "transformer.ckpt", out=tmp_path / "a", to="lerobot"))
    with pytest.raises(ConfigError, match="Available: lerobot, native, robomimic"):
        main(Arguments(GOLDEN / "lerobot", out=tmp_path / "a", to="diffusion_policy"))


def test_help_lists_the_formats_that_can_be_written(capsys):
    with pytest.raises(SystemExit) as ended:
        run(["import", "--help"])
    assert ended.value.code == 0
    assert f"--to {{{','.join(FORMATS.writable())}}}" in capsys.readouterr().out


def test_a_shipped_checkpoint_is_found_by_name(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(["import", "square", "--inspect"]) == 0
    assert "asd/Square-v0" in capsys.readouterr().out
    assert run(["import", "sqare", "--inspect"]) == 1
    assert "Unknown checkpoint 'sqare'. Did you mean 'square'? Available: digits, square" in capsys.readouterr().err
